# SPDX-License-Identifier: Apache-2.0
"""The file server of a Linux guest: one virtiofsd per container shares the image's rootfs with it.

It belongs to the container, not to us: its own session, in the container's cgroup, listening on a socket made
beforehand so that QEMU can connect at once. It ends by itself when QEMU does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from typing import Final

import msgspec

from runphi_async.errors import BackendError
from runphi_async.processes import Process

SOCKET: Final = "fs.sock"
PID_FILE: Final = "fs.pid"


class Share(msgspec.Struct, frozen=True):
    """The shared directory, as remembered in the record."""

    path: str


class Server:
    """The virtiofsd of one guest.

    :param program: path of virtiofsd.
    :param directory: the record directory; socket, pid and log lie there.
    """

    def __init__(self, program: str, directory: str) -> None:
        self._program = program
        self._directory = directory
        self._child: asyncio.subprocess.Process | None = None

    async def start(self, rootfs: str) -> None:
        """Start sharing ``rootfs``.

        :raises BackendError: virtiofsd cannot be executed.
        """
        dir_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(f"/proc/self/fd/{dir_fd}/{SOCKET}")
            listener.listen(1)
            with open(os.path.join(self._directory, "fs.log"), "wb") as log:  # noqa: ASYNC230 - on a tmpfs
                self._child = await asyncio.create_subprocess_exec(
                    self._program,
                    f"--fd={listener.fileno()}",
                    "-o", f"source={rootfs},sandbox=namespace,cache=auto,xattr,modcaps=+sys_admin",
                    pass_fds=(listener.fileno(),), start_new_session=True, cwd="/",
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
        except OSError as exc:
            raise BackendError(
                f"cannot share the root filesystem: {self._program}: {exc.strerror}",
                "install qemu-system-common (Debian 12) or set qemu.virtiofsd in the configuration",
            ) from exc
        finally:
            listener.close()
            os.close(dir_fd)
        with open(os.path.join(self._directory, PID_FILE), "w") as file:  # noqa: ASYNC230 - on a tmpfs
            process = Process(self._child.pid)
            file.write(f"{process.pid} {process.started}\n")
            process.close()

    def pids(self) -> list[int]:
        """Return the server's pid while it is our child."""
        return [self._child.pid] if self._child is not None else []

    async def stop(self) -> None:
        """End the server if it has not ended with its QEMU."""
        process = self._hold()
        if process is not None:
            process.send(9)
            process.close()
        if self._child is not None:
            await self._child.wait()
            self._child = None

    def _hold(self) -> Process | None:
        try:
            with open(os.path.join(self._directory, PID_FILE)) as file:
                pid, started = (int(word) for word in file.read().split())
            return Process(pid, started)
        except (OSError, ValueError):
            return None
