# SPDX-License-Identifier: Apache-2.0
"""What an image's header says: enough of ELF, multiboot and Linux boot headers to plan a machine for it.

:func:`inspect` reads a file before a plan is made; :func:`parse` is the part without I/O. Images come from
strangers: every offset is checked against the file's size and every count is bounded, so a bad image is a
:class:`PlanError`, never a crash."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async import regular
from runphi_async.errors import PlanError
from runphi_async.partition.image import ImageFacts, ImageFormat, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    #: read(offset, length) -> the bytes there, fewer at the end of the file
    Read = Callable[[int, int], bytes]

#: a 32-bit x86 image runs on the 64-bit machine: multiboot and PVH both enter in 32-bit mode
MACHINES: Final = {
    3: "x86_64",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv",
}
PT_LOAD: Final = 1
PT_NOTE: Final = 4
#: owner "Xen", type XEN_ELFNOTE_PHYS32_ENTRY: where a PVH loader jumps to in 32-bit mode
PVH_OWNER: Final = b"Xen\0"
PVH_TYPE: Final = 18
MULTIBOOT_MAGIC: Final = 0x1BADB002
#: magic, flags (modules aligned, memory told) and their checksum
MULTIBOOT_HEADER: Final = struct.pack("<III", MULTIBOOT_MAGIC, 3, -(MULTIBOOT_MAGIC + 3) & 0xFFFFFFFF)
#: multiboot 1 promises its header lies this near to the start
MULTIBOOT_SEARCH: Final = 8192
MAX_NOTE: Final = 64 * 1024
MAX_HEADERS: Final = 512


class Piece(NamedTuple):
    """A part of an ELF file that is loaded: ``filled`` bytes at ``offset`` of the file, zeros up to ``length``."""

    start: int
    length: int
    offset: int
    filled: int
    #: its virtual address and its permissions: a loader finds by them what an entry's virtual address means
    virtual: int
    flags: int


class Program(NamedTuple):
    """What an ELF file's headers say."""

    kind: int
    machine: int
    flags: int
    bits: int
    order: str
    entry: int
    pieces: tuple[Piece, ...]
    pvh: int | None


def inspect(path: str) -> ImageFacts:
    """Read the facts of an image file.

    :raises PlanError: when it cannot be read or its header makes no sense.
    """
    try:
        fd = regular.opened(path)
    except OSError as exc:
        raise PlanError(f"cannot read image {path}: {exc.strerror}") from exc
    try:
        return parse(lambda offset, length: os.pread(fd, length, offset), os.fstat(fd).st_size, path)
    except OSError as exc:
        raise PlanError(f"cannot read image {path}: {exc.strerror}") from exc
    finally:
        os.close(fd)


def parse(read: Read, size: int, name: str) -> ImageFacts:
    """Find out what an image is.

    :param name: what messages call the image.
    """
    if size == 0:
        raise PlanError(f"cannot boot {name}: the file is empty")
    head = read(0, MULTIBOOT_SEARCH)
    multiboot = _multiboot(head)
    if head[:4] == b"\x7fELF":
        try:
            return _elf(head, read, size, multiboot)
        except (ValueError, struct.error) as exc:
            raise PlanError(f"cannot boot {name}: broken ELF image: {exc}") from None
    if head[0x202:0x206] == b"HdrS":
        return ImageFacts(ImageFormat.BZIMAGE, size, "x86_64")
    if head[56:60] == b"ARM\x64":
        return ImageFacts(ImageFormat.ARM64_IMAGE, size, "aarch64")
    if head[:2] == b"\x1f\x8b":
        return ImageFacts(ImageFormat.GZIP, size)
    return ImageFacts(ImageFormat.FLAT, size, "x86_64" if multiboot else None, multiboot=multiboot)


def _multiboot(head: bytes) -> bool:
    """Look for magic, flags and checksum that add up to zero, on a 4-byte boundary."""
    words = struct.unpack_from(f"<{len(head) // 4}I", head)
    return any(
        word == MULTIBOOT_MAGIC and sum(words[at : at + 3]) & 0xFFFFFFFF == 0 for at, word in enumerate(words[:-2])
    )


def pieces(read: Read, size: int, name: str) -> tuple[Piece, ...]:
    """Return what of an ELF file is loaded, for those who load it themselves.

    :raises PlanError: it is none, or broken.
    """
    try:
        head = read(0, MULTIBOOT_SEARCH)
        if head[:4] != b"\x7fELF":
            raise ValueError("it is none any more")
        return program(head, read, size).pieces
    except (ValueError, struct.error) as exc:
        raise PlanError(f"cannot load {name}: broken ELF image: {exc}") from None


def _elf(head: bytes, read: Read, size: int, multiboot: bool) -> ImageFacts:
    found = program(head, read, size)
    return ImageFacts(
        format=ImageFormat.ELF,
        size=size,
        arch=MACHINES.get(found.machine, f"ELF machine {found.machine}"),
        bits=found.bits,
        entry=found.entry,
        segments=tuple(Segment(piece.start, piece.start + piece.length) for piece in found.pieces),
        pvh_entry=found.pvh,
        multiboot=multiboot,
    )


def program(head: bytes, read: Read, size: int) -> Program:
    """Read an ELF file's headers.

    :param head: the first bytes of the file.
    :raises ValueError: they make no sense; `struct.error` means the same.
    """
    if len(head) < 52:
        raise ValueError("the header is cut off")
    if head[4] not in (1, 2) or head[5] not in (1, 2):
        raise ValueError("unknown class or byte order")
    bits = 32 * head[4]
    order = "<" if head[5] == 1 else ">"
    if bits == 64 and len(head) < 64:
        raise ValueError("the header is cut off")
    file_kind, machine = struct.unpack_from(order + "HH", head, 16)
    if file_kind not in (2, 3):
        raise ValueError(f"type {file_kind} is no executable")
    word = "Q" if bits == 64 else "I"
    entry, table = struct.unpack_from(f"{order}{word}{word}", head, 24)
    (flags,) = struct.unpack_from(order + "I", head, 48 if bits == 64 else 36)
    entry_size, count = struct.unpack_from(order + "HH", head, 54 if bits == 64 else 42)
    if count == 0:
        raise ValueError("there is nothing to load")
    if count > MAX_HEADERS or entry_size < (56 if bits == 64 else 32):
        raise ValueError(f"{count} program headers of {entry_size} bytes")
    pieces: list[Piece] = []
    pvh: int | None = None
    for at in range(table, table + count * entry_size, entry_size):
        kind, piece = _program_header(_exact(read, at, entry_size, size), order, bits)
        start, length, offset, filled = piece[:4]
        if kind == PT_LOAD and length:
            if filled > length:
                raise ValueError(f"segment at {start:#x} holds more than its size")
            if offset + filled > size:
                raise ValueError(f"segment at {start:#x} is cut off")
            if start + length >= 1 << 64:
                raise ValueError(f"segment at {start:#x} wraps around")
            pieces.append(piece)
        elif kind == PT_NOTE and pvh is None:
            pvh = _pvh_entry(_exact(read, offset, min(filled, MAX_NOTE), size), order)
    if not pieces:
        raise ValueError("there is nothing to load")
    return Program(file_kind, machine, flags, bits, order, entry, tuple(pieces), pvh)


def _program_header(data: bytes, order: str, bits: int) -> tuple[int, Piece]:
    """Return an entry's type, and what it says of a part of the file."""
    if bits == 64:
        kind, flags, offset, virtual, start, filled, length = struct.unpack_from(order + "IIQQQQQ", data)
    else:
        kind, offset, virtual, start, filled, length, flags = struct.unpack_from(order + "IIIIIII", data)
    return kind, Piece(start, length, offset, filled, virtual, flags)


def _pvh_entry(notes: bytes, order: str) -> int | None:
    for kind, owner, value in _notes(notes, order):
        if kind == PVH_TYPE and owner == PVH_OWNER and len(value) in (4, 8):
            return int.from_bytes(value, "little" if order == "<" else "big")
    return None


def _notes(data: bytes, order: str) -> Iterator[tuple[int, bytes, bytes]]:
    at = 0
    while at + 12 <= len(data):
        name_size, value_size, kind = struct.unpack_from(order + "III", data, at)
        name_at = at + 12
        value_at = name_at + (name_size + 3 & ~3)
        at = value_at + (value_size + 3 & ~3)
        if value_at + value_size > len(data):
            return
        yield kind, data[name_at : name_at + name_size], data[value_at : value_at + value_size]


def _exact(read: Read, offset: int, length: int, size: int) -> bytes:
    if offset + length > size:
        raise ValueError("a header points behind the end of the file")
    data = read(offset, length)
    if len(data) != length:
        raise ValueError("the file shrank while it was read")
    return data
