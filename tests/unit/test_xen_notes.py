# SPDX-License-Identifier: Apache-2.0
"""Which kernels have the notes that Xen wants of a PV guest."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from backends.xen import notes
from tests.unit.imagekit import pvh_image

if TYPE_CHECKING:
    from pathlib import Path


def note(kind: int, value: bytes) -> bytes:
    return struct.pack("<III4s", 4, len(value), kind, b"Xen\0") + value + b"\0" * (-len(value) % 4)


@pytest.mark.parametrize(
    ("held", "pv"),
    [
        (note(1, bytes(8)) + note(3, bytes(8)), True),
        (note(5, b"xen-3.0\0") + note(3, bytes(8)) + note(1, bytes(8)), True),
        (note(1, bytes(8)), False),
        (note(18, bytes(4)), False),
        (note(1, bytes(8))[:-4] + b"\xff\xff\xff\xff" * 3, False),
        (b"", False),
    ],
)
def test_pv_notes(tmp_path: Path, held: bytes, pv: bool) -> None:
    image = bytearray(pvh_image())
    offset = len(image)
    # the second program header is the note segment
    struct.pack_into("<IIQQQQQQ", image, 64 + 56, 4, 4, offset, 0, 0, len(held), len(held), 4)
    path = tmp_path / "image"
    path.write_bytes(bytes(image) + held)
    assert notes.is_pv_kernel(str(path)) is pv


def test_what_is_no_elf_may_hide_them(tmp_path: Path) -> None:
    path = tmp_path / "bzimage"
    path.write_bytes(bytes(600))
    assert notes.is_pv_kernel(str(path))
    path.write_bytes(b"\x7fELF\x01\x01" + bytes(600))
    assert not notes.is_pv_kernel(str(path))
