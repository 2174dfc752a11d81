# SPDX-License-Identifier: Apache-2.0
"""What a plan for a cell wants to know of the image and of this machine: the part of the generator that reads files.

It changes none of them; all of it blocks.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from backends.guest import elf, fdt
from backends.guest import rootfs as archive
from backends.jailhouse import boot
from backends.jailhouse.desk import Facts
from runphi_async import regular
from runphi_async.board import iomem, loading, ranges
from runphi_async.board.claims import Seen, strangers
from runphi_async.errors import ConfigError, PlanError, TreeError
from runphi_async.partition.image import ImageFormat
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.jailhouse.settings import Jailhouse
    from runphi_async.board.board import Board
    from runphi_async.board.claims import Held
    from runphi_async.board.ranges import Range
    from runphi_async.partition.spec import GuestSpec

#: where the driver shows the hypervisor and its cells
SYSFS: Final = "/sys/devices/jailhouse"


def board(config: Jailhouse) -> Board:
    """Return the configured board.

    :raises ConfigError: there is none.
    """
    if not config.board:
        known = ", ".join(loading.shipped())
        raise ConfigError(
            "cannot plan a cell: no board is configured", f"set jailhouse.board to a board file or one of: {known}"
        )
    return loading.load(config.board)


def system_ram(path: str) -> list[Range]:
    """Return what memory the running kernel says it uses."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return iomem.system_ram(file.read())
    except OSError as exc:
        raise PlanError(f"cannot read {path}, which says what memory the root system uses: {exc.strerror}") from exc


def cells(sysfs: str = SYSFS) -> list[Seen]:
    """Return the cells that the hypervisor shows, without the root cell (blocks); none where there is no hypervisor."""
    found: list[Seen] = []
    folder = os.path.join(sysfs, "cells")
    try:
        ids = sorted(os.listdir(folder), key=int)
    except FileNotFoundError:
        return found
    for number in ids:
        if number == "0":
            continue
        try:
            name, cpus = (_line(folder, number, file) for file in ("name", "cpus_assigned_list"))
        except FileNotFoundError:
            continue  # destroyed meanwhile
        found.append(Seen(name, ranges.numbers(cpus)))
    return found


def _line(folder: str, number: str, file: str) -> str:
    with open(os.path.join(folder, number, file), encoding="utf-8", errors="replace") as opened:
        return opened.read().rstrip("\n")


def gather(
    spec: GuestSpec, board: Board, config: Jailhouse, held: Sequence[Held] = (), seen: Sequence[Seen] = ()
) -> Facts:
    """Collect what ``generator.plan`` wants to know (blocks)."""
    inmate = spec.kind is GuestKind.INMATE
    kernel = config.kernel if os.path.exists(config.kernel) else None
    image = boot.image(spec, kernel)
    facts = elf.inspect(image)
    files = [] if inmate else [image, spec.ramdisk, spec.dtb or config.dtb, config.initrd]
    sizes = {path: os.stat(path).st_size for path in files if path is not None and os.path.exists(path)}
    if spec.kind is GuestKind.LINUX:
        sizes[spec.rootfs] = rootfs_size(spec.rootfs, sum(int(part.size) for part in board.memory))
    dtb = config.dtb if config.dtb in sizes else None
    if not inmate and (spec.dtb or dtb):
        check_tree(spec.dtb or config.dtb)
    return Facts(
        board=board,
        image=facts,
        held=(*held, *strangers(held, seen)),
        kernel=kernel,
        dtb=dtb,
        loader=config.loader if os.path.exists(config.loader) else None,
        initrd=config.initrd if config.initrd in sizes else None,
        sizes=sizes,
        text_offset=_text_offset(image) if facts.format is ImageFormat.ARM64_IMAGE else 0,
    )


def check_tree(path: str) -> None:
    """Refuse a device tree that cannot be read before anything is made for it."""
    try:
        fdt.parse(regular.read(path, fdt.MAX))
    except OSError as exc:
        raise PlanError(f"cannot read the device tree {path}: {exc.strerror}") from exc
    except TreeError as exc:
        raise PlanError(f"cannot use {path}: {exc.msg}", exc.hint) from exc


def rootfs_size(rootfs: str, limit: int) -> int:
    """Return what a RAM disk made of a directory takes; looking ends where it exceeds ``limit``."""
    try:
        return archive.archive_size(rootfs, limit)
    except OSError as exc:
        raise PlanError(f"cannot look at the root file system: {exc.filename}: {exc.strerror}") from exc


def _text_offset(kernel: str) -> int:
    """Return what an arm64 kernel's header says at byte 8."""
    with open(regular.opened(kernel), "rb") as file:
        head = file.read(16)
    if len(head) < 16:
        raise PlanError(f"cannot boot {kernel}: its header is cut off")
    return int(struct.unpack_from("<Q", head, 8)[0])
