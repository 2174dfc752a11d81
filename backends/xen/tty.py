# SPDX-License-Identifier: Apache-2.0
"""Finding a domain's console: libxl makes the node of its pty empty, and xenconsoled fills it in."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from backends.base import Inheritance
from backends.xen.console import Bridge
from consoles.streams.fifo import open_fifo
from runphi_async.errors import BackendError
from runphi_async.lifeline.stub import Fd

if TYPE_CHECKING:
    from backends.xen.xenstore import XenStore

#: Seconds until xenconsoled must have made a console; it takes milliseconds.
CONSOLE_SECONDS: Final = 20.0


class KeptInput:
    """The console's input, which the stub keeps while no supervisor runs."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1

    def inheritance(self) -> Inheritance:
        """Open it, and return it as what the stub is to keep."""
        dir_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._fd = open_fifo("con.in", dir_fd)
        finally:
            os.close(dir_fd)
        return Inheritance({Fd.EVENTS: self._fd})

    def close(self) -> None:
        """Let go of our own."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


async def open_console(store: XenStore, home: str, directory: str) -> Bridge:
    """Return what moves bytes between the domain's pty and the console's FIFOs of its record.

    :param home: the domain's path in XenStore.
    :raises BackendError: there is no console, or it cannot be opened.
    """
    tty = await _find(store, f"{home}/console/tty")
    dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fds: list[int] = []
    try:
        fds.append(open_fifo("con.out", dir_fd))
        fds.append(open_fifo("con.in", dir_fd))
        return Bridge(tty, *fds)
    except OSError as exc:
        for fd in fds:
            os.close(fd)
        raise BackendError(f"cannot open the console {tty}: {exc.strerror}") from exc
    finally:
        os.close(dir_fd)


async def _find(store: XenStore, path: str) -> str:
    value = await store.find(path)
    if not value:
        watch = await store.watch(path)
        try:
            async with asyncio.timeout(CONSOLE_SECONDS):
                async for _ in watch:
                    value = await store.find(path)
                    if value:
                        break
        except TimeoutError:
            raise BackendError(
                "cannot find the domain's console: xenconsoled makes none", "start xenconsoled in dom0"
            ) from None
        finally:
            await watch.close()
    return (value or b"").decode("utf-8", "replace")
