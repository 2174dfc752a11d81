# SPDX-License-Identifier: Apache-2.0
"""Shared-memory channels: their cost at rest, their speed, the time a byte takes. The guest is a C program."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.measure import BenchError
from bench.table import Row
from consoles.sources.shmem import ShmemSource

if TYPE_CHECKING:
    from bench.place import Place

#: percent of a CPU that one channel at rest may cost
IDLE_GOAL: Final = 1.0
_SHM: Final = Path("/dev/shm")
_MANY: Final = 50
_PATIENCE: Final = 30.0


class _Counter:
    """A listener that counts."""

    def __init__(self) -> None:
        self.count = 0
        self.news = asyncio.Event()

    def received(self, data: bytes) -> None:
        self.count += len(data)
        self.news.set()

    def gone(self, reason: str) -> None:
        raise BenchError(f"the channel is gone: {reason}")

    def back(self) -> None:
        raise BenchError("the channel was opened anew")

    async def until(self, count: int) -> None:
        async with asyncio.timeout(_PATIENCE):
            while self.count < count:
                self.news.clear()
                await self.news.wait()


class _Channels:
    """Channels on files of their own."""

    def __init__(self) -> None:
        self._open: list[tuple[Path, ShmemSource]] = []

    async def add(self, size: int) -> tuple[Path, ShmemSource, _Counter]:
        path = _SHM / f"runphi-bench-{os.getpid()}-{len(self._open)}"
        path.write_bytes(bytes(size))
        source, counter = ShmemSource(str(path), "bench", size), _Counter()
        self._open.append((path, source))
        await source.open(counter)
        return path, source, counter

    async def close(self) -> None:
        for path, source in self._open:
            await source.close()
            path.unlink(missing_ok=True)


async def _idle(count: int, seconds: float) -> float:
    """Percent of a CPU."""
    channels = _Channels()
    try:
        for _ in range(count):
            await channels.add(1 << 16)
        await asyncio.sleep(1)  # until all are at rest
        cpu = time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - cpu) / seconds * 100
    finally:
        await channels.close()


async def _bulk(peer: Path, size: int, total: int) -> tuple[float, float]:
    """Megabytes a second, and milliseconds of CPU a megabyte."""
    channels = _Channels()
    try:
        path, _, counter = await channels.add(size)
        begun, cpu = time.perf_counter(), time.process_time()
        process = await asyncio.create_subprocess_exec(peer, path, str(size), "send", str(total))
        await counter.until(total)
        taken, cpu = time.perf_counter() - begun, time.process_time() - cpu
        await process.wait()
        return total / 1e6 / taken, cpu * 1e9 / total
    finally:
        await channels.close()


async def _echo(peer: Path, count: int) -> list[float]:
    """Milliseconds of single bytes there and back, sorted."""
    channels = _Channels()
    try:
        path, source, counter = await channels.add(1 << 16)
        process = await asyncio.create_subprocess_exec(peer, path, str(1 << 16), "echo", str(count + 1))
        source.write(b"!")
        await counter.until(1)
        times = []
        for number in range(count):
            begun = time.perf_counter()
            source.write(b"x")
            await counter.until(number + 2)
            times.append((time.perf_counter() - begun) * 1000)
        await process.wait()
        return sorted(times)
    finally:
        await channels.close()


def run(place: Place) -> list[Row]:
    """Measures one after the other."""
    peer = place.path / "channel-peer"
    subprocess.run(["gcc", "-O2", "-o", peer, Path(__file__).with_name("channel_peer.c")], check=True)
    seconds, mebibytes, bytes_ = (2.0, 64, 200) if place.quick else (10.0, 512, 1000)
    rows = []
    for count in (1, _MANY):
        percent = asyncio.run(_idle(count, seconds))
        goal = (f"≤ {IDLE_GOAL:g} %", percent <= IDLE_GOAL) if count == 1 else ("-", None)
        rows.append(
            Row(f"{count} shared-memory channels at rest", f"{percent:.1f} % of a CPU", goal=goal[0], met=goal[1])
        )
    for size in (1 << 16, 1 << 20):
        rate, cpu = asyncio.run(_bulk(peer, size, mebibytes << 20))
        rows.append(Row(f"channel bulk, {size >> 10} KiB", f"{rate:.0f} MB/s, {cpu:.2f} ms CPU/MB"))
    times = asyncio.run(_echo(peer, bytes_))
    p99 = times[len(times) * 99 // 100]
    rows.append(Row("channel echo of one byte", f"p50 {statistics.median(times):.1f} ms, p99 {p99:.1f} ms"))
    return rows
