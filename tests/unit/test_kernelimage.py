# SPDX-License-Identifier: Apache-2.0
"""Kernels come out of the images distributions pack them into, whatever they are compressed with."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from backends.guest import kernelimage
from backends.guest.kernelimage import ImageError, extract_arm64, extract_x86, lz4_legacy, plain_module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: an ELF file as kernels are: some of it repeats, some does not
KERNEL: Final = b"\x7fELF" + b"runPHI " * 5000 + os.urandom(3000) + bytes(20000)
ARM64: Final = bytes(56) + b"ARM\x64" + bytes(4) + KERNEL
#: Linux compresses x86 kernels with a filter that Python's library must know, too
XZ: Final[list[dict[str, int]]] = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]


def tool(*argv: str) -> Callable[[bytes], bytes]:
    """A compressor of which Python's library has none."""

    def compress(data: bytes) -> bytes:
        if shutil.which(argv[0]) is None:
            pytest.skip(f"{argv[0]} is not installed")
        return subprocess.run(argv, input=data, capture_output=True, check=True).stdout

    return compress


COMPRESSORS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32, filters=XZ),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "lz4": tool("lz4", "-l", "-c"),
    "zstd": tool("zstd", "-19", "-c"),
}


def bzimage(payload: bytes, sectors: int = 4) -> bytes:
    """An image as the boot protocol has it: setup code, some code before the payload, some behind it."""
    setup = bytearray((sectors + 1) * 512)
    setup[0x1F1] = sectors
    setup[0x202:0x206] = b"HdrS"
    before = os.urandom(333)
    struct.pack_into("<II", setup, 0x248, len(before), len(payload))
    return bytes(setup) + before + payload + os.urandom(777)


def packed(name: str, kernel: bytes = KERNEL) -> bytes:
    """A payload as Linux's Makefile makes it: all but gzip get the size put behind the data."""
    data = COMPRESSORS[name](kernel)
    return data if name == "gzip" else data + struct.pack("<I", len(kernel))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_compression_of_linux(name: str) -> None:
    assert extract_x86(bzimage(packed(name))) == KERNEL


def test_the_table_is_complete() -> None:
    # LZO has a tool nobody here has; its magic must still be told from the others'
    assert {each.name for each in kernelimage.COMPRESSIONS} == {*COMPRESSORS, "lzo"}
    magics = [each.magic for each in kernelimage.COMPRESSIONS]
    assert not [one for one in magics for other in magics if one is not other and one.startswith(other)]


def test_lz4_without_its_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    data = COMPRESSORS["lz4"](KERNEL)
    assert lz4_legacy(data) == KERNEL
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert extract_x86(bzimage(data + struct.pack("<I", len(KERNEL)))) == KERNEL
    with pytest.raises(ImageError, match="LZ4 data are broken"):
        extract_x86(bzimage(data[:-900] + b"\xff" * 900 + bytes(4)))


@pytest.mark.parametrize(("magic", "package"), [("894c5a4f", "lzop"), ("28b52ffd", "zstd")])
def test_a_tool_that_is_missing_is_named(magic: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if package == "zstd" and shutil.which("python3.14"):
        pytest.skip("Python's library knows zstd")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ImageError) as caught:
        extract_x86(bzimage(bytes.fromhex(magic) + bytes(100)))
    assert caught.value.hint == f"apt install {package}"


@pytest.mark.parametrize("name", COMPRESSORS)
def test_broken_data_are_told(name: str) -> None:
    payload = bytearray(packed(name))
    payload[20:-20] = os.urandom(len(payload) - 40)
    with pytest.raises(ImageError, match=r"broken|not the ELF"):
        extract_x86(bzimage(bytes(payload)))


def test_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(ImageError, match="no bzImage"):
        extract_x86(KERNEL)
    with pytest.raises(ImageError, match="no bzImage"):
        extract_x86(b"")
    with pytest.raises(ImageError, match="unknown way: it begins with 7f454c46"):
        extract_x86(bzimage(KERNEL))
    with pytest.raises(ImageError, match="not the ELF file"):
        extract_x86(bzimage(packed("xz", b"not a kernel")))
    with pytest.raises(ImageError, match="not the ELF file"):
        extract_x86(bzimage(COMPRESSORS["xz"](KERNEL) + bytes(4)))


# Section: arm64


@pytest.mark.parametrize("name", COMPRESSORS)
def test_arm64_images_however_packed(name: str) -> None:
    data = COMPRESSORS[name](ARM64)
    assert extract_arm64(data) == ARM64
    head = struct.pack("<4s4sII8s32s", b"MZ\0\0", b"zimg", 128, len(data), bytes(8), b"zstd22")
    assert extract_arm64(head.ljust(128, b"\0") + data + bytes(50)) == ARM64


def test_arm64_image_as_it_is() -> None:
    assert extract_arm64(ARM64) == ARM64
    with pytest.raises(ImageError, match="no arm64 image"):
        extract_arm64(KERNEL)
    with pytest.raises(ImageError, match="unknown way: zstd22"):
        extract_arm64(struct.pack("<4s4sII8s32s", b"MZ\0\0", b"zimg", 128, 9, bytes(8), b"zstd22") + bytes(200))


# Section: modules


@pytest.mark.parametrize(("suffix", "name"), kernelimage.MODULE_SUFFIXES.items())
def test_modules_are_unpacked_beside_themselves(suffix: str, name: str, tmp_path: Path) -> None:
    packed_module = tmp_path / f"virtio_pci.ko{suffix}"
    packed_module.write_bytes(COMPRESSORS[name](KERNEL))
    plain = plain_module(packed_module)
    assert (plain.name, plain.read_bytes()) == ("virtio_pci.ko", KERNEL)
    assert plain_module(plain) == plain
    packed_module.write_bytes(b"what is that")
    with pytest.raises(ImageError, match="unknown way"):
        plain_module(packed_module)
