# SPDX-License-Identifier: Apache-2.0
"""docker: an entry in daemon.json, put into its text so that everything else keeps its form."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from runphi_async.errors import RunphiError

PATH: Final = "/etc/docker/daemon.json"
ENTRY: Final = {"path": "/usr/sbin/runphi"}
_DECODER: Final = json.JSONDecoder()


def edit(text: str) -> str:
    """Return the configuration with our runtime in it."""
    if not text.strip():
        return json.dumps({"runtimes": {"runphi": ENTRY}}, indent=2) + "\n"
    before = _load(text)
    runtimes = before.get("runtimes", {})
    if not isinstance(runtimes, dict):
        raise RunphiError(f"cannot change {PATH}: runtimes is no object", "mend it first")
    if runtimes.get("runphi") == ENTRY:
        return text
    if "runphi" in runtimes:
        raise RunphiError(f"cannot change {PATH}: it has a runtime runphi already", "remove it, then try again")
    wanted = {**before, "runtimes": {**runtimes, "runphi": ENTRY}}
    if "runtimes" in before:
        new = _insert(text, _value_of(text, "runtimes"), "runphi", ENTRY, level=2)
    else:
        new = _insert(text, _skip(text, 0), "runtimes", {"runphi": ENTRY}, level=1)
    assert _load(new) == wanted
    return new


def _load(text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise RunphiError(f"cannot change {PATH}: a key is there twice", "mend it first")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=unique)
    except ValueError as exc:
        raise RunphiError(f"cannot read {PATH}: not JSON: {exc}", "mend it first") from exc
    if not isinstance(found, dict):
        raise RunphiError(f"cannot read {PATH}: not an object", "mend it first")
    return found


def _skip(text: str, at: int) -> int:
    found = re.compile(r"\s*").match(text, at)
    return found.end() if found else at


def _value_of(text: str, key: str) -> int:
    """Return where the value of a key of the outermost object begins."""
    at = _skip(text, 0) + 1
    while True:
        name, at = _DECODER.raw_decode(text, _skip(text, at))
        begin = _skip(text, _skip(text, at) + 1)  # behind the colon
        if name == key:
            return begin
        _, at = _DECODER.raw_decode(text, begin)
        at = _skip(text, at) + 1  # behind the comma


def _insert(text: str, begin: int, key: str, value: object, *, level: int) -> str:
    """Return the text with one more entry at the end of the object that begins there."""
    _, end = _DECODER.raw_decode(text, begin)
    inside = text[begin + 1 : end - 1]
    comma = "," if inside.strip() else ""
    kept = text[: begin + 1] + inside.rstrip() + comma
    found = re.search(r"^([ \t]+)\S", text, re.M)
    if found is None and "\n" not in text.strip():  # all in one line
        space = " " if comma else ""
        return f"{kept}{space}{json.dumps(key)}: {json.dumps(value)}{text[end - 1 :]}"
    unit = found[1] if found else "  "
    entry = f"{json.dumps(key)}: {json.dumps(value, indent=unit)}".replace("\n", "\n" + unit * level)
    return f"{kept}\n{unit * level}{entry}\n{unit * (level - 1)}{text[end - 1 :]}"
