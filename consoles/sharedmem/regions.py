# SPDX-License-Identifier: Apache-2.0
"""Memory that another system writes too: a file in /dev/shm, a map of /dev/uioN, a range of /dev/mem.

What is shared is touched through ``Region`` only. An index or register is loaded and stored as ONE aligned 32-bit
access: a wider access to a page of ivshmem registers stops the CPU that makes it (docs/reference/shared-memory.md,
"Registers"), and a torn index is a wrong one. Everything else may be copied in pieces, at addresses and lengths
that the caller has checked against ``size``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import stat
import sys
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from consoles.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE: Final = mmap.PAGESIZE
#: Where uio devices are, and what the kernel says of them.
DEV: Final = "/dev"
SYSFS: Final = "/sys/class/uio"
_SEQ_CST: Final = 5  # memory_order_seq_cst, stdatomic.h
_UIO: Final = re.compile(r"/dev/(uio[0-9]{1,5}):([0-9]{1,5})")
_MEM: Final = re.compile(
    r"mem:(0x[0-9a-f]{1,16}|[0-9]{1,19})\+(0x[0-9a-f]{1,16}|[0-9]{1,19})", re.IGNORECASE | re.ASCII
)


def _no_fence() -> None:
    """x86-64 keeps the order of stores and of loads by itself (Intel SDM volume 3, 9.2.2)."""


def _find_fence() -> Callable[[], None] | None:
    if platform.machine() in ("x86_64", "AMD64"):
        return _no_fence
    try:
        function = ctypes.CDLL("libatomic.so.1").atomic_thread_fence
    except (OSError, AttributeError):
        return None
    return lambda: function(_SEQ_CST)


_fence = _find_fence()


def fence() -> None:
    """Keep what stands before in front of what stands behind, as the other side sees it."""
    assert _fence is not None
    _fence()


class Region(Protocol):
    """A stretch of shared memory; offsets and lengths lie inside ``size``, or it raises and touches nothing."""

    size: int

    def load(self, offset: int) -> int:
        """Read one aligned 32-bit word."""
        ...

    def store(self, offset: int, value: int) -> None:
        """Write one aligned 32-bit word."""
        ...

    def store_byte(self, offset: int, value: int) -> None:
        """Write one byte and nothing beside it (never in a page of registers)."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Copy bytes out."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes in."""
        ...

    def close(self) -> None:
        """Let go of the memory."""
        ...


class Mapping:
    """A region over anything that has a buffer.

    :param buffer: an ``mmap`` or a ``bytearray``; its length is a multiple of 4.
    :param device: the memory is mapped as device memory: copies are made of aligned 32-bit accesses too, because
        arm64 faults on others there.
    """

    def __init__(self, buffer: mmap.mmap | bytearray, *, device: bool = False) -> None:
        self._buffer = buffer
        self._bytes = memoryview(buffer)
        self._words = self._bytes.cast("I")
        self._device = device
        self.size = len(self._bytes)

    def load(self, offset: int) -> int:
        """Read one aligned 32-bit word."""
        self._check(offset, 4)
        return self._words[offset >> 2]

    def store(self, offset: int, value: int) -> None:
        """Write one aligned 32-bit word."""
        self._check(offset, 4)
        self._words[offset >> 2] = value & 0xFFFF_FFFF

    def store_byte(self, offset: int, value: int) -> None:
        """Write one byte."""
        self._check(offset, 1)
        self._bytes[offset] = value

    def read(self, offset: int, length: int) -> bytes:
        """Copy bytes out."""
        self._check(offset, length, 1)
        if not self._device:
            return self._bytes[offset : offset + length].tobytes()
        first = offset >> 2
        words = [self._words[i] for i in range(first, (offset + length + 3) >> 2)]
        data = b"".join(word.to_bytes(4, "little") for word in words)
        return data[offset & 3 : (offset & 3) + length]

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes in."""
        self._check(offset, len(data), 1)
        if not self._device:
            self._bytes[offset : offset + len(data)] = data
            return
        at, end = 0, len(data)
        while at < end and (offset + at) & 3:
            self._bytes[offset + at] = data[at]
            at += 1
        while end - at >= 4:
            self._words[(offset + at) >> 2] = int.from_bytes(data[at : at + 4], "little")
            at += 4
        while at < end:
            self._bytes[offset + at] = data[at]
            at += 1

    def _check(self, offset: int, length: int, unit: int = 4) -> None:
        aligned = unit == 1 or length == 1 or offset & 3 == 0
        if not aligned or offset < 0 or length < 0 or offset + length > self.size:
            raise IndexError(f"cannot touch {length} bytes at {offset:#x} of {self.size:#x} bytes of shared memory")

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._bytes.release()
        if isinstance(self._buffer, mmap.mmap):
            self._buffer.close()


class Place(NamedTuple):
    """Where shared memory lies on the host: parsed from what people write.

    :ivar path: file or device.
    :ivar start: first byte of the mapping, as ``mmap`` wants it.
    :ivar length: bytes; 0 = as long as it is.
    """

    path: str
    start: int
    length: int


def parse_place(text: str) -> Place:
    """Understand ``/path``, ``/dev/uioN:MAP`` or ``mem:START+LENGTH``.

    :raises SourceError: it is none of these.
    """
    uio = _UIO.fullmatch(text)
    if uio is not None:
        # uio's convention: the offset of map N is N pages. Source: Documentation/driver-api/uio-howto.rst
        return Place(f"{DEV}/{uio[1]}", int(uio[2]) * PAGE, 0)
    memory = _MEM.fullmatch(text)
    if memory is not None:
        try:
            start, length = int(memory[1], 0), int(memory[2], 0)
        except ValueError:  # zeros in front of a decimal number, which could be meant as an octal one
            raise SourceError(f"cannot use {text}: a decimal number has no zeros in front") from None
        if start % PAGE or length % PAGE or length == 0:
            raise SourceError(f"cannot use {text}: start and length must be multiples of {PAGE}")
        return Place("/dev/mem", start, length)
    if text.startswith("/") and "\0" not in text:
        return Place(text, 0, 0)
    raise SourceError(f"cannot use {text!r} as shared memory: write /path, /dev/uioN:MAP or mem:0xSTART+LENGTH")


def open_region(text: str, *, read_only: bool = False) -> Mapping:
    """Map shared memory (blocks no longer than opening a file does).

    :param read_only: for what the hypervisor lets nobody write, such as the state table of ivshmem.
    :raises SourceError: it cannot be mapped.
    """
    if _fence is None:
        raise SourceError("cannot share memory on this machine without memory barriers: apt-get install libatomic1")
    if sys.byteorder != "little":
        raise SourceError("cannot share memory on a big-endian host: the layout is little-endian")
    place = parse_place(text)
    try:
        fd = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise SourceError(f"cannot open shared memory {place.path}: {exc.strerror}") from exc
    try:
        length = place.length or (_uio_length(place) if _UIO.fullmatch(text) else _file_length(fd))
        access = mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE
        mapped = mmap.mmap(fd, length, offset=place.start, access=access)
    except (OSError, ValueError) as exc:
        raise SourceError(f"cannot map shared memory {text}: {exc}") from exc
    finally:
        os.close(fd)
    return Mapping(mapped, device=_UIO.fullmatch(text) is not None or place.path == "/dev/mem")


def _file_length(fd: int) -> int:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no file")
    if status.st_size < PAGE or status.st_size % PAGE:
        raise ValueError(f"its size must be a multiple of {PAGE}, not {status.st_size}")
    return status.st_size


def _uio_length(place: Place) -> int:
    name = os.path.basename(place.path)
    with open(f"{SYSFS}/{name}/maps/map{place.start // PAGE}/size") as file:
        return int(file.read(), 0)
