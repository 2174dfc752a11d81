# SPDX-License-Identifier: Apache-2.0
"""What is loaded into a cell: files and texts for ``jailhouse cell load``.

The tool copies a file as it is to one address. An ELF file is therefore laid out first: its segments, from the lowest
address on, become one flat file in the record; RAM disk and device tree of a Linux cell lie there too. Everything is
looked at before the tool is called: a load that fails has stopped the cell already.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

from backends.guest import elf, handed
from backends.jailhouse import linuxfiles
from backends.jailhouse.plan import Form
from backends.jailhouse.tool import Image
from runphi_async.errors import BackendError
from runphi_async.partition.image import Handed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.jailhouse.plan import Load

#: largest flat file made of an ELF file whose room nobody bounds
FLAT_MAX: Final = 1 << 30
CHUNK: Final = 1 << 20


def images(loads: Sequence[Load], directory: str) -> list[Image]:
    """Return what to load, ready for the tool; writes flat files into ``directory`` (blocks).

    Images for remote processors are left to ``firmware.link``.

    :raises BackendError: something is not as it was when it was planned.
    """
    made = []
    for number, load in enumerate(loads):
        if load.form is Form.RPU:
            continue
        if load.form is Form.TEXT:
            made.append(Image(load.address, text=load.source))
            continue
        path = load.source
        if load.form is Form.ELF:
            path = os.path.join(directory, f"image-{number}.bin")
            _flatten(load, path)
        elif load.form in (Form.DTB, Form.ROOTFS):
            path = linuxfiles.path_of(load, directory)
        elif not load.ours:
            path = os.path.join(directory, f"image-{number}.bin")
            copy(load.source, path, load.size or FLAT_MAX)
        _check_size(load, path)
        made.append(Image(load.address, path))
    return made


def copy(source: str, path: str, limit: int) -> None:
    """Copy a file of the image to a name of ours: the tool, or the kernel, opens it when a guest may have changed it.

    :raises BackendError: it cannot be copied.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of an earlier life of this cell
    handed.hand_over([Handed(os.path.basename(path), source)], os.path.dirname(path), limit)


def _check_size(load: Load, path: str) -> None:
    try:
        status = os.stat(path)
    except OSError as exc:
        raise BackendError(f"cannot load {load.source}: {exc.strerror}") from exc
    if not stat.S_ISREG(status.st_mode):
        raise BackendError(f"cannot load {load.source}: it is no regular file")
    if status.st_size == 0:
        raise BackendError(f"cannot load {load.source}: it is empty")
    if load.size and status.st_size > load.size:
        raise BackendError(
            f"cannot load {load.source}: it has {status.st_size} bytes, and there is room for {load.size} at "
            f"{load.address:#x}",
            "raise the container's memory limit",
        )


def _flatten(load: Load, path: str) -> None:
    """Lay an ELF file out as it lies in memory, its zeros included.

    Memory is not cleared between two cells: a guest that trusts its .bss would find the last one's bytes there.
    """
    try:
        source = handed.opened(load.source)
        try:
            status = os.fstat(source)
            flat = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                for piece in elf.pieces(lambda at, length: os.pread(source, length, at), status.st_size, load.source):
                    _place(load, piece, source, flat)
            finally:
                os.close(flat)
        finally:
            os.close(source)
    except OSError as exc:
        raise BackendError(f"cannot load {load.source}: {exc.strerror}") from exc


def _place(load: Load, piece: elf.Piece, source: int, flat: int) -> None:
    start = piece.start - load.address
    end = start + piece.length
    if start < 0 or end > (load.size or FLAT_MAX):
        raise BackendError(
            f"cannot load {load.source}: its segment at {piece.start:#x} lies outside the cell's memory from "
            f"{load.address:#x} on",
            "link it for the cell's memory, or raise the container's memory limit",
        )
    os.ftruncate(flat, max(end, os.fstat(flat).st_size))
    done = 0
    while done < piece.filled:
        data = os.pread(source, min(CHUNK, piece.filled - done), piece.offset + done)
        if not data:
            raise BackendError(f"cannot load {load.source}: it shrank while it was read")
        os.pwrite(flat, data, start + done)
        done += len(data)
