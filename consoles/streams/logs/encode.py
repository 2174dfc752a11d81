# SPDX-License-Identifier: Apache-2.0
"""What a log's records look like: pure functions from (bytes, state, time) to (bytes, state).

The same arguments give the same result, so a batch that a crash cut in two is encoded again and goes on at the very
byte. Whole chunks are handled with operations of the interpreter (``bytes.replace``), never line by line.

Nothing a guest prints can begin a record: in ``cri`` and ``json-file`` records end with a newline, and each newline
of the guest is followed by a stamp of ours. What the runtime itself has to say goes to the stream ``stderr``, on
which a guest, who has one console only, can never speak.
"""

from __future__ import annotations

import codecs
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Records as pieces that are written one behind the other: joining them would copy all of them once more.
Parts = list[bytes | memoryview]

#: A longer line is written in pieces of this. Source: what containerd and docker do unless told otherwise.
PIECE: Final = 1 << 14
#: A state is at most this many bytes.
STATE_MAX: Final = 7


class Stamp(NamedTuple):
    """When a chunk was taken: wall clock and CLOCK_MONOTONIC, in nanoseconds."""

    wall: int
    mono: int


def now() -> Stamp:
    """Return the time."""
    return Stamp(time.time_ns(), time.monotonic_ns())


class Encoder(Protocol):
    """A kind of log; has no state of its own."""

    #: what every file begins with
    header: bytes

    def encode(self, data: bytes, state: bytes, stamp: Stamp) -> tuple[Parts, bytes]:
        """Return the records of ``data`` and the state for the next call (first state: b"")."""
        ...

    def finish(self, state: bytes, stamp: Stamp) -> bytes:
        """Return the records of what a state holds back: nothing more will come, or not the next byte."""
        ...

    def lost(self, count: int, why: str, stamp: Stamp) -> bytes:
        """Return the record that says that ``count`` bytes are missing here."""
        ...


def rfc3339(wall: int) -> bytes:
    """Return a time as ``2026-11-24T10:00:00.123456789Z``: always nine digits, so that stamps have one width."""
    seconds, nanoseconds = divmod(wall, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % nanoseconds


def notice(count: int, why: str) -> bytes:
    """Return the words for a loss."""
    return b"[runphi: %d bytes lost: %s]" % (count, why.encode("ascii", "backslashreplace"))


def runs(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """Cut ``data``: yield (start, stop, True) for whole lines, (…, False) for a piece of a line without its end."""
    start = position = 0
    end = len(data)
    while position < end:
        cut = data.rfind(b"\n", position, position + PIECE) + 1
        if cut:
            position = cut
            continue
        if start < position:
            yield start, position, True
        start = position
        position = _between_characters(data, position, min(position + PIECE, end))
        yield start, position, False
        start = position
    if start < end:
        yield start, end, True


def _between_characters(data: bytes, start: int, stop: int) -> int:
    """Move ``stop`` back to the beginning of a UTF-8 character if it is inside one."""
    for back in range(min(4, stop - start)):
        if stop - back >= len(data) or data[stop - back] & 0xC0 != 0x80:
            return stop - back
    return stop


class Raw:
    """The bytes as they are."""

    header = b""

    def encode(self, data: bytes, state: bytes, stamp: Stamp) -> tuple[Parts, bytes]:
        """Return ``data``."""
        return [data], b""

    def finish(self, state: bytes, stamp: Stamp) -> bytes:
        """Return nothing: nothing is held back."""
        return b""

    def lost(self, count: int, why: str, stamp: Stamp) -> bytes:
        """Return nothing: among raw bytes no mark can be told from the guest's own."""
        return b""


class Cri:
    """Lines ``TIME stdout F text``; P instead of F where the guest's line goes on in the next record.

    The texts joined, with a newline behind each F, are exactly what was printed: carriage returns, NUL and bytes that
    are not UTF-8 included, as conmon writes them.
    """

    header = b""

    def encode(self, data: bytes, state: bytes, stamp: Stamp) -> tuple[Parts, bytes]:
        """Return the lines; what has no newline yet is a piece (P) at once, so that a prompt can be seen."""
        when = rfc3339(stamp.wall)
        full, piece = when + b" stdout F ", when + b" stdout P "
        parts: Parts = []
        view = memoryview(data)
        for start, stop, whole in runs(data):
            if whole:
                lines = data[start:stop].replace(b"\n", b"\n" + full)
                parts += (full, memoryview(lines)[: -len(full)])  # behind the last newline there is nothing yet
            else:
                parts += (piece, view[start:stop], b"\n")
        return parts, b""

    def finish(self, state: bytes, stamp: Stamp) -> bytes:
        """Return nothing: nothing is held back."""
        return b""

    def lost(self, count: int, why: str, stamp: Stamp) -> bytes:
        """Return a line of the stream stderr."""
        return rfc3339(stamp.wall) + b" stderr F " + notice(count, why) + b"\n"


def _escapes() -> list[tuple[bytes, bytes]]:
    short = {0x08: b"\\b", 0x09: b"\\t", 0x0C: b"\\f", 0x0D: b"\\r"}
    control = [value for value in range(0x20) if value != 0x0A]
    quoted = [(b"\\", b"\\\\"), (b'"', b'\\"')]  # the backslash first: the others bring new ones
    return quoted + [(bytes((value,)), short.get(value, b"\\u%04x" % value)) for value in control]


class JsonFile:
    """Objects ``{"log": text, "stream": "stdout", "time": time}``, one a line, as docker's json-file.

    The text holds the newline of its line; without one the line goes on in the next object. JSON holds characters,
    not bytes: what is not UTF-8 becomes U+FFFD, and a character cut in two is held back until its rest has come.
    """

    header = b""
    _HEAD: Final = b'{"log":"'
    _ESCAPES: Final = _escapes()
    _decoder: Final = codecs.getincrementaldecoder("utf-8")

    def encode(self, data: bytes, state: bytes, stamp: Stamp) -> tuple[Parts, bytes]:
        """Return the objects; the state is the beginning of a character."""
        text = state + data
        held = b""
        if not text.isascii():
            decoder = self._decoder("replace")
            text = decoder.decode(text).encode()
            held = decoder.getstate()[0]
        return self._objects(text, b"stdout", stamp), held

    def _objects(self, text: bytes, stream: bytes, stamp: Stamp) -> Parts:
        tail = b'","stream":"' + stream + b'","time":"' + rfc3339(stamp.wall) + b'"}\n'
        line = b"\\n" + tail
        parts: Parts = []
        for start, stop, whole in runs(text):
            escaped = run = text[start:stop]
            for byte, escape in self._ESCAPES:
                if byte in run:
                    escaped = escaped.replace(byte, escape)
            if whole:
                parts += (self._HEAD, escaped[:-1].replace(b"\n", line + self._HEAD), line)
            else:
                parts += (self._HEAD, escaped, tail)
        return parts

    def finish(self, state: bytes, stamp: Stamp) -> bytes:
        """Return what the beginning of a character means without its rest."""
        return b"".join(self._objects(state.decode("utf-8", "replace").encode(), b"stdout", stamp))

    def lost(self, count: int, why: str, stamp: Stamp) -> bytes:
        """Return an object of the stream stderr."""
        return b"".join(self._objects(notice(count, why) + b"\n", b"stderr", stamp))
