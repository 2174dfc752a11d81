# SPDX-License-Identifier: Apache-2.0
"""The file server of a Linux guest: one virtiofsd per container shares the image's rootfs and its bind mounts.

What is shared is put together in a mount namespace that nobody but virtiofsd lives in: a directory with ``rootfs`` and
``m0``, ``m1`` …, each a bind mount, read-only where the container says so. So one server does for all mounts, the guest
reaches nothing else, the host's mount table stays as it was, and all of it is gone with virtiofsd, however that ends.

The server belongs to the container, not to us: its own session, in the container's cgroup, listening on a socket made
beforehand so that QEMU can connect at once. It ends by itself when QEMU does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from backends.qemu import virtiofsd
from runphi_async import digits, regular
from runphi_async.errors import BackendError
from runphi_async.host import syscalls
from runphi_async.host.files import write_atomically
from runphi_async.host.namespaces import apart
from runphi_async.host.processes import Process
from runphi_async.partition.spec import Bind

if TYPE_CHECKING:
    from collections.abc import Sequence

SOCKET: Final = "fs.sock"
PID_FILE: Final = "fs.pid"
LOG: Final = "fs.log"
#: where the share is put together; an empty directory to everybody else
SHARE: Final = "share"
#: name of the image's rootfs in the share
ROOTFS: Final = "rootfs"


class Share(msgspec.Struct, frozen=True):
    """What is shared, as remembered in the record."""

    path: str
    binds: tuple[Bind, ...] = ()


class Server:
    """The virtiofsd of one guest.

    :param program: path or name of virtiofsd.
    :param directory: the record directory; socket, pid and log lie there.
    """

    def __init__(self, program: str, directory: str) -> None:
        self._program = program
        self._directory = directory
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, rootfs: str, binds: Sequence[Bind] = ()) -> None:
        """Start sharing ``rootfs`` and ``binds`` (blocks).

        :raises BackendError: they cannot be put together, or virtiofsd cannot be executed.
        """
        dir_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        share = os.path.join(self._directory, SHARE)
        try:
            with contextlib.suppress(FileNotFoundError):  # that of a server that has ended with an earlier QEMU
                os.unlink(SOCKET, dir_fd=dir_fd)
            listener.bind(f"/proc/self/fd/{dir_fd}/{SOCKET}")
            listener.listen(1)
            os.makedirs(share, 0o700, exist_ok=True)
            self._child = apart(lambda: self._serve(share, rootfs, binds, listener.fileno()))
        except OSError as exc:
            raise BackendError(
                f"cannot share the root filesystem: {self._program}: {exc.strerror}",
                virtiofsd.hint(),
            ) from exc
        finally:
            listener.close()
            os.close(dir_fd)
        process = Process(self._child.pid)
        write_atomically(os.path.join(self._directory, PID_FILE), f"{process.pid} {process.started}\n".encode())
        process.close()

    def _serve(self, share: str, rootfs: str, binds: Sequence[Bind], listener: int) -> subprocess.Popen[bytes]:
        """Put the share together and start the server; in a thread that ends with this."""
        argv = virtiofsd.command(self._program, listener, share)
        put_together(share, rootfs, binds)
        with fresh(os.path.join(self._directory, LOG)) as log:
            return subprocess.Popen(
                argv, pass_fds=(listener,), start_new_session=True, cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def pids(self) -> list[int]:
        """Return the server's pid while it is our child."""
        return [self._child.pid] if self._child is not None else []

    def stop(self) -> None:
        """End the server if it has not ended with its QEMU (blocks)."""
        process = self._hold()
        if process is not None:
            process.send(9)
            process.close()
        if self._child is not None:
            self._child.wait()
            self._child = None

    def _hold(self) -> Process | None:
        try:
            words = regular.read(os.path.join(self._directory, PID_FILE), 128, links=False).split()
            pid, started = (digits.whole(word) for word in words)
            return Process(pid, started) if pid and started is not None else None
        except (OSError, ValueError):
            return None


def fresh(path: str) -> BinaryIO:
    """Make a file anew: an earlier QEMU may have put a link or a FIFO in its place."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def put_together(share: str, rootfs: str, binds: Sequence[Bind]) -> None:
    """Move this thread into a mount namespace of its own and make the share there.

    :raises BackendError: something cannot be mounted.
    """
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        # what the host unmounts must not stay in use here; nothing made here shows on the host
        syscalls.mount("none", "/", "none", syscalls.MS_REC | syscalls.MS_SLAVE)
        safe = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("runphi", share, "tmpfs", safe, "size=1m,mode=0755")
        os.mkdir(os.path.join(share, ROOTFS))
        _mount(rootfs, os.path.join(share, ROOTFS), syscalls.MS_BIND | syscalls.MS_REC)
    except OSError as exc:
        raise BackendError(
            f"cannot share the root filesystem: {(exc.strerror or str(exc)).lower()}",
            "the supervisor needs CAP_SYS_ADMIN",
        ) from exc
    for bind in binds:
        try:
            _bind(os.path.join(share, bind.name), bind)
        except OSError as exc:
            raise BackendError(
                f"cannot share {bind.source} with the guest: {(exc.strerror or str(exc)).lower()}"
            ) from exc
    # else the guest's root could fill the host's memory with files beside the mounts
    syscalls.mount("none", share, "none", syscalls.MS_REMOUNT | syscalls.MS_RDONLY | safe, "size=1m,mode=0755")


def _bind(point: str, bind: Bind) -> None:
    if bind.directory:
        os.mkdir(point)
    else:
        os.close(os.open(point, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    _mount(bind.source, point, syscalls.MS_BIND | (syscalls.MS_REC if bind.recursive else 0))
    if not bind.slave:
        syscalls.mount("none", point, "none", syscalls.MS_PRIVATE | syscalls.MS_REC)
    if bind.readonly:
        flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
        syscalls.mount("none", point, "none", flags | _locked(point))


def _locked(point: str) -> int:
    """Return the flags a mount has already: a remount that says nothing of them would take them away."""
    found = os.statvfs(point).f_flag
    return found & (syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)


def _mount(source: str, target: str, flags: int) -> None:
    syscalls.mount(source, target, "none", flags)
