# SPDX-License-Identifier: Apache-2.0
"""What was proven on this boot, for all supervisors of this machine: a small file that only root can write.

An accelerator is a fact of the machine, not of a run directory. A file that is damaged, of another boot or not safe
from others is no answer; one that cannot be written costs each supervisor a proof of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import stat
import weakref
from typing import TYPE_CHECKING, Final

import msgspec

from backends.qemu.accel.decide import Accel
from runphi_async.host import files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

log = logging.getLogger(__name__)

DIRECTORY: Final = "/run/runphi"
#: environment variable that names another directory: tests prove by themselves
VARIABLE: Final = "RUNPHI_PROOFS"
FILE: Final = "accel.json"
#: answers that are kept: kernels and QEMUs that one boot sees; the oldest go first
MOST: Final = 32
#: bytes that are read of the file; more than `MOST` answers can be
MAX_BYTES: Final = 256 * 1024
#: characters that are kept of a reason
MAX_REASON: Final = 1000


class Book(msgspec.Struct):
    """What is known on this boot."""

    boot_id: str
    answers: dict[str, Accel] = {}
    #: QEMU on which KVM failed a real guest: its path, and why
    distrusted: dict[str, str] = {}

    def remember(self, key: str, answer: Accel) -> None:
        """Keep an answer."""
        self.answers.pop(key, None)
        self.answers[key] = answer

    def recall(self, key: str) -> Accel | None:
        """Return the answer of an earlier proof, if there was one."""
        return self.answers.get(key)

    def trim(self) -> None:
        """Forget what is too much, the oldest first."""
        self.answers = dict(list(self.answers.items())[-MOST:])
        kept = list(self.distrusted.items())[-MOST:]
        self.distrusted = {path: reason[:MAX_REASON] for path, reason in kept}


#: who proves in this process, by loop and kind of proof
_here: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = weakref.WeakKeyDictionary()
#: what this process knows where there is no place to write it down
_own: Book | None = None


def key(files: Iterable[str], image: bytes) -> str:
    """Name what a proof is about: files, by which any of their changes shows, and the probe itself."""
    parts = [hashlib.sha256(image).hexdigest()[:16]]
    for path in files:
        try:
            info = os.stat(path)
        except OSError:
            parts.append(path)
        else:
            parts.append(f"{os.path.realpath(path)}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}")
    return " ".join(parts)


def read() -> Book:
    """Return what is known (blocks, shortly)."""
    boot_id = files.boot_id()
    try:
        with _directory() as directory:
            return _read(directory, boot_id)
    except OSError:
        return _of_ours(boot_id)


def change(edit: Callable[[Book], None]) -> None:
    """Change what is known (blocks, shortly); others that do so at the same time wait."""
    boot_id = files.boot_id()
    try:
        with _directory(make=True) as directory:
            fcntl.flock(directory, fcntl.LOCK_EX)
            book = _read(directory, boot_id)
            edit(book)
            book.trim()
            _write(directory, book)
    except OSError as exc:
        log.warning("cannot keep what was proven of KVM in %s: %s", _path(), exc.strerror or exc)
        edit(_of_ours(boot_id))


@contextlib.asynccontextmanager
async def one_prover(name: str) -> AsyncIterator[None]:
    """Hold the lock that lets one task of one supervisor prove while all others wait for its answer."""
    # tasks of this process wait here, not in threads: all threads waiting for one that needs a thread is no way
    locks = _here.setdefault(asyncio.get_running_loop(), {})
    async with locks.setdefault(name, asyncio.Lock()), _machine_wide(name):
        yield


@contextlib.asynccontextmanager
async def _machine_wide(name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(asyncio.to_thread(_lock, f"accel.{name}.lock"))
    try:
        fd = await asyncio.shield(task)
    except asyncio.CancelledError:
        # the thread cannot be called back: whatever it gets is let go when it comes
        task.add_done_callback(_let_go)
        raise
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)


def _let_go(task: asyncio.Task[int | None]) -> None:
    if not task.cancelled() and task.exception() is None and (fd := task.result()) is not None:
        os.close(fd)


def _lock(name: str) -> int | None:
    try:
        with _directory(make=True) as directory:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
    except OSError:
        return None  # nowhere to write: nobody else can read what we prove either
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _path() -> str:
    return os.environ.get(VARIABLE) or DIRECTORY


@contextlib.contextmanager
def _directory(make: bool = False) -> Iterator[int]:
    """Open the directory.

    :raises OSError: it is not there, or others can write into it.
    """
    path = _path()
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check(os.fstat(fd), path)
        yield fd
    finally:
        os.close(fd)


def _check(info: os.stat_result, path: str) -> None:
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(1, "others can write it", path)


def _read(directory: int, boot_id: str) -> Book:
    try:
        fd = os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return Book(boot_id)
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        try:
            _check(info, FILE)
            if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_BYTES:
                return Book(boot_id)
            book = msgspec.json.decode(file.read(MAX_BYTES), type=Book)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return Book(boot_id)
    return book if book.boot_id == boot_id else Book(boot_id)


def _write(directory: int, book: Book) -> None:
    temporary = f"{FILE}.new"  # whoever writes holds the lock of the directory
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(book)) + b"\n")
    os.rename(temporary, FILE, src_dir_fd=directory, dst_dir_fd=directory)


def _of_ours(boot_id: str) -> Book:
    global _own
    if _own is None or _own.boot_id != boot_id:
        _own = Book(boot_id)
    return _own
