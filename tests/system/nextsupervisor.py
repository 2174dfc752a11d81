# SPDX-License-Identifier: Apache-2.0
"""What a next supervisor does with one console, and nothing else of it: the tests kill it at any moment.

Arguments: pid of the init process, ``tty`` or ``pipe``, record directory, directory of the logs. Says ``r`` on stdout
when it listens.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import anyio

from consoles.streams.sinks.logfile import KINDS
from runphi_async.config.schema import Console as Limits
from runphi_async.config.schema import Size
from runphi_async.host.processes import Process
from runphi_async.partition.logplan import LogPlan
from runphi_async.record.lifecycle import Status
from runphi_async.record.store import Record
from runphi_async.terminals.console import Console, take_back

if TYPE_CHECKING:
    from runphi_async.events import AnyEvent

#: Small, so that the guest waits for its readers most of the time.
LIMITS: Final = Limits(window_bytes=Size(200_000), replay_bytes=Size(10_000))


class Owner:
    """A container that is its console only."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.record = Record(
            id="c1",
            name="c1",
            root="",
            bundle="",
            rootfs="",
            backend="",
            status=Status.RUNNING,
            created=0.0,
            boot_id="",
        )

    def note(self, event: AnyEvent) -> None:
        """Nobody reads events."""

    def resize(self, rows: int, cols: int) -> None:
        """There is no terminal."""

    def end_of_input(self, total: int) -> None:
        """It reads nothing."""

    def console_changed(self, reason: str | None) -> None:
        """A FIFO is never gone."""


def plans(directory: str) -> list[LogPlan]:
    """Return a log of each kind, all of the whole; the timed one is cut into files on the way."""
    return [
        LogPlan(kind, directory, name.format("console"), 1 << 20 if kind == "timed" else 0, 100)
        for kind, name in KINDS.items()
    ]


async def main(pid: str, kind: str, directory: str, log_dir: str) -> None:
    """Take the console over and go on with it until killed."""
    held = take_back(Process(int(pid)).fd, kind == "tty")
    console = Console(Owner(directory), LIMITS, plans(log_dir), held)
    async with anyio.create_task_group() as tasks:
        console.start(tasks)
        os.write(1, b"r")
        await anyio.sleep_forever()


if __name__ == "__main__":
    init, kind, record, logs = sys.argv[1:]
    anyio.run(main, init, kind, record, logs)
