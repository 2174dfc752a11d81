# SPDX-License-Identifier: Apache-2.0
"""Exactly once across ``kill -9``: a console's process is killed at random moments and the next one goes on.

The test plays the init stub: it holds the open file descriptions, and each next process takes them by pidfd_getfd,
as a new supervisor does. Whatever the moment of the kill, stdout and every log hold each byte once and in order.
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from consoles.streams import terminal
from consoles.streams.journal import Journal, grow_pipe
from consoles.streams.logs.sidecar import unpack
from tests.unit.consolekit import pattern
from tests.unit.logkit import from_cri, from_json, from_timed

if TYPE_CHECKING:
    from pathlib import Path

TOTAL = 16_000_000
KILLS = 15

#: what a supervisor does with a console: arguments are our pid, the descriptors to take, the log's directory
CHILD = """
import asyncio, os, sys
from consoles.streams.hub import Hub
from consoles.streams.journal import Journal
from consoles.streams.sinks.logfile import KINDS, Place, open_log
from consoles.streams.sinks.stdio import StdioSink
from runphi_async.terminals.console import reopen
from runphi_async.host.syscalls import pidfd_getfd

holder, source, stdio_cursor, log_cursor, out = map(int, sys.argv[1:6])
pidfd = os.pidfd_open(holder)

async def main():
    journal = Journal(os.open(f"/proc/{holder}/fd/{stdio_cursor}", os.O_RDWR | os.O_CLOEXEC))
    source_fd = pidfd_getfd(pidfd, source)
    os.set_blocking(source_fd, False)
    hub = Hub(journal, source_fd, window=200_000, replay=10_000)
    output = reopen(pidfd_getfd(pidfd, out), os.O_WRONLY)
    hub.add_sink(StdioSink(journal, pidfd_getfd(pidfd, stdio_cursor), output, hub.progress))
    logs = []
    for kind, name in KINDS.items():
        place = Place(sys.argv[6], name.format("console"), 1 << 20 if kind == "timed" else 0, 100)
        cursor = pidfd_getfd(pidfd, log_cursor) if kind == "raw" else -1
        sidecar = os.path.join(sys.argv[6], kind)
        logs.append(
            open_log(
                journal, kind, place, cursor=cursor, sidecar=sidecar, progress=hub.progress, on_error=lambda exc: None
            )
        )
        hub.add_sink(logs[-1])
    hub.start()
    os.write(1, b"r")
    await asyncio.gather(*(log.run() for log in logs))

asyncio.run(main())
"""


def start(words: list[str]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(os.getpid()), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    if not select.select([child.stdout], [], [], 30)[0] or child.stdout.read(1) != b"r":
        child.kill()
        pytest.fail(child.communicate()[1].decode())
    return child


def standing(directory: Path) -> list[bool]:
    """Whether each log that has a sidecar holds everything."""
    found = (unpack((directory / kind).read_bytes()) for kind in ("cri", "json-file", "timed"))
    return [at is not None and at.offset == TOTAL and at.torn is None for at in found]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["pipe", "pty"])
def test_kill_at_any_moment(tmp_path: Path, kind: str) -> None:
    chance = random.Random(kind)
    source, console = os.pipe()
    grow_pipe(console)
    if kind == "pipe":
        reader, out = os.pipe()
    else:
        reader, out = terminal.open_pty(None)
    journal = Journal.create("kill")
    cursors = journal.cursor(), journal.cursor()
    seen = bytearray()

    def guest() -> None:
        written = 0
        while written < TOTAL:
            written += os.write(console, pattern(written, min(20_000, TOTAL - written)))

    def engine() -> None:
        while len(seen) < TOTAL:
            seen.extend(os.read(reader, 50_000))
            time.sleep(0.0005)  # slower than the guest: the window is full most of the time

    threads = [threading.Thread(target=work, daemon=True) for work in (guest, engine)]
    for thread in threads:
        thread.start()
    words = [str(fd) for fd in (source, *cursors, out)] + [str(tmp_path)]
    killed_busy = 0
    for _ in range(KILLS):
        child = start(words)
        time.sleep(chance.uniform(0, 0.02))  # the moment of the kill is the point, not a wait
        child.kill()
        child.communicate()
        killed_busy += len(seen) < TOTAL
    child = start(words)
    try:
        log = tmp_path / "console.log"
        deadline = time.monotonic() + 60
        while threads[1].is_alive() or log.stat().st_size < TOTAL or not all(standing(tmp_path)):
            assert time.monotonic() < deadline, f"{len(seen)} bytes seen, {log.stat().st_size} logged"
            threads[1].join(0.05)
    finally:
        child.kill()
        child.communicate()
    assert killed_busy >= 3, "the transfer was over before the killing began"
    assert bytes(seen) == pattern(0, TOTAL)
    assert log.read_bytes() == pattern(0, TOTAL)
    assert from_cri((tmp_path / "console.cri.log").read_bytes()) == pattern(0, TOTAL)
    assert from_json((tmp_path / "console.json.log").read_bytes()) == pattern(0, TOTAL).decode("utf-8", "replace")
    timed = sorted(
        tmp_path.glob("console.timed*"), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0
    )
    assert len(timed) > 1
    assert b"".join(from_timed(path.read_bytes()) for path in timed) == pattern(0, TOTAL)
    for fd in (source, console, reader, out, *cursors):
        os.close(fd)
    journal.close()
