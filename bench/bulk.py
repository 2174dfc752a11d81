# SPDX-License-Identifier: Apache-2.0
"""A guest that prints as fast as it can: a writer on a FIFO, the console hub, a reader of the engine's pipe."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Final

from backends.configured import load
from bench.measure import BenchError
from bench.table import Row
from consoles.streams.fifo import FifoSource, open_fifo
from consoles.streams.hub import Hub
from consoles.streams.journal import Journal
from consoles.streams.sinks import logfile
from consoles.streams.sinks.stdio import StdioSink

if TYPE_CHECKING:
    from pathlib import Path

    from bench.place import Place

GOALS: Final = {False: 400.0, True: 200.0}
_MIB: Final = 1 << 20
_PATIENCE: Final = 20.0


def _dd(*words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["dd", *words, "bs=256k", "status=none"], stdin=stdin)


async def _copy(directory: Path, mebibytes: int, *, logged: bool) -> tuple[float, float]:
    """Moves that much; returns megabytes a second and milliseconds of this process's CPU a megabyte."""
    limits = load(None)
    path = directory / "con"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    source = FifoSource(open_fifo("con", at))
    os.close(at)
    # the engine's pipe has its ordinary size
    reader, out = os.pipe()
    os.set_blocking(out, False)
    journal = Journal.create("bench")
    hub = Hub(journal, source, window=limits.console.window_bytes, replay=limits.console.replay_bytes)
    stdio = StdioSink(journal, journal.cursor(), out, hub.progress)
    hub.add_sink(stdio)
    log, task, errors = None, None, list[OSError]()
    if logged:
        where = logfile.Place(str(directory / "log"), logfile.LOG, limits.log.max_bytes, limits.log.max_files)
        log = logfile.open_log(
            journal, "raw", where, cursor=journal.cursor(), progress=hub.progress, on_error=errors.append
        )
        hub.add_sink(log)
        task = asyncio.create_task(log.run())
    hub.start()
    taker = _dd("of=/dev/null", stdin=reader)
    os.close(reader)
    total = mebibytes * _MIB
    begun, cpu = time.perf_counter(), time.process_time()
    writer = _dd("if=/dev/zero", f"of={path}", f"count={mebibytes * 4}", "conv=notrunc")
    try:
        whole = await hub.received(total, _PATIENCE)
        if log is not None:
            log.hurry()
        if not whole or not await hub.drain(_PATIENCE):
            raise BenchError(f"the console stands still after {journal.tail} of {total} bytes")
        taken, cpu = time.perf_counter() - begun, time.process_time() - cpu
    finally:
        stdio.close()
        if log is not None and task is not None:
            await log.close()
            await task
        hub.close()
        writer.kill()
        writer.wait()
        taker.wait()
    if errors or stdio.broken not in (None, -1):
        raise BenchError(f"the console lost bytes: {errors or stdio.broken}")
    megabytes = total / 1e6
    return megabytes / taken, cpu * 1000 / megabytes


def run(place: Place) -> list[Row]:
    """Measures with and without a log, in turns."""
    directory = place.path / "bulk"
    directory.mkdir()
    results: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for turn in range(4 if place.quick else 11):
        for logged, values in results.items():
            done = asyncio.run(_copy(directory, 256 if place.quick else 512, logged=logged))
            if turn:
                values.append(done)
    rows = []
    for logged, values in results.items():
        rate, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        what = f"console bulk, stdio{' and log' if logged else ''}"
        goal = GOALS[logged]
        rows.append(Row(what, f"{rate:.0f} MB/s", goal=f"≥ {goal:g} MB/s", met=rate >= goal))
        rows.append(Row("its CPU time", f"{cpu:.2f} ms/MB"))
    return rows
