# SPDX-License-Identifier: Apache-2.0
"""Takes kernels out of the images that distributions pack them into: x86 bzImage, arm64 ``Image.gz`` and EFI zboot.

QEMU starts an unpacked kernel at once, where a guest under emulation would unpack it for seconds. Which compression is
used is the distribution's choice and changes with its releases, so all of Linux's are known: what Python's library can
undo is undone by it, the others by the tool that everybody has for them.
"""

from __future__ import annotations

import bz2
import lzma
import shutil
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async.errors import RunphiError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LZ4_MAGIC: Final = bytes.fromhex("02214c18")
#: no kernel is larger; what claims to be is broken or malicious
LIMIT: Final = 512 << 20
#: places in an x86 image: its sectors of setup code, its magic, its payload's offset and length (Linux's x86/boot.rst)
_SECTORS, _HEADER, _PAYLOAD = 0x1F1, 0x202, 0x248
#: place of the magic in an arm64 image (Linux's arm64/booting.rst)
_ARM64: Final = 56
#: an EFI zboot image: magic, offset, size, and the name of its compression (Linux's efi/libstub/zboot-header.S)
_ZBOOT: Final = struct.Struct("<4s4sII8s32s")


class ImageError(RunphiError):
    """Raised when there is no kernel in an image."""


class Compression(NamedTuple):
    """One way of compressing a kernel."""

    name: str
    magic: bytes
    undo: Callable[[bytes], bytes]


# Section: what undoes them


def _by_object(name: str, make: Callable[[], object]) -> Callable[[bytes], bytes]:
    """Return a function around a decompressor object, which does not mind what follows the data."""

    def undo(data: bytes) -> bytes:
        decompressor = make()
        try:
            return decompressor.decompress(data, LIMIT)  # type: ignore[attr-defined, no-any-return]
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as exc:
            raise ImageError(f"its {name} data are broken: {exc}") from None

    return undo


def _by_tool(name: str, package: str, *argv: str) -> Callable[[bytes], bytes]:
    """Return a function around a tool that reads stdin and writes stdout."""

    def undo(data: bytes) -> bytes:
        if shutil.which(argv[0]) is None:
            raise ImageError(f"it is compressed with {name} and {argv[0]} is not installed", f"apt install {package}")
        done = subprocess.run(argv, input=data, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise ImageError(f"its {name} data are broken: {said[-1] if said else f'status {done.returncode}'}")
        return done.stdout

    return undo


def _lz4(data: bytes) -> bytes:
    """Undo LZ4, by its tool where there is one: in Python it takes some seconds."""
    if shutil.which("lz4"):
        return _by_tool("LZ4", "lz4", "lz4", "-d", "-c")(data)
    try:
        return lz4_legacy(data)
    except (IndexError, struct.error):
        raise ImageError("its LZ4 data are broken") from None


def _zstd(data: bytes) -> bytes:
    """Undo Zstandard, which Python's own library knows from 3.14 on."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return _by_tool("Zstandard", "zstd", "zstd", "-d", "-c", "--long=31")(data)
    return _by_object("Zstandard", zstd.ZstdDecompressor)(data)


#: in no order: no magic begins another
COMPRESSIONS: Final = (
    Compression("gzip", b"\x1f\x8b", _by_object("gzip", lambda: zlib.decompressobj(31))),
    Compression("xz", b"\xfd7zXZ\0", _by_object("XZ", lambda: lzma.LZMADecompressor())),
    Compression("lzma", b"\x5d\0\0", _by_object("LZMA", lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE))),
    Compression("bzip2", b"BZh", _by_object("bzip2", lambda: bz2.BZ2Decompressor())),
    Compression("lz4", _LZ4_MAGIC, _lz4),
    Compression("zstd", bytes.fromhex("28b52ffd"), _zstd),
    Compression("lzo", bytes.fromhex("894c5a4f"), _by_tool("LZO", "lzop", "lzop", "-d", "-c")),
)
#: how compressed modules are called
MODULE_SUFFIXES: Final = {".xz": "xz", ".zst": "zstd", ".gz": "gzip"}


def recognise(data: bytes) -> Compression | None:
    """Return how data are compressed, None if they are not."""
    return next((each for each in COMPRESSIONS if data.startswith(each.magic)), None)


# Section: images


def extract_x86(image: bytes) -> bytes:
    """Return the ELF kernel of a bzImage.

    :raises ImageError: there is none in it.
    """
    if image[_HEADER : _HEADER + 4] != b"HdrS":
        raise ImageError("it is no bzImage")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    begin = ((image[_SECTORS] or 4) + 1) * 512 + offset
    payload = image[begin : begin + length]
    compression = recognise(payload)
    if compression is None:
        raise ImageError(f"its kernel is compressed in an unknown way: it begins with {payload[:6].hex() or 'nothing'}")
    # the size is gzip's own last word, and was put behind the data of all others
    data = payload if compression.name == "gzip" else payload[:-4]
    kernel = compression.undo(data)
    if len(kernel) != int.from_bytes(payload[-4:], "little") or not kernel.startswith(b"\x7fELF"):
        raise ImageError("what came out is not the ELF file it should be")
    return kernel


def extract_arm64(image: bytes) -> bytes:
    """Return the flat kernel of an arm64 image, however that is packed.

    :raises ImageError: there is none in it.
    """
    kernel = image
    if len(image) >= _ZBOOT.size:
        mz, zimg, offset, size, _, name = _ZBOOT.unpack_from(image)
        if (mz[:2], zimg) == (b"MZ", b"zimg"):
            kernel = image[offset : offset + size]
            if recognise(kernel) is None:
                raise ImageError(
                    f"its kernel is compressed in an unknown way: {name.rstrip(bytes(1)).decode('ascii', 'replace')}"
                )
    compression = recognise(kernel)
    if compression is not None:
        kernel = compression.undo(kernel)
    if kernel[_ARM64 : _ARM64 + 4] != b"ARM\x64":
        raise ImageError("it is no arm64 image")
    return kernel


def plain_module(path: Path) -> Path:
    """Return the uncompressed file of a module; made beside it where the distribution compresses modules.

    :raises ImageError: it is broken.
    """
    if path.suffix == ".ko":
        return path
    data = path.read_bytes()
    compression = recognise(data)
    if compression is None:
        raise ImageError(f"{path.name} is compressed in an unknown way")
    plain = path.with_suffix("")
    plain.write_bytes(compression.undo(data))
    return plain


# Section: LZ4 without its tool


def _lz4_block(block: bytes, out: bytearray) -> None:
    """Append what an LZ4 block holds to `out`; matches may reach back into it."""
    at, end = 0, len(block)
    while at < end:
        token = block[at]
        at += 1
        length = token >> 4
        if length == 15:
            while True:
                length += block[at]
                at += 1
                if block[at - 1] != 255:
                    break
        out += block[at : at + length]
        at += length
        if at >= end:
            return
        distance = block[at] | block[at + 1] << 8
        at += 2
        length = (token & 15) + 4
        if length == 19:
            while True:
                length += block[at]
                at += 1
                if block[at - 1] != 255:
                    break
        begin = len(out) - distance
        if distance >= length:
            out += out[begin : begin + length]
        else:  # the match overlaps what it writes: a pattern that repeats
            out += (bytes(out[begin:]) * (length // distance + 1))[:length]


def lz4_legacy(data: bytes) -> bytes:
    """Undo the legacy frame format, which the kernel uses: blocks of 8 MiB."""
    out = bytearray()
    at = len(_LZ4_MAGIC)
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if size > len(data) - at:
            break
        block = bytearray()
        _lz4_block(data[at : at + size], block)
        out += block
        at += size
    return bytes(out)
