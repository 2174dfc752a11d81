# SPDX-License-Identifier: Apache-2.0
"""QEMU's command socket: qemu.qmp behind the three things we need, every call with a deadline.

We make the listening socket ourselves and QEMU inherits it, so a connection can be asked for before QEMU has even
been executed: nobody polls for a socket to appear.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING, Final

from qemu.qmp import ExecuteError, QMPClient, QMPError

from runphi_async.aio.waiting import is_cancelled
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from runphi_async.aio.owned import OwnedTasks

#: Name of the socket in the record directory.
SOCKET: Final = "qmp.sock"
#: Seconds a QEMU may take to start up or to answer. A loaded board under emulation is slow; a dead one is for ever.
PATIENCE: Final = 30.0

# The library reports every disconnect as an error, and one by a killed QEMU as a bug; we say ourselves what it means.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class Monitor:
    """A QMP connection to the guest whose record directory is ``dir_fd``.

    :param tasks: whose the connecting is, as it goes on while nobody waits for it.
    """

    def __init__(self, dir_fd: int, tasks: OwnedTasks) -> None:
        self._dir_fd = dir_fd
        self._tasks = tasks
        self._client: QMPClient | None = None
        self._connecting: asyncio.Task[QMPClient | Exception] | None = None

    def _address(self) -> str:
        # Through the directory's descriptor: sun_path holds 108 bytes, an id may have 200.
        return f"/proc/self/fd/{self._dir_fd}/{SOCKET}"

    def listen(self) -> socket.socket:
        """Make the socket that QEMU will inherit."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(self._address())
        os.chmod(SOCKET, 0o600, dir_fd=self._dir_fd)
        sock.listen(4)
        return sock

    def connect_soon(self) -> None:
        """Begin to connect; the first command waits for it."""
        if self._connecting is None:
            self._connecting = self._tasks.start(self._connect(), "QMP connection")

    async def _connect(self) -> QMPClient | Exception:
        """Return the connection, or why there is none: that is for whoever wants to use it."""
        client = QMPClient("runphi")
        try:
            async with asyncio.timeout(PATIENCE):
                await client.connect(self._address())
        except (QMPError, OSError, EOFError, TimeoutError) as exc:
            return exc
        self._client = client
        return client

    async def execute(self, command: str, *, patience: float = PATIENCE, **arguments: object) -> object:
        """Run one command and return its answer.

        :param patience: seconds for the answer, and as many for the connection.
        :raises BackendError: QEMU refused, is gone, or did not answer in time.
        """
        self.connect_soon()
        assert self._connecting is not None
        try:
            async with asyncio.timeout(patience):
                client = await asyncio.shield(self._connecting)
            if isinstance(client, Exception):
                raise client
            async with asyncio.timeout(patience):
                return await client.execute(command, arguments or None)
        except TimeoutError as exc:
            raise BackendError(f"cannot run {command!r}: QEMU did not answer in {patience:.0f} s") from exc
        except ExecuteError as exc:
            raise BackendError(f"cannot run {command!r}: QEMU says: {exc}") from exc
        except (QMPError, OSError, EOFError) as exc:
            raise BackendError(f"cannot run {command!r}: QEMU has ended or cannot be reached") from exc
        except asyncio.CancelledError:
            if not self._connecting.cancelled() or is_cancelled():
                raise
            # The guest has ended and `close` gave the connection up. Let through, it would look like our own end.
            raise BackendError(f"cannot run {command!r}: QEMU has ended or cannot be reached") from None

    async def close(self) -> None:
        """Disconnect, whatever state the connection is in."""
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
        if self._connecting is not None:
            await asyncio.wait({self._connecting})
        if self._client is not None:
            try:
                async with asyncio.timeout(2):
                    await self._client.disconnect()
            except (QMPError, OSError, EOFError, TimeoutError):
                pass  # it is closed either way
            self._client = None
