# SPDX-License-Identifier: Apache-2.0
"""Adding tables to a TOML file of somebody else without touching a byte of what is there.

Tables may be written in any order, so ours go to the end. Whether that says what was meant is read back: the new text
must say exactly what the old one said, and ours beside it. What cannot be done so, such as a parent that is an inline
table, is refused with the lines to add by hand.
"""

from __future__ import annotations

import copy
import json
import tomllib
from typing import TYPE_CHECKING, Any, Final

from runphi_async.errors import RunphiError

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK: Final = "# runPHI: added by runphi-configure, which takes it away again with --undo"


def read(text: str, name: str) -> dict[str, Any]:
    """Decode a file.

    :raises RunphiError: it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise RunphiError(f"cannot read {name}: not TOML: {exc}", "mend it first") from exc


def at(table: dict[str, Any], path: Sequence[str]) -> Any:
    """Return what is at a path of keys; None when there is nothing."""
    found: Any = table
    for key in path:
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


def add(text: str, name: str, path: Sequence[str], content: dict[str, Any], mark: str = MARK) -> str:
    """Return the text with one more table.

    :param name: of the file, for errors.
    :param mark: the comment above it.
    :raises RunphiError: something else is there already, or the file does not allow it.
    """
    before = read(text, name)
    present = at(before, path)
    if present == content:
        return text
    block = render(path, content)
    if present is not None:
        raise RunphiError(f"cannot change {name}: it has a table {header(path)} already", "remove it, then try again")
    wanted = copy.deepcopy(before)
    here = wanted
    for key in path[:-1]:
        here = here.setdefault(key, {}) if isinstance(here, dict) else {}
    if isinstance(here, dict):
        here[path[-1]] = content
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    new = f"{text}{gap}{mark}\n{block}"
    try:
        after = tomllib.loads(new)
    except tomllib.TOMLDecodeError:
        after = None
    if after != wanted:
        lines = "; ".join(line for line in block.splitlines() if line)
        raise RunphiError(
            f"cannot add to {name}: a table above {header(path)} is written inline", f"add by hand: {lines}"
        )
    return new


def render(path: Sequence[str], content: dict[str, Any]) -> str:
    """Return a table, and the tables in it, as text."""
    own = [f"{_key(key)} = {_value(value)}" for key, value in content.items() if not isinstance(value, dict)]
    text = "\n".join([header(path), *own]) + "\n"
    for key, value in content.items():
        if isinstance(value, dict):
            text += "\n" + render([*path, key], value)
    return text


def header(path: Sequence[str]) -> str:
    """Return a table's first line."""
    return f"[{'.'.join(map(_key, path))}]"


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)
