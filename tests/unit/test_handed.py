# SPDX-License-Identifier: Apache-2.0
"""Files of an image as a loader gets them: what was understood of them and no more, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backends.guest import elf, handed
from runphi_async.errors import BackendError, PlanError
from runphi_async.partition.image import Handed, ImageFacts, ImageFormat
from tests.unit.imagekit import pvh_image

if TYPE_CHECKING:
    from pathlib import Path

PVH = pvh_image()
ROOM = 1 << 20
#: 32 bit, with a multiboot header in its one segment
MULTIBOOT = (
    b"\x7fELF\1\1\1".ljust(16, b"\0")
    + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x100054, 52, 0, 7, 52, 32, 1, 40, 3, 2)
    + struct.pack("<IIIIIIII", 1, 0, 0xC0100000, 0x100000, 120, 4096, 7, 4096)
    + elf.MULTIBOOT_HEADER
).ljust(120, b"\x90")


def parse(data: bytes) -> ImageFacts:
    return elf.parse(lambda offset, length: data[offset : offset + length], len(data), "x")


def memory(data: bytes) -> dict[int, bytes]:
    """Return what of an ELF file is loaded, by address."""
    pieces = elf.pieces(lambda at, length: data[at : at + length], len(data), "x")
    return {piece.start: data[piece.offset : piece.offset + piece.filled] for piece in pieces}


def hand(directory: Path, data: bytes, limit: int = ROOM, **more: Any) -> bytes:
    source = directory / "source"
    source.write_bytes(data)
    (directory / "image").unlink(missing_ok=True)
    file = Handed("image", os.path.realpath(source), parse(data), **{"anew": True, **more})
    handed.hand_over([file], str(directory), limit)
    return (directory / "image").read_bytes()


@pytest.mark.parametrize("data", [PVH, MULTIBOOT], ids=["pvh", "multiboot"])
def test_an_elf_file_is_written_anew(tmp_path: Path, data: bytes) -> None:
    made = hand(tmp_path, data)
    assert msgspec.structs.replace(parse(made), size=len(data)) == parse(data)
    assert memory(made) == memory(data)
    assert (tmp_path / "image").stat().st_mode & 0o777 == 0o600
    bits = 32 * made[4]
    sections = struct.unpack_from("<HHH", made, 58 if bits == 64 else 46)
    assert sections == (0, 0, 0)


def test_nothing_in_front_of_the_headers_is_another_format(tmp_path: Path) -> None:
    """QEMU looks for bzImage and multiboot before ELF, anywhere in the first 8 KiB."""
    data = bytearray(PVH.ljust(0x300, b"\0"))
    data[0x202:0x206] = b"HdrS"
    made = hand(tmp_path, bytes(data))
    assert made[0x202:0x206] == bytes(4)
    assert made[112 : elf.MULTIBOOT_SEARCH] == bytes(elf.MULTIBOOT_SEARCH - 112)


def test_an_entry_that_would_make_it_multiboot_is_refused(tmp_path: Path) -> None:
    data = bytearray(PVH)
    magic = elf.MULTIBOOT_MAGIC
    struct.pack_into("<II", data, 24, magic, -(magic + elf.MULTIBOOT_SEARCH) & 0xFFFFFFFF)
    with pytest.raises(BackendError, match="changed meanwhile"):
        hand(tmp_path, bytes(data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None)
@given(
    base=st.sampled_from([PVH, MULTIBOOT]),
    changes=st.lists(
        st.tuples(st.integers(0, 239), st.sampled_from([0, 1, 4, 127, 128, 255]) | st.integers(0, 255)), max_size=8
    ),
    cut=st.integers(0, 300),
)
@example(base=PVH, changes=[(168, 0)], cut=0)  # the alignment of the note segment: QEMU divides by it
@example(base=PVH, changes=[(179, 255)], cut=0)  # the length of the note's owner
def test_whatever_the_image(tmp_path: Path, base: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(base)
    for at, value in changes:
        data[at % len(data)] = value
    image = bytes(data[: len(data) - cut]) or b"x"
    with contextlib.suppress(PlanError, BackendError):
        made = hand(tmp_path, image)
        if parse(image).format is not ImageFormat.ELF:
            assert made == image
            return
        assert memory(made) == memory(image)
        table, note = elf.MULTIBOOT_SEARCH, parse(image).pvh_entry
        if note is not None and made[4] == 2:
            count = struct.unpack_from("<H", made, 56)[0]
            assert struct.unpack_from("<Q", made, table + (count - 1) * 56 + 48) == (4,)


def test_pieces_without_an_end_find_no_room(tmp_path: Path) -> None:
    """The same part of the file a hundred times: each fits into memory, all together would fill the host's."""
    piece = struct.pack("<IIIIIIII", 1, 0, 0, 0x100000, 40000, 40000, 7, 1)
    head = b"\x7fELF\1\1\1".ljust(16, b"\0") + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 52, 0, 0, 52, 32, 100, 0, 0, 0)
    with pytest.raises(BackendError, match="there is room for"):
        hand(tmp_path, (head + piece * 100).ljust(40000, b"\0"))
    assert (tmp_path / "image").stat().st_size < 2 * ROOM


def test_other_files_are_copied(tmp_path: Path) -> None:
    assert hand(tmp_path, b"flat" * 1000) == b"flat" * 1000
    with pytest.raises(BackendError, match="there is room for 100 bytes"):
        hand(tmp_path, b"flat" * 1000, limit=100)


@pytest.mark.parametrize("swap", ["link", "fifo", "other", "gone", "directory"])
def test_what_was_put_there_meanwhile_is_not_used(tmp_path: Path, swap: str) -> None:
    """A guest that shares the image changes it between the plan and its use."""
    (tmp_path / "boot").mkdir()
    source = tmp_path / "boot" / "image"
    source.write_bytes(PVH)
    file = Handed("image", os.path.realpath(source), parse(PVH), anew=True)
    secret = tmp_path / "secret"
    secret.write_bytes(PVH)
    source.unlink()
    if swap == "link":
        source.symlink_to(secret)
    elif swap == "fifo":
        os.mkfifo(source)
    elif swap == "other":
        source.write_bytes(MULTIBOOT)
    elif swap == "directory":
        (tmp_path / "boot").rmdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "image").write_bytes(PVH)
        (tmp_path / "boot").symlink_to("elsewhere")
    with pytest.raises(BackendError, match="cannot use"):
        handed.hand_over([file], str(tmp_path), ROOM)


def test_the_copies_are_given_up(tmp_path: Path) -> None:
    hand(tmp_path, PVH)
    handed.forget(str(tmp_path), ("image", "ramdisk"))
    assert not (tmp_path / "image").exists()
