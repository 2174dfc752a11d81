# SPDX-License-Identifier: Apache-2.0
"""The ``timed`` log: raw bytes with the times at which they came, so that ``runphi replay`` can play them again.

A file is a header and records; all numbers are little-endian::

    header   8 bytes  b"RPHTIMED"
             u16      version, 1
             u16      length of the header, 12 (a later version may add to it)
    record   u8       kind: 1 output of the guest, 2 bytes lost here (payload: u64 count, then the reason)
             3 bytes  zero
             u32      length of the payload, at most 1 MiB
             u64      CLOCK_MONOTONIC in nanoseconds
             u64      wall clock in nanoseconds since 1970
             u32      CRC-32 of the record's 24 bytes before this one, and of the payload
             …        payload

A file is rotated between two records, so every file can be played by itself.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from consoles.streams.logs.encode import notice
from runphi_async.errors import RunphiError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from consoles.streams.logs.encode import Parts, Stamp

MAGIC: Final = b"RPHTIMED"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sHH")
RECORD: Final = struct.Struct("<B3xIQQ")
CRC: Final = struct.Struct("<I")
LOSS: Final = struct.Struct("<Q")
#: Largest payload.
PAYLOAD_MAX: Final = 1 << 20
#: Largest header that is skipped.
HEADER_MAX: Final = 4096


class Kind(IntEnum):
    """What a record is."""

    OUTPUT = 1
    LOST = 2


class Record(NamedTuple):
    """One record; times in nanoseconds."""

    kind: Kind
    mono: int
    wall: int
    data: bytes

    def text(self) -> bytes:
        """Return what to show: the guest's bytes, or the words for a loss."""
        if self.kind is Kind.OUTPUT:
            return self.data
        (count,) = LOSS.unpack_from(self.data)
        return b"\r\n" + notice(count, self.data[LOSS.size :].decode("ascii", "replace")) + b"\r\n"


class RecordingError(RunphiError, ValueError):
    """Raised when a file is no recording, or is damaged; the text says where."""


class Timed:
    """The encoder of these files; see ``consoles.streams.logs.encode.Encoder``."""

    header = HEADER.pack(MAGIC, VERSION, HEADER.size)

    def encode(self, data: bytes, state: bytes, stamp: Stamp) -> tuple[Parts, bytes]:
        """Return one record, or several where ``data`` is larger than one may be."""
        parts: Parts = []
        for start in range(0, len(data), PAYLOAD_MAX):
            piece = data[start : start + PAYLOAD_MAX]
            parts += (head(Kind.OUTPUT, piece, stamp), piece)
        return parts, b""

    def finish(self, state: bytes, stamp: Stamp) -> bytes:
        """Return nothing: nothing is held back."""
        return b""

    def lost(self, count: int, why: str, stamp: Stamp) -> bytes:
        """Return the record of a loss."""
        payload = LOSS.pack(count) + why.encode("ascii", "backslashreplace")
        return head(Kind.LOST, payload, stamp) + payload


def head(kind: Kind, payload: bytes, stamp: Stamp) -> bytes:
    """Return what stands before the payload of a record."""
    fields = RECORD.pack(kind, len(payload), stamp.mono, stamp.wall)
    return fields + CRC.pack(zlib.crc32(payload, zlib.crc32(fields)))


def read(file: BinaryIO) -> Iterator[Record]:
    """Yield the records of a file.

    :raises RecordingError: it is none, or it ends or is damaged within a record; those before have been yielded.
    """
    at = _skip_header(file)
    while start := _exactly(file, RECORD.size + CRC.size, at):
        kind, length, mono, wall = RECORD.unpack_from(start)
        if kind not in (Kind.OUTPUT, Kind.LOST) or length > PAYLOAD_MAX or any(start[1:4]):
            raise RecordingError(f"damaged at byte {at}: no record begins there")
        payload = _exactly(file, length, at) if length else b""
        if length and not payload:
            raise RecordingError(f"truncated: the record at byte {at} has no data")
        (crc,) = CRC.unpack_from(start, RECORD.size)
        if crc != zlib.crc32(payload, zlib.crc32(start[: RECORD.size])) or (kind == Kind.LOST and length < LOSS.size):
            raise RecordingError(f"damaged: the record at byte {at} does not match its checksum")
        yield Record(Kind(kind), mono, wall, payload)
        at += len(start) + length


def _skip_header(file: BinaryIO) -> int:
    start = file.read(HEADER.size)
    if not start:
        raise RecordingError("empty: nothing was recorded")
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise RecordingError("not a timed recording")
    if len(start) < HEADER.size:
        raise RecordingError("truncated within its header")
    _, version, length = HEADER.unpack(start)
    if version != VERSION:
        raise RecordingError(f"recorded in version {version} of the format; this program knows version {VERSION}")
    if not HEADER.size <= length <= HEADER_MAX:
        raise RecordingError(f"damaged: a header of {length} bytes")
    file.read(length - HEADER.size)
    return int(length)


def _exactly(file: BinaryIO, length: int, at: int) -> bytes:
    """Read ``length`` bytes, or b"" at the end of the file."""
    data = file.read(length)
    if data and len(data) < length:
        raise RecordingError(f"truncated: the record at byte {at} is not complete")
    return data
