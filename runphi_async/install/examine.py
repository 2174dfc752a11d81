# SPDX-License-Identifier: Apache-2.0
"""What ``runphi doctor`` says of the installation: whether all of it is there, and what was changed for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from backends.base import Finding, Level
from runphi_async.errors import RunphiError
from runphi_async.install import change, layout, record, runc, tree
from runphi_async.install.root import CONFIG, HOME, Root, digest

AREA: Final = "install"

if TYPE_CHECKING:
    from collections.abc import Mapping


def examine(root: Root) -> list[Finding]:
    """Look at the installation (blocks)."""
    try:
        return [*_installation(root), *_runc(root), *_engines(root)]
    except RunphiError as exc:
        return [Finding(Level.WARNING, AREA, exc.msg, exc.hint or "")]


def _installation(root: Root) -> list[Finding]:
    here = tree.source()
    known = record.load(root, layout.NAME)
    if layout.is_package(root):
        return [Finding(Level.OK, AREA, f"Debian's package runphi-async in {HOME}")]
    if known is None:
        return [Finding(Level.NOTE, AREA, f"not installed: runs from {here}", f"{here}/bin/configure -a installs it")]
    mend = f"runphi-configure -c {known.get('backend', 'BACKEND')}, from a checkout or with its whole path"
    missing, changed = _files(root, known["files"])
    found = [Finding(Level.WARNING, AREA, f"{path} is missing", mend) for path in missing]
    found += [Finding(Level.NOTE, AREA, f"{path} was changed by somebody") for path in changed]
    if any(len(digests) > 1 for digests in known["files"].values()) or os.path.exists(root(f"{HOME}/{tree.STAGE}")):
        found.append(Finding(Level.WARNING, AREA, "an installation was interrupted", mend))
    if here != os.path.realpath(root(HOME)):
        text = f"this supervisor runs from {here}, not from {HOME}"
        found.append(Finding(Level.NOTE, AREA, text, "end it; the next verb of an engine starts the other one"))
    version, backend = known.get("version"), known.get("backend")
    return [Finding(Level.OK, AREA, f"version {version} in {HOME}, for backend {backend}"), *found]


def _files(root: Root, files: Mapping[str, list[str]]) -> tuple[list[str], list[str]]:
    missing, changed = [], []
    for path, digests in files.items():
        now = digest(root(path))
        if not now:
            missing.append(path)
        elif now not in digests and path != CONFIG:  # the configuration is there to be changed
            changed.append(path)
    return missing, changed


def _runc(root: Root) -> list[Finding]:
    known: dict[str, Any] | None = record.load(root, runc.NAME)
    if known is None:
        return []
    path, mend = str(known["path"]), "runphi-configure --replace-runc, or --restore"
    if known.get("phase") == "restore":
        return [Finding(Level.WARNING, AREA, f"the return of {path} was interrupted", "runphi-configure --restore")]
    if not runc.is_ours(root, path):
        return [Finding(Level.WARNING, AREA, f"{path} is no longer runPHI: something installed it again", mend)]
    if not os.access(root(path + runc.VANILLA), os.X_OK):
        text = f"{path} is runPHI, and the ordinary runc is gone"
        return [Finding(Level.WARNING, AREA, text, "runphi-configure --restore, then apt-get install --reinstall runc")]
    return [Finding(Level.OK, AREA, f"{path} is runPHI, the ordinary runc {path}{runc.VANILLA}")]


def _engines(root: Root) -> list[Finding]:
    found = []
    for name in change.changed(root):
        path = change.place(name)
        if change.names_us(name, root.read(path)):
            found.append(Finding(Level.OK, AREA, f"{path} was given the runtime runphi"))
        else:
            mend = f"runphi-configure --engine {name}, or with --undo to forget it"
            found.append(Finding(Level.WARNING, AREA, f"{path} names the runtime runphi no more", mend))
    return found
