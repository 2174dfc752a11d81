# SPDX-License-Identifier: Apache-2.0
"""The smallest image of a guest there is: for tests that only read headers."""

from __future__ import annotations

import struct

from backends.guest.elf import PVH_OWNER, PVH_TYPE

#: hlt; jmp to it
CODE = b"\xf4\xeb\xfd"


def pvh_image(load: int = 0x10_0000) -> bytes:
    """A PVH image of one segment, with its note behind the headers."""
    header, program_header, note_at, code_at = 64, 56, 176, 208
    note = struct.pack("<III4sQ", len(PVH_OWNER), 8, PVH_TYPE, PVH_OWNER, load + code_at)
    elf = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, load + code_at, header, 0, 0, header, program_header, 2, 0, 0, 0)
    size = code_at + len(CODE)
    elf += struct.pack("<IIQQQQQQ", 1, 7, 0, load, load, size, size, 0x1000)
    elf += struct.pack("<IIQQQQQQ", 4, 4, note_at, load + note_at, load + note_at, len(note), len(note), 4)
    return (elf + note).ljust(code_at, b"\0") + CODE
