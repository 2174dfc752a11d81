# SPDX-License-Identifier: Apache-2.0
"""What client and supervisor say of a console that is shown. Loaded by the thin client only when one is."""


def pack_offset(offset: int) -> bytes:
    """Return the payload of CONSOLE_AT and SKIPPED."""
    return offset.to_bytes(8, "big")


def unpack_offset(payload: bytes) -> int:
    """Return the offset in such a payload."""
    return int.from_bytes(payload, "big")
