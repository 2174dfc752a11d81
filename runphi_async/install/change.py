# SPDX-License-Identifier: Apache-2.0
"""``--engine`` and ``--undo``: change an engine's configuration, shown before it is done, and take it back.

The old file is kept byte for byte beside the record. It is put back only over a file that is still what we wrote:
changes that somebody made since are shown, and theirs to decide about.
"""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, NamedTuple

from runphi_async.errors import RunphiError
from runphi_async.install import record
from runphi_async.install.engines import ENGINES, engine
from runphi_async.install.root import STATE, digest_of, remove, sync
from runphi_async.install.steps import step

if TYPE_CHECKING:
    from runphi_async.install.root import Root

PREFIX = "engine-"


class Change(NamedTuple):
    """A file as it is and as it shall be."""

    engine: str
    path: str
    before: bytes | None
    after: bytes

    @property
    def needed(self) -> bool:
        """Whether anything changes."""
        return self.before != self.after


def plan(root: Root, name: str) -> Change:
    """Say what would be changed; nothing is."""
    path = engine(name).path
    before = root.read(path)
    try:
        text = (before or b"").decode()
    except UnicodeDecodeError as exc:
        raise RunphiError(f"cannot read {root(path)}: not UTF-8", "mend it first") from exc
    after = engine(name).edit(text).encode()
    return Change(name, path, before, after)


def diff(old: bytes | None, new: bytes | None, path: str, *, names: tuple[str, str] = ("now", "then")) -> str:
    """Return the difference of two versions of a file for people."""
    a, b = ((data or b"").decode(errors="replace").splitlines(keepends=True) for data in (old, new))
    lines = difflib.unified_diff(a, b, f"{path} ({names[0]})", f"{path} ({names[1]})")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def apply(root: Root, change: Change) -> None:
    """Make the change, after the old file and what is to be done were written down."""
    name = PREFIX + change.engine
    # An older record: the entry was taken out by hand since, and an undo shall bring back what is there now.
    known = record.load(root, name) or {"directories": [], "record_directories": []}
    content = {
        "path": change.path,
        "existed": change.before is not None,
        "after": digest_of(change.after),
        "directories": [*known["directories"], *root.missing_directories(os.path.dirname(change.path))],
    }
    made = [*known["record_directories"], *root.missing_directories(STATE)]
    record.save(root, name, {**content, "record_directories": made})
    step("engine: written down")
    root.write(_backup(change.engine), change.before or b"", 0o600)
    step("engine: backup")
    root.write(change.path, change.after)
    step("engine: changed")


def undo(root: Root, name: str) -> str:
    """Take a change back; return a sentence about it.

    :raises RunphiError: somebody changed the file since.
    """
    engine(name)
    known = record.load(root, PREFIX + name)
    if known is None:
        return f"the configuration of {name} was not changed by runPHI"
    path = str(known["path"])
    old = root.read(_backup(name)) if known["existed"] else None
    now = root.read(path)
    written = digest_of(now) if now is not None else ""
    if written == known["after"]:
        if known["existed"] and old is None:
            what = f"cannot undo the change of {root(path)}: {root(_backup(name))} is gone"
            raise RunphiError(what, "take the runtime runphi out by hand and say --undo again")
        _put_back(root, path, old)
    elif now != old and names_us(name, now):
        ours = engine(name).edit((old or b"").decode()).encode()
        shown = diff(ours, now, path, names=("as runPHI left it", "now"))
        raise RunphiError(
            f"cannot undo the change of {root(path)}: somebody changed it since:\n{shown.rstrip()}\n",
            f"take the runtime runphi out by hand and say --undo again; how it was before is in {root(_backup(name))}",
        )
    step("undo: put back")
    record.remove_empty(root, known["directories"])
    remove(root(_backup(name)))
    record.forget(root, PREFIX + name)
    same = root.read(path) == old
    return f"{root(path)} is as it was before" if same else f"{root(path)} names runPHI no more"


def place(name: str) -> str:
    """Return the file of an engine that is changed."""
    return engine(name).path


def changed(root: Root) -> list[str]:
    """Return the engines whose configuration was changed."""
    return [name for name in ENGINES if PREFIX + name in record.names(root)]


def _backup(name: str) -> str:
    return f"{STATE}/{PREFIX}{name}.before"


def _put_back(root: Root, path: str, old: bytes | None) -> None:
    if old is None:
        remove(root(path))
        sync(os.path.dirname(root(path)))
    else:
        root.write(path, old)


def names_us(name: str, now: bytes | None) -> bool:
    """Whether a configuration still has our runtime in it."""
    if now is None:
        return False
    try:
        text = now.decode()
        return engine(name).edit(text) == text
    except (UnicodeDecodeError, RunphiError):
        return b"runphi" in now
