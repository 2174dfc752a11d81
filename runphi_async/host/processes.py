# SPDX-License-Identifier: Apache-2.0
"""Processes of other people, held by pidfd: no signal of ours can hit a process that reused a pid (crun#1200)."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it is gone. Source: proc(5), field 22."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except OSError:
        return None
    fields = data[data.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def children(pid: int) -> list[int]:
    """Return a process's children, none when it is gone. Source: proc(5), /proc/pid/task/tid/children."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def rank_of(pid: int) -> int | None:
    """Return how readily the kernel ends a process when memory runs out, None when it is gone."""
    try:
        with open(f"/proc/{pid}/oom_score_adj") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


class Process:
    """A process that is not our child, or is: watched and signalled through a pidfd.

    :raises ProcessLookupError: it is gone, or started at another time than ``started``.
    """

    def __init__(self, pid: int, started: int | None = None) -> None:
        self.pid = pid
        self.fd = os.pidfd_open(pid)
        now = start_time(pid)
        if now is None or started not in (None, now):
            os.close(self.fd)
            self.fd = -1
            raise ProcessLookupError(pid)
        self.started = now
        self._loop: asyncio.AbstractEventLoop | None = None

    def send(self, number: int) -> bool:
        """Send a signal; False when the process is gone."""
        if self.fd < 0:
            return False
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            return False
        return True

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Call ``on_exit`` once when the process has ended."""

        def ended() -> None:
            self.unwatch()
            on_exit()

        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.fd, ended)

    def unwatch(self) -> None:
        """Stop watching."""
        if self._loop is not None:
            self._loop.remove_reader(self.fd)
            self._loop = None

    def close(self) -> None:
        """Stop watching and let go of the pidfd."""
        self.unwatch()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
