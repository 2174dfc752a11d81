# SPDX-License-Identifier: Apache-2.0
"""A console behind a listening unix socket, as QEMU's chardev ``socket,server=on`` makes it: we connect.

What a crash costs: the chunk that was read and not yet in the journal; QEMU throws away what its guest prints while
nobody is connected.
"""

from __future__ import annotations

import asyncio
import os
import socket

from consoles.errors import SourceError
from consoles.sources.link import Backoff, Link, Returning


class UnixSource(Returning):
    """A stream socket by its path, which may be longer than the 107 bytes a socket address holds."""

    def __init__(self, path: str, backoff: Backoff | None = None) -> None:
        super().__init__(backoff)
        self._path = path

    async def _connect(self) -> Link:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        directory = -1
        try:
            directory = os.open(os.path.dirname(self._path) or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            short = f"/proc/self/fd/{directory}/{os.path.basename(self._path)}"
            # A full backlog answers EAGAIN at once: it is a failed try like any other, and the next one comes.
            await asyncio.get_running_loop().sock_connect(sock, short)
        except OSError as exc:
            sock.close()
            raise SourceError(f"cannot connect to {self._path}: {exc.strerror}") from exc
        except BaseException:
            sock.close()
            raise
        finally:
            if directory >= 0:
                os.close(directory)
        fd = sock.detach()
        return Link(fd, fd, self._deliver, self._lost.set)
