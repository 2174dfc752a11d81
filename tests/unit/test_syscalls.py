# SPDX-License-Identifier: Apache-2.0
"""The system calls do what they say and raise OSError with the right errno."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from runphi_async.host import syscalls

if TYPE_CHECKING:
    from pathlib import Path


def test_pidfd_getfd_shares_the_open_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        process = subprocess.Popen(["sleep", "60"], stdin=file)
    try:
        pidfd = os.pidfd_open(process.pid)
        first, second = syscalls.pidfd_getfd(pidfd, 0), syscalls.pidfd_getfd(pidfd, 0)
        assert os.read(first, 4) == b"0123"
        assert os.read(second, 4) == b"4567"
        assert not os.get_inheritable(first)
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            syscalls.pidfd_getfd(pidfd, 99)
        assert caught.value.errno == errno.EBADF
        for fd in (first, second):
            os.close(fd)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ProcessLookupError):
        syscalls.pidfd_getfd(pidfd, 0)
    os.close(pidfd)


def test_openat2(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(b"inside")
    root = os.open(tmp_path, os.O_PATH)
    fd = syscalls.openat2(root, "/../etc/passwd", os.O_RDONLY, syscalls.RESOLVE_IN_ROOT)
    assert os.read(fd, 10) == b"inside"
    assert not os.get_inheritable(fd)
    os.close(fd)
    with pytest.raises(FileNotFoundError) as caught:
        syscalls.openat2(root, "/none", os.O_RDONLY, syscalls.RESOLVE_IN_ROOT)
    assert caught.value.filename == "/none"
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.openat2(root, "etc", os.O_RDONLY, 1 << 40)
    with pytest.raises(ValueError, match="null byte"):
        syscalls.openat2(root, "etc\0", os.O_RDONLY)
    os.close(root)


def test_punch_hole(tmp_path: Path) -> None:
    size = 1 << 20
    fd = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE) if os.path.isdir("/dev/shm") else os.memfd_create("x")
    os.write(fd, b"x" * size)
    before = os.fstat(fd).st_blocks
    syscalls.punch_hole(fd, 0, size - 4096)
    after = os.fstat(fd)
    assert (after.st_size, after.st_blocks) == (size, 8)
    assert before > after.st_blocks
    assert os.pread(fd, 4, 0) == bytes(4)
    assert os.pread(fd, 4, size - 4) == b"xxxx"
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        syscalls.punch_hole(fd, 0, 4096)


def test_close_range() -> None:
    first = os.open("/dev/null", os.O_RDONLY)
    fds = [first] + [os.dup(first) for _ in range(3)]
    high = max(os.listdir("/proc/self/fd"), key=int)
    low = int(high) + 10
    for n in range(3):
        os.dup2(first, low + n)
    syscalls.close_range(low, low + 1, syscalls.CLOSE_RANGE_CLOEXEC)
    assert not os.get_inheritable(low)
    syscalls.close_range(low, low + 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(low)
    os.fstat(low + 2)
    syscalls.close_range(low)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(low + 2)
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.close_range(5, 4)
    for fd in fds:
        os.close(fd)
