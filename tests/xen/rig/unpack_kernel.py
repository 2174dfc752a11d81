# SPDX-License-Identifier: Apache-2.0
"""Takes the ELF kernel out of an x86 bzImage: ``unpack_kernel.py VMLINUZ VMLINUX``. Called by build.sh."""

from __future__ import annotations

import lzma
import struct
import sys
import zlib
from pathlib import Path

SETUP_SECTORS = 0x1F1
PAYLOAD = 0x248


def unpack(image: bytes) -> bytes:
    """Return what the boot protocol calls the payload, decompressed. Source: Linux's x86/boot.rst."""
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = ((image[SETUP_SECTORS] or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(payload)
    sys.exit(f"unpack_kernel: cannot decompress a payload that begins with {payload[:6].hex()}")


if __name__ == "__main__":
    kernel = unpack(Path(sys.argv[1]).read_bytes())
    if not kernel.startswith(b"\x7fELF"):
        sys.exit("unpack_kernel: what came out is no ELF image")
    Path(sys.argv[2]).write_bytes(kernel)
