# SPDX-License-Identifier: Apache-2.0
"""What a next supervisor does with one guest, and nothing else of it: the tests kill it at any moment.

It takes the guest over as the product does, with a driver that has no machine. Arguments: pid of the init process,
``tty`` or ``pipe``, record directory, directory of the logs. Says ``r`` on stdout when it listens.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import anyio

from consoles.streams.sinks.logfile import KINDS
from runphi_async.config.schema import Config
from runphi_async.config.schema import Console as Limits
from runphi_async.config.section import Size
from runphi_async.container.assembly import assemble
from runphi_async.container.recorded import Recorded, Shared
from runphi_async.host.clock import SYSTEM
from runphi_async.host.processes import Process
from runphi_async.partition.logplan import LogPlan
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.record.eventlog import EventLog
from runphi_async.record.lifecycle import Status
from runphi_async.record.store import Record, Store
from runphi_async.terminals.console import take_back
from runphi_async.testing.backend import FakeBackend

#: Small, so that the guest waits for its readers most of the time.
LIMITS: Final = Limits(window_bytes=Size(200_000), replay_bytes=Size(10_000))


def plans(directory: str) -> tuple[LogPlan, ...]:
    """Return a log of each kind, all of the whole; the timed one is cut into files on the way."""
    return tuple(
        LogPlan(kind, directory, name.format("console"), 1 << 20 if kind == "timed" else 0, 100)
        for kind, name in KINDS.items()
    )


def container(directory: str, log_dir: str, *, terminal: bool) -> Recorded:
    """Return a container that has printed and prints on."""
    run_dir, name = os.path.split(directory)
    record = Record(
        id=name, name=name, root="", bundle="", rootfs="", backend="", status=Status.RUNNING, created=0.0, boot_id="",
        terminal=terminal, logs=plans(log_dir),
    )  # fmt: skip
    return Recorded(record, Shared(Config(console=LIMITS), Store(run_dir), EventLog(), SYSTEM))


async def main(pid: str, kind: str, directory: str, log_dir: str) -> None:
    """Take the guest over and go on with its console until killed."""
    backend = FakeBackend()
    plan = backend.remember(await backend.plan(GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs="/")))
    terminal = kind == "tty"
    held = take_back(Process(int(pid)).fd, terminal)
    taken = await assemble(container(directory, log_dir, terminal=terminal), backend.recall(plan, directory), held)
    async with anyio.create_task_group() as tasks:
        taken.streams.start(tasks)
        os.write(1, b"r")
        await anyio.sleep_forever()


if __name__ == "__main__":
    init, kind, record, logs = sys.argv[1:]
    anyio.run(main, init, kind, record, logs)
