# SPDX-License-Identifier: Apache-2.0
"""What a log must know again after ``kill -9``: where it stands in the journal, and which batch it was about to write.

The record is small, has a fixed place in a file in memory (the run directory is a tmpfs) and is written with one system
call, which a killed process has made or has not. So the batch that a kill cut in two is known: where its bytes lie,
when it was taken, and in which file at which position its records belong. The next process makes the same records
again, sees by the file's length how many of their bytes are there, and writes the rest.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from enum import IntEnum
from typing import Final, NamedTuple

from consoles.streams.logs.encode import STATE_MAX, Stamp
from consoles.streams.logs.files import Identity

_MAGIC: Final = b"RPHLOG1\0"
_CRC: Final = struct.Struct("<I")
_STATE: Final = 1 + STATE_MAX


class Kind(IntEnum):
    """What a batch holds."""

    OUTPUT = 1
    #: the mark of a loss
    LOST = 2
    #: what the encoder held back
    FINISH = 3


class Batch(NamedTuple):
    """Everything that its records depend on, and where they go.

    :ivar start: offset of the first byte in the journal.
    :ivar lost: of a mark: how many bytes are missing.
    :ivar why: of a mark: errno.
    :ivar state: the encoder's state before it.
    :ivar position: where its records begin in the file; ``size``: how many bytes they are.
    """

    kind: Kind
    start: int
    length: int
    stamp: Stamp
    lost: int
    why: int
    state: bytes
    file: Identity = Identity(0, 0)
    position: int = 0
    size: int = 0


class Standing(NamedTuple):
    """Where a log stands.

    :ivar offset: the journal's next byte.
    :ivar lost: bytes that were given up so far; ``unsaid``: those no mark tells of yet; ``why``: errno of the refusal.
    :ivar state: the encoder's state.
    :ivar torn: the batch that may be in its file in part.
    :ivar spilled: its bytes are in the spill file, and no longer needed in the journal.
    """

    offset: int
    lost: int = 0
    unsaid: int = 0
    why: int = 0
    state: bytes = b""
    torn: Batch | None = None
    spilled: bool = False


_STANDING: Final = struct.Struct(f"<8sQQQI{_STATE}pBB")
_BATCH: Final = struct.Struct(f"<QQQQQI{_STATE}pQQQQ")
_EMPTY: Final = bytes(_BATCH.size)
SIZE: Final = _STANDING.size + _BATCH.size + _CRC.size


def pack(at: Standing) -> bytes:
    """Return a standing as the record holds it."""
    torn = at.torn
    kind = 0 if torn is None else torn.kind
    data = _STANDING.pack(_MAGIC, at.offset, at.lost, at.unsaid, at.why, at.state, kind, at.spilled)
    if torn is None:
        data += _EMPTY
    else:
        data += _BATCH.pack(
            torn.start, torn.length, *torn.stamp, torn.lost, torn.why, torn.state, *torn.file, torn.position, torn.size
        )
    return data + _CRC.pack(zlib.crc32(data))


def unpack(data: bytes) -> Standing | None:
    """Read a standing; None when it is not whole."""
    if len(data) != SIZE or _CRC.unpack_from(data, SIZE - _CRC.size)[0] != zlib.crc32(data[: -_CRC.size]):
        return None
    magic, offset, lost, unsaid, why, state, kind, spilled = _STANDING.unpack_from(data)
    if magic != _MAGIC:
        return None
    torn = None
    if kind:
        start, length, wall, mono, count, errno, before, device, inode, position, size = _BATCH.unpack_from(
            data, _STANDING.size
        )
        file = Identity(device, inode)
        torn = Batch(Kind(kind), start, length, Stamp(wall, mono), count, errno, before, file, position, size)
    return Standing(offset, lost, unsaid, why, state, torn, bool(spilled))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


class Sidecar:
    """The file that holds a standing, and beside it (``.spill``) the bytes of a batch the journal may let go.

    :param path: made when missing; belongs into the record directory.
    """

    def __init__(self, path: str) -> None:
        self._spill = path + ".spill"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def load(self) -> Standing | None:
        """Return the standing that was saved last, None for the first time."""
        return unpack(os.pread(self._fd, SIZE, 0))

    def save(self, at: Standing) -> None:
        """Save a standing. After the first time this takes no more memory and cannot be refused."""
        os.pwrite(self._fd, pack(at), 0)

    def spill(self, data: bytes) -> None:
        """Keep the bytes of the torn batch."""
        with contextlib.suppress(FileNotFoundError):  # or what somebody has put in its place
            os.unlink(self._spill)
        with open(self._spill, "xb") as file:
            file.write(data)

    def spilled(self) -> bytes | None:
        """Return the bytes kept, None when there are none."""
        with contextlib.suppress(OSError), open(self._spill, "rb", opener=_without_waiting) as file:
            return file.read()
        return None

    def unspill(self) -> None:
        """The batch is in its file: its bytes are needed no more."""
        with contextlib.suppress(OSError):
            os.unlink(self._spill)

    def close(self) -> None:
        """Close the file; it stays for whoever goes on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
