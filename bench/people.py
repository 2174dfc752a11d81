# SPDX-License-Identifier: Apache-2.0
"""Several people on one console: does the writer's echo suffer from those who watch, and what does each cost?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import pty
import socket
import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Final

from backends.configured import load
from bench.engine import BLOCK, Terminal
from bench.measure import BenchError
from bench.place import await_end
from bench.table import Row
from consoles.streams.fifo import FifoSource, open_fifo
from consoles.streams.hub import Hub
from consoles.streams.journal import Journal
from runphi_async.wire.outgoing import Outgoing, Outlet

if TYPE_CHECKING:
    from pathlib import Path

    from bench.place import Place
    from consoles.streams.sinks.attach import AttachSink

#: how many watch
CROWDS: Final = (0, 1, 20)
NAME: Final = "people"
#: the p50 of an echo that 20 watch, against one that nobody does
ECHO_GOAL: Final = 1.5
_PATIENCE: Final = 30.0
_MIB: Final = 1 << 20


class Writer(Terminal):
    """`runphi attach` on a pseudo terminal."""

    def __init__(self, place: Place) -> None:
        self.name = NAME
        self._begun = time.perf_counter()
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execve(place.runphi, [place.runphi, "attach", "--quiet", NAME], dict(place.env))


class Crowd:
    """So many observers, each a client of its own."""

    def __init__(self, place: Place, count: int) -> None:
        self._children = [
            subprocess.Popen(
                [place.runphi, "attach", "--observe", NAME],
                env=place.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(count)
        ]
        deadline = time.monotonic() + _PATIENCE
        while _attached(place) != count + 1:
            if time.monotonic() > deadline:
                raise BenchError(f"{count} observers do not attach")
            time.sleep(0.05)

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()


def _attached(place: Place) -> int:
    done = subprocess.run(
        [place.runphi, "who", "--format", "json", NAME], env=place.env, capture_output=True, check=True
    )
    return len(json.loads(done.stdout))


def _verb(place: Place, *words: str) -> None:
    null = subprocess.DEVNULL
    done = subprocess.run([place.runphi, *words], env=place.env, stdin=null, stdout=null, stderr=null, check=False)
    if done.returncode:
        raise BenchError(f"{words[0]} ended with {done.returncode}")


def _echoes(place: Place) -> dict[int, list[float]]:
    times: dict[int, list[float]] = {count: [] for count in CROWDS}
    writer = Writer(place)
    try:
        writer.expect(b"> ")
        writer.write(b"raw\r")
        writer.expect(b"ctrl-d ends")
        writer.settle()
        for turn in range(2 if place.quick else 6):
            for count, values in times.items():
                crowd = Crowd(place, count)
                try:
                    for _ in range(BLOCK):  # the loop and the caches warm up
                        writer.echo()
                    blocks = (200 if turn else 50) // BLOCK
                    values += [writer.echo() for _ in range(BLOCK * blocks)]
                finally:
                    crowd.close()
    finally:
        writer.write(b"\x04exit 0\r")
        writer.close()
    return times


def _echo_rows(place: Place) -> list[Row]:
    pid_file = place.path / "people.pid"
    _verb(place, "create", "--bundle", place.inmate_bundle(NAME), "--pid-file", str(pid_file), NAME)
    try:
        _verb(place, "start", NAME)
        times = _echoes(place)
        await_end(int(pid_file.read_text()))
    finally:
        with contextlib.suppress(BenchError):
            _verb(place, "delete", "--force", NAME)
    rows = []
    alone = statistics.median(times[0])
    for count, values in times.items():
        p50, p99 = statistics.median(values), statistics.quantiles(values, n=100)[98]
        what = f"one-byte echo through `attach`, {count} watching, p50; p99"
        if count == max(CROWDS):
            ratio = p50 / alone
            goal = f"≤ {ECHO_GOAL:g} ×"
            rows.append(
                Row(
                    what,
                    f"{p50:.0f}; {p99:.0f} µs",
                    f"{alone:.0f} µs (nobody)",
                    f"{ratio:.2f}",
                    goal,
                    ratio <= ECHO_GOAL,
                )
            )
        else:
            rows.append(Row(what, f"{p50:.0f}; {p99:.0f} µs"))
    return rows


def _cat(sock: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cat"], stdin=sock.fileno(), stdout=subprocess.DEVNULL)


def _dd(path: Path, mebibytes: int) -> subprocess.Popen[bytes]:
    words = ["if=/dev/zero", f"of={path}", "bs=64k", f"count={mebibytes * 16}", "conv=notrunc", "status=none"]
    return subprocess.Popen(["dd", *words])


async def _fan_out(directory: Path, mebibytes: int, count: int) -> tuple[float, float]:
    """Returns megabytes a second and this process's CPU milliseconds a megabyte of the guest's."""
    path = directory / "con"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    source = FifoSource(open_fifo("con", at))
    os.close(at)
    total = mebibytes * _MIB
    hub = Hub(Journal.create("bench"), source, window=load(None).console.window_bytes, replay=total)
    clients: list[tuple[socket.socket, AttachSink, subprocess.Popen[bytes]]] = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        reader = _cat(theirs)
        theirs.close()
        sink = hub.attach(Outlet(Outgoing(ours)), start=0, rows=0, limit=2 * total, age=math.inf)
        sink.eager = False
        clients.append((ours, sink, reader))
    hub.start()
    begun, cpu = time.perf_counter(), time.process_time()
    writer = _dd(path, mebibytes)
    try:
        if not await hub.received(total, _PATIENCE):
            raise BenchError("the console stands still")
        async with asyncio.timeout(_PATIENCE):
            for _, sink, _ in clients:
                await sink.drained()
        taken, cpu = time.perf_counter() - begun, time.process_time() - cpu
        if any(sink.skipped for _, sink, _ in clients):
            raise BenchError("a client was skipped forward")
    finally:
        writer.kill()
        writer.wait()
        for ours, sink, reader in clients:
            hub.detach(sink)
            ours.close()
            reader.wait()
        hub.close()
    megabytes = total / 1e6
    return megabytes / taken, cpu * 1000 / megabytes


def _fan_out_rows(place: Place) -> list[Row]:
    directory = place.path / "people"
    directory.mkdir()
    results: dict[int, list[tuple[float, float]]] = {count: [] for count in CROWDS}
    for _ in range(2 if place.quick else 5):
        for count, values in results.items():
            values.append(asyncio.run(_fan_out(directory, 16 if place.quick else 64, count)))
    rows = []
    for count, values in results.items():
        rate, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        rows.append(Row(f"console bulk, {count} watching", f"{rate:.0f} MB/s; {cpu:.2f} ms CPU/MB"))
    return rows


def run(place: Place) -> list[Row]:
    """Measures echo and fan-out."""
    return _echo_rows(place) + _fan_out_rows(place)
