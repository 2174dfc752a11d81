# SPDX-License-Identifier: Apache-2.0
"""``--replace-runc`` and ``--restore``: runPHI under the name ``runc``, as the original does it.

The vanilla binary stays on the disk under at least one of its two names at every moment, and ``runc`` is always there:

    replace   write down · divert · vanilla also as runc_vanilla (a hard link) · our link over runc
    restore   vanilla also as runc (over our link) · divert no longer · runc_vanilla goes · forget

Each step is one system call or one call of dpkg, and each looks first whether it is done already, so that a call which
was killed anywhere can be repeated, or taken back. Between the steps a package may be upgraded. While the diversion is
there dpkg writes to ``runc_vanilla``, so this file is the truth then; without it ``runc`` is.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from typing import TYPE_CHECKING, Final

from runphi_async import wire
from runphi_async.config.realrunc import is_runphi
from runphi_async.errors import RunphiError
from runphi_async.install import diversion, record
from runphi_async.install.root import HOME, NEW, relative, remove, sync
from runphi_async.install.steps import step

if TYPE_CHECKING:
    from runphi_async.install.root import Root

NAME: Final = "runc"
LAUNCHER: Final = f"{HOME}/bin/runphi"
#: where a package or a person has put runc
PLACES: Final = ("/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc", "/usr/local/bin/runc")
VANILLA: Final = "_vanilla"
#: a supervisor leaves here for its clients which runc it uses
PUBLISHED: Final = f"{wire.DEFAULT_RUN_DIR}/runc"


def find(root: Root) -> str:
    """Return the runc to be replaced, links resolved.

    :raises RunphiError: there is none.
    """
    for place in PLACES:
        path = os.path.realpath(root(place))
        inside = path.removeprefix(root.destdir) if path.startswith(root.destdir + "/") else place
        if os.path.isfile(path) and not is_runphi(path):
            return inside
    raise RunphiError("cannot find the runc to replace", f"apt-get install runc; looked at {', '.join(PLACES)}")


def is_ours(root: Root, path: str) -> bool:
    """Whether a name is a link to our launcher."""
    real = root(path)
    return os.path.islink(real) and os.readlink(real) == relative(path, LAUNCHER)


def is_replaced(root: Root) -> bool:
    """Whether runc was replaced, or that was begun."""
    return record.load(root, NAME) is not None


def replace(root: Root) -> str:
    """Put runPHI in the place of runc; return a sentence about it."""
    known = record.load(root, NAME)
    if known is not None and known.get("phase") == "restore":
        restore(root)  # first finish what was begun
        known = None
    path = str(known["path"]) if known else find(root)
    vanilla = path + VANILLA
    if not os.path.exists(root(LAUNCHER)):
        raise RunphiError(f"cannot replace {path}: runPHI is not installed in {root(HOME)}", "configure -a installs it")
    if known and is_ours(root, path) and _is_vanilla(root, vanilla):
        _publish(root, vanilla)
        return f"{path} is runPHI already; the ordinary runc is {vanilla}"
    divert = bool(known["divert"]) if known else diversion.here(root) and bool(diversion.owner(root, path))
    if is_ours(root, path) and not _is_vanilla(root, vanilla):
        raise RunphiError(
            f"cannot find the ordinary runc at {vanilla}", "configure --restore, then apt-get install runc"
        )
    if known is None:
        _refuse_foreign(root, path, vanilla)
        record.save(root, NAME, {"path": path, "divert": divert, "phase": "replace"})
    step("replace: written down")
    if divert and diversion.target(root, path) != vanilla:
        diversion.add(root, path, vanilla)
    step("replace: diverted")
    if not os.path.exists(root(vanilla)):
        _second_name(root, path, vanilla)
    step("replace: kept as runc_vanilla")
    if not is_ours(root, path):
        root.link(path, relative(path, LAUNCHER))
    step("replace: in its place")
    _publish(root, vanilla)
    ending = "" if divert else "; no package owns it: whatever installs runc again takes runPHI's place"
    return f"{path} is runPHI now; the ordinary runc is {vanilla}{ending}"


def restore(root: Root) -> str:
    """Put the vanilla runc back; return a sentence about it."""
    known = record.load(root, NAME)
    if known is None:
        return "runc was not replaced"
    path, divert = str(known["path"]), bool(known["divert"])
    vanilla = path + VANILLA
    record.save(root, NAME, {**known, "phase": "restore"})
    step("restore: written down")
    diverted = divert and diversion.target(root, path) == vanilla
    if _is_vanilla(root, vanilla) and (diverted or not _is_vanilla(root, path)):
        _publish(root, path)
        if not _same(root, path, vanilla):
            _second_name(root, vanilla, path)
    elif is_ours(root, path):
        # The package was removed meanwhile, and its file with it.
        os.unlink(root(path))
    step("restore: in its place")
    if diverted:
        diversion.drop(root, path, vanilla)
    step("restore: not diverted")
    if _is_vanilla(root, path):
        remove(root(vanilla))
        sync(os.path.dirname(root(vanilla)))
    step("restore: runc_vanilla removed")
    remove(root(path) + NEW)
    remove(root(vanilla) + NEW)
    record.forget(root, NAME)
    if not _is_vanilla(root, path):
        return f"{path} is gone: its package was removed while runPHI was in its place (apt-get install runc)"
    return f"{path} is the ordinary runc again"


def _refuse_foreign(root: Root, path: str, vanilla: str) -> None:
    """Leave alone what somebody else has set up under these names."""
    if os.path.lexists(root(vanilla)) and not _same(root, path, vanilla):
        raise RunphiError(
            f"cannot keep {path} as {vanilla}: another file is there", "move it away, if nobody needs it, and try again"
        )
    if diversion.here(root) and diversion.target(root, path) not in ("", vanilla):
        raise RunphiError(f"cannot replace {path}: it is diverted already", f"see dpkg-divert --list {path}")


def _is_vanilla(root: Root, path: str) -> bool:
    return os.path.isfile(root(path)) and os.access(root(path), os.X_OK) and not is_runphi(root(path))


def _same(root: Root, one: str, other: str) -> bool:
    a, b = root(one), root(other)
    if not (os.path.isfile(a) and os.path.isfile(b)):
        return False
    return os.path.samefile(a, b) or filecmp.cmp(a, b, shallow=False)


def _second_name(root: Root, path: str, other: str) -> None:
    """Give a file a second name, in the place of whatever has it, in one step."""
    new = root(other) + NEW
    remove(new)
    try:
        os.link(root(path), new)
    except OSError:  # a file system without hard links
        shutil.copy2(root(path), new)
        fd = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(fd)
        os.close(fd)
    os.rename(new, root(other))
    remove(new)  # rename leaves both where they are names of one file
    sync(os.path.dirname(new))


def _publish(root: Root, path: str) -> None:
    """Tell a supervisor's clients where the ordinary runc is from now on."""
    if root.is_machine and os.path.islink(PUBLISHED):
        root.link(PUBLISHED, path)
