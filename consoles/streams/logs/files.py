# SPDX-License-Identifier: Apache-2.0
"""The files of one log: NAME, and beside it the older NAME.1, NAME.2 …; one writer, any number of readers.

Rotated by rename and create, never truncated, so that a follower by inode loses nothing (kubernetes#38495). A file
that somebody removed, truncated or renamed is left for a new one. Nothing here catches an error: whoever writes
decides what a refusal means. All functions block; they are called off the loop.

A raw log has an index beside it, NAME's name with ``.idx``: pairs of 64-bit little-endian integers (offset,
wall-clock nanoseconds), of which the first names the offset of the file's first byte. Log and index are renamed
together while the directory is locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: One pair of the index: absolute offset, wall-clock nanoseconds.
PAIR: Final = struct.Struct("<QQ")
#: However little room a file has left, so much is written into it at once.
LEAST: Final = 4096
#: Most pieces that one system call writes. Source: IOV_MAX, limits.h.
_PARTS_MAX: Final = 1024


class Place(NamedTuple):
    """Where a log lies and how large it gets.

    :ivar max_bytes: a file that has reached this size is rotated; 0: never.
    :ivar max_files: files kept, the newest included.
    :ivar beneath: a directory that ``directory`` lies in: below it no symbolic link is followed.
    """

    directory: str
    name: str
    max_bytes: int = 0
    max_files: int = 2
    beneath: str = ""


class Identity(NamedTuple):
    """Which file it is, whatever its name."""

    device: int
    inode: int


class Files:
    """Writes one log; owns its descriptors.

    :param header: what every file begins with.
    :param index: name of the index, "" for none.
    """

    def __init__(self, place: Place, header: bytes = b"", index: str = "") -> None:
        self._place = place
        self._header = header
        self._index = index
        self._index_fd = -1
        #: offset of the open file's first byte among all that was logged; of a log with an index only
        self._base = 0
        self.fd = -1
        #: which file is open
        self.identity = Identity(0, 0)
        #: where the next byte goes in the open file
        self.position = 0

    @property
    def room(self) -> int:
        """How much more the open file takes."""
        limit = self._place.max_bytes
        return max(limit - self.position, LEAST) if limit else 1 << 62

    def ready(self, logged: int) -> None:
        """Have a file open that takes more.

        :param logged: bytes that were ever logged.
        """
        if self.fd >= 0 and self._replaced():
            self.close()
        limit = self._place.max_bytes
        if self.fd < 0 or (limit and self.position >= limit):
            self._open(logged)

    def _replaced(self) -> bool:
        status = os.fstat(self.fd)
        return status.st_nlink == 0 or status.st_size < self.position

    def stamp(self) -> None:
        """Note in the index when the next byte is written."""
        if self._index_fd >= 0:
            os.write(self._index_fd, PAIR.pack(self._base + self.position, time.time_ns()))

    def write(self, parts: Sequence[bytes | memoryview]) -> int:
        """Write as much of ``parts`` as the disk takes; at least a byte."""
        written = os.writev(self.fd, parts[:_PARTS_MAX])
        if written == 0:
            raise OSError(errno.EIO, "nothing written")
        self.position += written
        return written

    def send(self, cursor: int, limit: int) -> int:
        """Move up to ``limit`` bytes from a cursor on a journal; the kernel moves the cursor by what it wrote."""
        sent = os.sendfile(self.fd, cursor, None, limit)
        if sent == 0:
            raise OSError(errno.EIO, "nothing written")
        self.position += sent
        return sent

    def find(self, wanted: Identity, position: int) -> int | None:
        """Open the file a batch went to, also when it was renamed since.

        :returns: how many bytes it holds from ``position`` on; None: it is gone.
        """
        self.close()
        with contextlib.suppress(FileNotFoundError), self._directory() as directory:
            for name in sorted(os.listdir(directory)):
                current = name == self._place.name
                if not name.startswith(self._place.name):
                    continue
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if Identity(status.st_dev, status.st_ino) != wanted or status.st_size < position:
                    continue
                if current and self._index:
                    self._begin(directory, 0)
                else:
                    self._open_file(directory, name)  # the index of a renamed one is no longer ours to write
                return self.position - position
        return None

    def rotate(self, logged: int) -> None:
        """Begin a new file, however full the current one is."""
        self._open(logged, anyway=True)

    def close(self) -> None:
        """Close the file; the next ``ready`` opens it by its name."""
        for fd in (self.fd, self._index_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._index_fd = -1

    # Section: opening and rotating

    @contextlib.contextmanager
    def _directory(self, *, make: bool = False) -> Iterator[int]:
        place = self._place
        if place.beneath:
            fd = _walk(place.beneath, os.path.relpath(place.directory, place.beneath), make=make)
        else:
            if make:
                os.makedirs(place.directory, mode=0o700, exist_ok=True)
            fd = os.open(place.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._index:
                # Readers hold it shared. Without an index there are none of ours, and the directory may be anybody's.
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _open(self, logged: int, *, anyway: bool = False) -> None:
        self.close()
        limit = self._place.max_bytes
        with self._directory(make=True) as directory:
            if self._index:
                self._mend(directory)
            size = _size(directory, self._place.name)
            if size and (anyway or (limit and size >= limit)):
                self._shift(directory)
            self._begin(directory, logged)

    def _mend(self, directory: int) -> None:
        """Complete what a crash cut in two: a log and its index have the same number behind their names."""
        log, index = self._place.name, self._index

        def has(name: str) -> bool:
            return _exists(directory, name)

        for number in range(1, self._place.max_files + 1):
            newer, older = _numbered(number - 1), _numbered(number)
            if has(index + older) and not has(log + older) and has(log + newer) and not has(index + newer):
                _rename(directory, log + newer, log + older)
        if has(index) and _size(directory, log) == 0:
            os.unlink(index, dir_fd=directory)  # its log was removed by hand, or renamed by another program

    def _shift(self, directory: int) -> None:
        """Give every file the next number, as far as there is no gap; the oldest goes away."""
        log, index = self._place.name, self._index
        oldest = self._place.max_files - 1
        free = next((n for n in range(1, oldest + 1) if not _exists(directory, log + _numbered(n))), oldest)
        for name in (log, index) if index else (log,):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + _numbered(free), dir_fd=directory)
        for number in range(free, 0, -1):
            # The index first: a log that has none shows a crash in between, see ``_mend``.
            for name in (index, log) if index else (log,):
                with contextlib.suppress(FileNotFoundError):
                    _rename(directory, name + _numbered(number - 1), name + _numbered(number))

    def _begin(self, directory: int, logged: int) -> None:
        self._open_file(directory, self._place.name)
        if self._index:
            self._open_index(directory, logged)

    def _open_file(self, directory: int, name: str) -> None:
        # No O_APPEND: sendfile refuses it. A FIFO or a device is refused, and must not make us wait.
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self.fd = os.open(name, flags, 0o640, dir_fd=directory)
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise OSError(errno.EINVAL, "not a regular file")
        if self._place.beneath and status.st_nlink > 1:
            self.close()
            raise OSError(errno.EMLINK, "the file has another name, maybe outside")
        self.identity = Identity(status.st_dev, status.st_ino)
        self.position = os.lseek(self.fd, 0, os.SEEK_END)
        while self.position < len(self._header):
            self.write((self._header[self.position :],))

    def _open_index(self, directory: int, logged: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._index_fd = os.open(self._index, flags, 0o640, dir_fd=directory)
        pairs = os.lseek(self._index_fd, 0, os.SEEK_END)
        os.ftruncate(self._index_fd, pairs - pairs % PAIR.size)  # a full disk may have cut the last one
        base = _base(directory, self._index)
        if base is None:
            older = _base(directory, self._index + ".1")
            end = None if older is None else older + _size(directory, self._place.name + ".1")
            base = end if end is not None else max(0, logged - self.position)
            os.write(self._index_fd, PAIR.pack(base, time.time_ns()))
        self._base = base


def _walk(beneath: str, relative: str, *, make: bool) -> int:
    """Open a directory below another one without following a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(beneath, flags)
    for name in relative.split("/"):
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=fd)
            below = os.open(name, flags | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _numbered(number: int) -> str:
    return f".{number}" if number else ""


def _rename(directory: int, old: str, new: str) -> None:
    os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _size(directory: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _base(directory: int, index: str) -> int | None:
    try:
        fd = os.open(index, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        return int(PAIR.unpack(os.read(fd, PAIR.size))[0])
    except struct.error:
        return None
    finally:
        os.close(fd)


def history(directory: str, name: str) -> list[str]:
    """Return what stands behind ``name`` in the names of a log's files, oldest first; the newest has nothing there."""
    matches = (re.fullmatch(re.escape(name) + r"\.([1-9]\d{0,5})", found) for found in os.listdir(directory))
    return [*(f".{number}" for number in sorted((int(match[1]) for match in matches if match), reverse=True)), ""]


@contextlib.contextmanager
def locked(directory: str, how: int) -> Iterator[None]:
    """Hold ``flock`` on a log directory: the files of a log change their names together for whoever asks.

    :param how: ``fcntl.LOCK_EX`` to change names, ``fcntl.LOCK_SH`` to read.
    :raises OSError: there is no such directory.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)
