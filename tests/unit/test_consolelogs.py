# SPDX-License-Identifier: Apache-2.0
"""All logs of one console together: made from a plan, noted in events, ended in bounded time."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import anyio
import pytest

from consoles.streams.fifo import FifoSource
from consoles.streams.hub import Hub
from consoles.streams.logs import carry
from runphi_async.events import LogError
from runphi_async.partition.logplan import LogPlan
from runphi_async.terminals import consolelogs
from runphi_async.terminals.consolelogs import ConsoleLogs
from tests.unit.consolekit import journals, until
from tests.unit.logkit import from_cri

if TYPE_CHECKING:
    from pathlib import Path

    from consoles.streams.journal import Journal
    from runphi_async.events import AnyEvent

journal = pytest.fixture(journals)


class Events:
    def __init__(self) -> None:
        self.written: list[AnyEvent] = []

    def __call__(self, event: AnyEvent) -> None:
        self.written.append(event)


def make(journal: Journal, tmp_path: Path, *kinds: str) -> tuple[ConsoleLogs, Events, Hub]:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(writer)
    hub = Hub(journal, FifoSource(reader), window=1 << 20, replay=0)
    plans = [LogPlan(kind, str(tmp_path / "log"), f"{kind}.log", 0, 2) for kind in kinds]
    events = Events()
    logs = ConsoleLogs(hub, plans, str(tmp_path), cursor=journal.cursor(), hold=1 << 19, note=events)
    return logs, events, hub


async def test_every_log_is_written_and_watched(journal: Journal, tmp_path: Path) -> None:
    logs, events, hub = make(journal, tmp_path, "raw", "cri")
    woken: list[None] = []
    logs.watch(lambda: woken.append(None))
    async with anyio.create_task_group() as tasks:
        logs.start(tasks)
        journal.append(b"hello\n")
        for sink in logs.sinks:
            sink.pump()
        await until(lambda: all(sink.lag == 0 for sink in logs.sinks) and woken)
        assert [(one.kind, one.lag, one.lost) for one in logs.statistics()] == [("raw", 0, 0), ("cri", 0, 0)]
        await logs.close()
    assert (tmp_path / "log" / "raw.log").read_bytes() == b"hello\n"
    assert from_cri((tmp_path / "log" / "cri.log").read_bytes()) == b"hello\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cri.log-position", "log"]
    assert events.written == []
    hub.close()


async def test_a_disk_that_hangs_does_not_hold_up_the_end(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    move = carry.Encoded.move

    def hang(self: carry.Encoded, limit: int, relief: object) -> None:
        hanging.wait()
        move(self, limit, lambda: None)

    monkeypatch.setattr(carry.Encoded, "move", hang)
    monkeypatch.setattr(consolelogs, "CLOSE_PATIENCE", 0.05)
    logs, events, hub = make(journal, tmp_path, "raw", "cri")
    async with anyio.create_task_group() as tasks:
        logs.start(tasks)
        journal.append(b"hello\n")
        for sink in logs.sinks:
            sink.pump()
        await until(lambda: logs.sinks[0].lag == 0)
        with anyio.fail_after(10):
            await logs.close()
        assert (tmp_path / "log" / "raw.log").read_bytes() == b"hello\n"
        path = str(tmp_path / "log" / "cri.log")
        assert events.written == [LogError(log="cri", path=path, error="the disk does not answer")]
        hanging.set()
    hub.close()
