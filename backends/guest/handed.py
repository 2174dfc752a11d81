# SPDX-License-Identifier: Apache-2.0
"""Files of an image for a program that loads them: copied into the record under names of ours.

An ELF file is written anew, with its loaded segments and its PVH entry and nothing else: what the loader reads is what
`elf` understood. Loaders were written for the files of friends. QEMU's divides by the alignment of a note segment, and
follows lengths in it, before the guest's first instruction; and it takes a file for a bzImage or for multiboot by bytes
that may lie anywhere in its first 8 KiB.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from backends.guest import elf
from runphi_async.errors import BackendError, PlanError
from runphi_async.host import inroot
from runphi_async.partition.image import ImageFormat
from runphi_async.units import human, round_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runphi_async.partition.image import Handed, ImageFacts

#: Bytes copied at once.
_CHUNK: Final = 1 << 20
#: Where program headers begin in a file written anew: nothing in front of them may look like another format.
_TABLE: Final = elf.MULTIBOOT_SEARCH
#: Where a multiboot header is put: behind the ELF header.
_MULTIBOOT: Final = 64
#: How the pieces of such a file lie, and the words of a note.
_ALIGN: Final = 16
_NOTE_ALIGN: Final = 4
#: PF_R. Source: elf.h
_READ: Final = 4


def hand_over(files: Iterable[Handed], directory: str, limit: int) -> None:
    """Copy files of the image into the record (blocks).

    :param limit: the most bytes of one: the guest's memory, as what is loaded must find room there.
    :raises BackendError: one is not any more what it was when the plan was made, or cannot be copied.
    """
    for file in files:
        source = opened(file.source)
        path = os.path.join(directory, file.name)
        try:
            target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                _hand_over(file, source, target, limit)
            finally:
                os.close(target)
        except OSError as exc:
            raise BackendError(f"cannot copy {file.source} to {path}: {exc.strerror}") from exc
        finally:
            os.close(source)


def opened(path: str) -> int:
    """Open a file of the image that was found when the plan was made, to read it.

    :raises BackendError: it cannot be opened, or something else is in its place.
    """
    try:
        return inroot.opened_again(path)
    except OSError as exc:
        raise BackendError(f"cannot use {path} of the image: {exc.strerror}") from exc


def forget(directory: str, names: Iterable[str]) -> None:
    """Give up the copies: the program has loaded them."""
    for name in names:
        try:
            os.unlink(os.path.join(directory, name))
        except FileNotFoundError:
            continue


def _hand_over(file: Handed, source: int, target: int, limit: int) -> None:
    try:
        if file.anew and file.facts is not None and file.facts.format is ImageFormat.ELF:
            _write_anew(file.facts, source, target, limit)
        else:
            _copy(source, target, Part(0, os.fstat(source).st_size, 0), limit)
        # Of the copy, which nobody else can change any more: the source may have changed even while it was copied.
        changed = file.facts is not None and _facts(target, file) != file.facts
    except (PlanError, ValueError, struct.error) as exc:
        raise BackendError(f"cannot use {file.source} of the image: {exc}") from exc
    if changed:
        raise BackendError(f"cannot use {file.source} of the image: it was changed meanwhile")


def _facts(target: int, file: Handed) -> ImageFacts:
    size = os.fstat(target).st_size
    found = elf.parse(_reader(target), size, file.source)
    return msgspec.structs.replace(found, size=file.facts.size) if file.anew and file.facts is not None else found


def _reader(fd: int) -> Callable[[int, int], bytes]:
    return lambda offset, length: os.pread(fd, length, offset)


class Part(NamedTuple):
    """``length`` bytes at ``offset`` of the one file, which lie at ``to`` of the other."""

    offset: int
    length: int
    to: int


def _copy(source: int, target: int, part: Part, limit: int) -> None:
    offset, left, to = part
    if left > limit:
        raise ValueError(f"it has {human(left)}, and there is room for {human(limit)}")
    while left:
        data = os.pread(source, min(_CHUNK, left), offset)
        if not data:
            raise ValueError("it shrank while it was read")
        os.pwrite(target, data, to)
        offset, to, left = offset + len(data), to + len(data), left - len(data)


def _write_anew(facts: ImageFacts, source: int, target: int, limit: int) -> None:
    """Write an ELF file of what was understood of another one."""
    read = _reader(source)
    found = elf.program(read(0, elf.MULTIBOOT_SEARCH), read, os.fstat(source).st_size)
    note = _pvh_note(found)
    count = len(found.pieces) + bool(note)
    note_at = _TABLE + count * _entry_size(found)
    at = _aligned(note_at + len(note))
    table = []
    for piece in found.pieces:
        _copy(source, target, Part(piece.offset, piece.filled, at), limit)
        limit -= piece.filled  # of all together: pieces that lie upon one another could come to any size
        table.append(_entry(found, elf.PT_LOAD, piece._replace(offset=at)))
        at = _aligned(at + piece.filled)
    if note:
        table.append(_entry(found, elf.PT_NOTE, elf.Piece(0, len(note), note_at, len(note), 0, _READ)))
    head = bytearray(_header(found, count).ljust(_TABLE, b"\0"))
    if facts.multiboot:
        head[_MULTIBOOT : _MULTIBOOT + len(elf.MULTIBOOT_HEADER)] = elf.MULTIBOOT_HEADER
    os.pwrite(target, bytes(head) + b"".join(table) + note, 0)
    # zeros behind the last piece, where it is shorter than its alignment
    os.ftruncate(target, at)


def _aligned(at: int) -> int:
    return round_up(at, _ALIGN)


def _entry_size(found: elf.Program) -> int:
    return 56 if found.bits == 64 else 32


def _header(found: elf.Program, count: int) -> bytes:
    ident = b"\x7fELF" + bytes((found.bits // 32, 1 if found.order == "<" else 2, 1)) + bytes(9)
    word, size = ("Q", 64) if found.bits == 64 else ("I", 52)
    fields = (
        found.kind,
        found.machine,
        1,
        found.entry,
        _TABLE,
        0,
        found.flags,
        size,
        _entry_size(found),
        count,
        0,
        0,
        0,
    )
    return ident + struct.pack(f"{found.order}HHI{word}{word}{word}IHHHHHH", *fields)


def _entry(found: elf.Program, kind: int, piece: elf.Piece) -> bytes:
    start, length, offset, filled, virtual, flags = piece
    align = _NOTE_ALIGN if kind == elf.PT_NOTE else 1
    if found.bits == 64:
        return struct.pack(found.order + "IIQQQQQQ", kind, flags, offset, virtual, start, filled, length, align)
    return struct.pack(found.order + "IIIIIIII", kind, offset, virtual, start, filled, length, flags, align)


def _pvh_note(found: elf.Program) -> bytes:
    """Return a note segment with the PVH entry alone; QEMU reads a whole word of the file's class there."""
    if found.pvh is None:
        return b""
    value = found.pvh.to_bytes(found.bits // 8, "little" if found.order == "<" else "big")
    return struct.pack(found.order + "III", len(elf.PVH_OWNER), len(value), elf.PVH_TYPE) + elf.PVH_OWNER + value
