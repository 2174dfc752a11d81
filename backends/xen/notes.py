# SPDX-License-Identifier: Apache-2.0
"""Whether an image is a PV kernel: the one of Xen's ELF notes that ``backends.guest.elf`` has no use for."""

from __future__ import annotations

import struct
from typing import Final

from runphi_async import regular

#: Owner and types of the notes a 64-bit PV kernel must have. Source: xen/include/public/elfnote.h.
_OWNER: Final = b"Xen\0"
_ENTRY: Final = 1
_VIRT_BASE: Final = 3
_PT_NOTE: Final = 4
#: What is looked at of each note segment.
_MAX: Final = 64 * 1024


def is_pv_kernel(path: str) -> bool:
    """Whether an image that ``elf.inspect`` found sound has the notes of a PV kernel.

    A bzImage hides them in its compressed part; every Debian kernel has them.
    """
    with open(regular.opened(path), "rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF":
            return True
        if len(head) < 64 or head[4] != 2 or head[5] != 1:
            return False
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for number in range(min(count, 512)):
            file.seek(table + number * size)
            entry = file.read(56)
            if len(entry) < 56:
                return False
            kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", entry)
            if kind == _PT_NOTE:
                file.seek(offset)
                if {_ENTRY, _VIRT_BASE} <= _types(file.read(min(length, _MAX))):
                    return True
    return False


def _types(data: bytes) -> set[int]:
    found = set()
    at = 0
    while at + 12 <= len(data):
        name, value, kind = struct.unpack_from("<III", data, at)
        if data[at + 12 : at + 12 + name] == _OWNER:
            found.add(kind)
        at += 12 + (name + 3 & ~3) + (value + 3 & ~3)
    return found
