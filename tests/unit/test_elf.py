# SPDX-License-Identifier: Apache-2.0
"""Image headers: good ones are understood, bad ones are refused and never crash the reader."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.guest import elf
from runphi_async.errors import PlanError
from runphi_async.partition.image import ImageFacts, ImageFormat, Segment
from tests.unit.imagekit import pvh_image

if TYPE_CHECKING:
    from pathlib import Path

PVH = pvh_image()
MULTIBOOT = struct.pack("<III", 0x1BADB002, 0x3, -(0x1BADB002 + 3) & 0xFFFFFFFF)


def parse(data: bytes) -> ImageFacts:
    return elf.parse(lambda offset, length: data[offset : offset + length], len(data), "x.elf")


def elf32(machine: int = 3, order: str = "<", body: bytes = b"", **fields: int) -> bytes:
    offset = fields.get("offset", 84)
    filled = fields.get("filled", len(body))
    length = fields.get("length", filled or 16)
    ident = b"\x7fELF\x01" + (b"\x01" if order == "<" else b"\x02") + b"\x01" + bytes(9)
    header = struct.pack(
        order + "HHIIIIIHHHHHH",
        fields.get("type", 2),
        machine,
        1,
        0x100000,
        52,
        0,
        0,
        52,
        32,
        fields.get("count", 1),
        0,
        0,
        0,
    )
    segment = struct.pack(order + "IIIIIIII", 1, offset, 0xC0100000, 0x100000, filled, length, 7, 4)
    return ident + header + segment + body


def test_pvh_image() -> None:
    facts = parse(PVH)
    assert (facts.format, facts.arch, facts.bits) == (ImageFormat.ELF, "x86_64", 64)
    assert facts.pvh_entry == facts.entry == 0x1000D0
    assert facts.segments == (Segment(0x100000, 0x100000 + len(PVH)),)
    assert not facts.multiboot


def test_32_bit_image_lies_at_its_physical_address() -> None:
    facts = parse(elf32(body=MULTIBOOT, length=0x2000))
    assert (facts.arch, facts.bits, facts.multiboot) == ("x86_64", 32, True)
    assert facts.segments == (Segment(0x100000, 0x102000),)


def test_big_endian_and_unknown_machines_are_named() -> None:
    assert parse(elf32(20, ">")).arch == "ppc"
    assert parse(elf32(999)).arch == "ELF machine 999"


@pytest.mark.parametrize(
    ("data", "format_", "arch"),
    [
        (bytes(0x202) + b"HdrS" + bytes(100), ImageFormat.BZIMAGE, "x86_64"),
        (bytes(56) + b"ARM\x64" + bytes(100), ImageFormat.ARM64_IMAGE, "aarch64"),
        (b"\x1f\x8b\x08" + bytes(10), ImageFormat.GZIP, None),
        (b"\x00", ImageFormat.FLAT, None),
        (bytes(64) + MULTIBOOT, ImageFormat.FLAT, "x86_64"),
        (bytes(62) + MULTIBOOT, ImageFormat.FLAT, None),  # not on a 4-byte boundary
        (bytes(8192) + MULTIBOOT, ImageFormat.FLAT, None),  # too far in
        (MULTIBOOT[:8] + bytes(4), ImageFormat.FLAT, None),  # checksum
    ],
)
def test_other_formats(data: bytes, format_: ImageFormat, arch: str | None) -> None:
    facts = parse(data)
    assert (facts.format, facts.arch) == (format_, arch)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the file is empty"),
        (b"\x7fELF", "broken ELF image: the header is cut off"),
        (PVH[:60], "the header is cut off"),
        (PVH[:100], "points behind the end"),
        (PVH[:180], "cut off|points behind"),
        (b"\x7fELF\x03" + PVH[5:], "unknown class"),
        (elf32(type=1), "type 1 is no executable"),
        (elf32(count=0), "nothing to load"),
        (elf32(count=60000), "60000 program headers"),
        (elf32(body=b"abc", filled=3, length=2), "holds more than its size"),
        (elf32(filled=4096, length=4096), "is cut off"),
        (elf32(offset=0xFFFFFFFF, filled=4, length=4), "is cut off"),
    ],
)
def test_broken_images_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(PlanError, match=text) as caught:
        parse(data)
    assert "x.elf" in str(caught.value)


def _parses_or_refuses(data: bytes) -> None:
    facts, message = None, ""
    try:
        facts = parse(data)
    except PlanError as exc:
        message = str(exc)
    if facts is None:
        assert message.startswith("cannot boot x.elf: ")
    else:
        assert all(0 <= segment.start < segment.end <= 1 << 64 for segment in facts.segments)


@given(st.binary(max_size=300))
@example(b"\x7fELF" + b"\xff" * 200)
def test_garbage(data: bytes) -> None:
    _parses_or_refuses(data)
    _parses_or_refuses(b"\x7fELF" + data)


@given(
    st.sampled_from([PVH, elf32(body=MULTIBOOT)]),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=6),
    st.integers(0, 260),
)
def test_damaged_images(image: bytes, changes: list[tuple[int, int]], end: int) -> None:
    data = bytearray(image)
    for at, byte in changes:
        data[at % len(data)] = byte
    _parses_or_refuses(bytes(data))
    _parses_or_refuses(bytes(data[:end]))


def test_a_file_that_shrinks_meanwhile() -> None:
    with pytest.raises(PlanError, match="shrank"):
        elf.parse(lambda offset, length: PVH[offset : offset + length] if offset == 0 else b"", len(PVH), "x.elf")


def test_inspect_reads_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.elf").write_bytes(PVH)
    assert elf.inspect(str(tmp_path / "a.elf")) == parse(PVH)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PlanError, match="not a regular file"):
        elf.inspect(str(tmp_path / "fifo"))
    with pytest.raises(PlanError, match="cannot read image"):
        elf.inspect(str(tmp_path / "absent"))
