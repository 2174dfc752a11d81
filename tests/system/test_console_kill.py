# SPDX-License-Identifier: Apache-2.0
"""Exactly once across ``kill -9``: a console's process is killed at random moments and the next one goes on.

An init process, the product's own command, holds what it holds for every container; each next process takes that from
it and assembles the console as a new supervisor does (``nextsupervisor``). Whatever the moment of the kill, stdout and
every log hold each byte once and in order.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consoles.streams import terminal
from consoles.streams.logs.sidecar import unpack
from runphi_async.lifeline import stub
from runphi_async.terminals.console import FIFOS, Lifeline
from tests.unit.consolekit import pattern
from tests.unit.logkit import from_cri, from_json, from_timed

if TYPE_CHECKING:
    from collections.abc import Iterator

TOTAL = 16_000_000
KILLS = 15
ROOT = Path(__file__).resolve().parents[2]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.system.nextsupervisor", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    assert child.stdout is not None
    if not select.select([child.stdout], [], [], 30)[0] or child.stdout.read(1) != b"r":
        child.kill()
        pytest.fail(child.communicate()[1].decode())
    return child


@contextlib.contextmanager
def init_process(lifeline: Lifeline, directory: Path) -> Iterator[int]:
    """Run the process that holds a container's descriptors; yield its pid."""
    for name in (*FIFOS, stub.EXIT_FIFO, "bell"):
        os.mkfifo(directory / name)
    opened = [os.open(directory / name, os.O_RDWR) for name in (stub.EXIT_FIFO, "con.out", "bell")]
    exit_fd, output, bell = opened
    stdin, stdout, stderr = lifeline.stdio
    fds = [exit_fd, stdout, stderr, stdin, *lifeline.cursors, output, bell, bell, bell]
    # All out of the way of the low numbers first, then into place.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)]
    argv = stub.command((), None)
    pid = os.posix_spawn(argv[0], argv, dict(os.environ), file_actions=actions, setsid=True)
    for fd in high:
        os.close(fd)
    try:
        yield pid
    finally:
        os.write(exit_fd, b"7\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        for fd in opened:
            os.close(fd)


def standing(directory: Path) -> list[bool]:
    """Whether each log that has a sidecar holds everything."""
    found = (unpack((directory / f"{kind}.log-position").read_bytes()) for kind in ("cri", "json-file", "timed"))
    return [at is not None and at.offset == TOTAL and at.torn is None for at in found]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["pipe", "tty"])
def test_kill_at_any_moment(tmp_path: Path, kind: str) -> None:
    record = tmp_path / "record"
    record.mkdir()
    if kind == "pipe":
        reader, out = os.pipe()
    else:
        reader, out = terminal.open_pty(None)
    null = os.open("/dev/null", os.O_RDWR)
    lifeline = Lifeline("kill", (null if kind == "pipe" else out, out, null))
    with init_process(lifeline, record) as init:
        console = os.open(record / "con.out", os.O_RDWR)
        try:
            kill_and_go_on(tmp_path, [str(init), kind, str(record), str(tmp_path)], console, reader)
        finally:
            os.close(console)
    lifeline.close()
    for fd in (reader, out, null):
        os.close(fd)


def kill_and_go_on(tmp_path: Path, words: list[str], console: int, reader: int) -> None:
    """Let a guest print and an engine read while one supervisor after the other is killed."""
    chance = random.Random(words[1])
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
        while threads[1].is_alive() or log.stat().st_size < TOTAL or not all(standing(tmp_path / "record")):
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
