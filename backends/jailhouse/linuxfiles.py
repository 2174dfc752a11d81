# SPDX-License-Identifier: Apache-2.0
"""What is made of a Linux cell's plan in its record: RAM disk and device tree. They stay there for ``resume``.

The RAM disk is three archives in a row: our init, the container's configuration, the image's root file system. The
device tree comes last: it says where the RAM disk ends.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Final

from backends.guest import initrd, rootfs
from backends.guest.fdt import MAX as TREE_MAX
from backends.jailhouse import tree
from backends.jailhouse.plan import Form
from runphi_async import regular
from runphi_async.errors import BackendError, TreeError

if TYPE_CHECKING:
    from backends.jailhouse.plan import CellPlan, JailhousePlan, Load

#: in the record
RAMDISK: Final = "initrd"
TREE: Final = "guest.dtb"
MARK: Final = "cell.mark"
#: bytes of a container's mark before they become digits
_MARK_BYTES: Final = 12


def path_of(load: Load, directory: str) -> str:
    """Return the file of the record that is loaded in place of what the plan names."""
    return os.path.join(directory, RAMDISK if load.form is Form.ROOTFS else TREE)


def read_mark(directory: str) -> str:
    """Return what marks init's own words on the console; empty: there is no init of ours (blocks)."""
    try:
        with open(os.path.join(directory, MARK), encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def write(plan: JailhousePlan, directory: str) -> str:
    """Make the files of a Linux cell (blocks).

    :returns: the mark, empty where our init does not run.
    :raises BackendError: they cannot be made, or do not fit where it was planned.
    """
    mark, disk = "", None
    for load in plan.cell.loads:
        if load.form is Form.ROOTFS:
            mark = secrets.token_hex(_MARK_BYTES)
            _write(os.path.join(directory, MARK), f"{mark}\n".encode())
            _write_ramdisk(plan, load, path_of(load, directory), mark)
            disk = (load.address, load.address + os.path.getsize(path_of(load, directory)))
        elif load.form is Form.RAMDISK:
            disk = (load.address, load.address + _size(load.source))
        elif load.form is Form.DTB:
            _write(path_of(load, directory), _tree(plan.cell, load, directory, disk))
    return mark


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as exc:
        raise BackendError(f"cannot load {path}: {exc.strerror}") from exc


def _write_ramdisk(plan: JailhousePlan, load: Load, path: str, mark: str) -> None:
    try:
        with open(plan.initrd, "rb") as file:
            base = file.read()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(initrd.with_conf(base, plan.conf_init + initrd.records(("mark", mark))))
            rootfs.append_archive(out, load.source)
    except OSError as exc:
        raise BackendError(f"cannot make the RAM disk {path}: {exc.strerror}", "free some space below /run") from exc


def _tree(cell: CellPlan, load: Load, directory: str, disk: tuple[int, int] | None) -> bytes:
    # a tree that was made for the board lies in the record already
    source = os.path.join(directory, load.source)
    try:
        return tree.patched(regular.read(source, TREE_MAX), cell, disk)
    except OSError as exc:
        raise BackendError(f"cannot load {load.source}: {exc.strerror}") from exc
    except TreeError as exc:
        raise BackendError(f"cannot load {load.source}: {exc.msg}", exc.hint) from exc
