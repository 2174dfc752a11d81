# SPDX-License-Identifier: Apache-2.0
"""A guest that prints as fast as it can into a log of Kubernetes' format: conmon's k8s-file against our ``cri``.

Both get the same bytes from ``cat`` through a pipe and write the same kind of lines into the same directory, in turns.
"""

from __future__ import annotations

import asyncio
import functools
import os
import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.configured import load
from bench.measure import BenchError
from bench.table import Row
from consoles.streams.fifo import FifoSource, open_fifo
from consoles.streams.hub import Hub
from consoles.streams.journal import Journal
from consoles.streams.sinks import logfile
from runphi_async.aio import allocator

if TYPE_CHECKING:
    import resource
    from collections.abc import Callable
    from pathlib import Path

    from bench.place import Place

_MIB: Final = 1 << 20
_PATIENCE: Final = 30.0
#: What a guest prints: a name, and one mebibyte of it.
TEXTS: Final = {
    "80-byte lines": (b"x" * 79 + b"\n") * (_MIB // 80 + 1),
    "no newlines": b"x" * _MIB,
}
#: What conmon calls instead of a runtime: the container's process waits for the word to begin.
_RUNTIME: Final = """#!/bin/sh
while [ $# -gt 1 ]; do
    [ "$1" = --pid-file ] && pid_file=$2
    shift
done
sh -c 'read -r _ <"$0"; exec cat "$1"' "{go}" "{data}" &
echo $! >"$pid_file"
"""


class Done(NamedTuple):
    """Megabytes a second, and milliseconds of CPU a megabyte."""

    rate: float
    cpu: float


def _begin(go: Path) -> None:
    fd = os.open(go, os.O_WRONLY)
    os.write(fd, b"go\n")
    os.close(fd)


def _conmon(directory: Path, data: Path) -> Done:
    """One conmon, from the container's first byte to conmon's own end."""
    go, pid_file, log = directory / "go", directory / "conmon.pid", directory / "conmon.log"
    for path in (go, pid_file, log, directory / "container.pid"):
        path.unlink(missing_ok=True)
    os.mkfifo(go)
    runtime = directory / "runtime"
    runtime.write_text(_RUNTIME.format(go=go, data=data))
    runtime.chmod(0o755)
    argv: list[str | Path] = [
        "conmon",
        "--api-version",
        "1",
        "-c",
        "bench",
        "-u",
        "0123456789abcdef",
        "-n",
        "bench",
        "-b",
        directory,
    ]
    argv += ["-r", runtime, "-p", directory / "container.pid", "-P", pid_file, "-l", f"k8s-file:{log}"]
    argv += ["--exit-dir", directory, "--socket-dir-path", directory, "--full-attach", "--no-sync-log"]
    started = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if started.returncode:
        raise BenchError(f"conmon does not start: {started.stderr.strip()}")
    pid = int(pid_file.read_text())
    begun = time.perf_counter()
    _begin(go)
    _, status, used = os.wait4(pid, 0)  # its parent has ended, and orphans become our children
    taken = time.perf_counter() - begun
    size = data.stat().st_size
    if status or log.stat().st_size < size:
        raise BenchError(f"conmon ended with {status} and a log of {log.stat().st_size} bytes")
    log.unlink()
    return Done(size / 1e6 / taken, _milliseconds(used) / (size / 1e6))


def _milliseconds(used: resource.struct_rusage) -> float:
    return (used.ru_utime + used.ru_stime) * 1000


def _start(words: list[str | Path]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdin=subprocess.DEVNULL)


async def _ours(directory: Path, data: Path, size: int) -> Done:
    """One console whose only reader is a cri log, from the first byte to the last one in the log."""
    limits = load(None)
    path, go = directory / "con", directory / "go"
    for name in (path, go):
        name.unlink(missing_ok=True)
        os.mkfifo(name)
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    source = FifoSource(open_fifo("con", at))
    os.close(at)
    journal = Journal.create("bench")
    hub = Hub(journal, source, window=limits.console.window_bytes, replay=limits.console.replay_bytes)
    errors = list[OSError]()
    log = logfile.open_log(
        journal,
        "cri",
        logfile.Place(str(directory), "ours.cri.log"),
        sidecar=f"/dev/shm/runphi-bench-{os.getpid()}",
        progress=hub.progress,
        on_error=errors.append,
    )
    hub.add_sink(log)
    task = asyncio.create_task(log.run())
    hub.start()
    words: list[str | Path] = ["sh", "-c", 'read -r _ <"$0"; exec cat "$1" >"$2"', go, data, path]
    writer = _start(words)
    await asyncio.to_thread(_begin, go)
    begun, cpu = time.perf_counter(), time.process_time()
    try:
        await asyncio.to_thread(writer.wait, _PATIENCE)  # waiting for bytes would be work that only a benchmark has
        whole = await hub.received(size, _PATIENCE)
        if not whole or not await hub.drain(_PATIENCE):
            raise BenchError(f"the log stands still after {journal.tail} of {size} bytes")
        taken, cpu = time.perf_counter() - begun, time.process_time() - cpu
    finally:
        await log.close()
        await task
        hub.close()
        writer.kill()
        writer.wait()
        os.unlink(f"/dev/shm/runphi-bench-{os.getpid()}")
    written = directory / "ours.cri.log"
    if errors or log.lost or written.stat().st_size < size:
        raise BenchError(f"the log lost {log.lost} bytes: {errors}")
    written.unlink()
    return Done(size / 1e6 / taken, cpu * 1000 / (size / 1e6))


def _measure(directory: Path, data: Path) -> Done:
    return asyncio.run(_ours(directory, data, data.stat().st_size))


def run(place: Place) -> list[Row]:
    """Measures both kinds of text."""
    directory = place.path / "logs"
    directory.mkdir()
    allocator.keep_blocks()  # as the supervisor does
    rows: list[Row] = []
    for what, text in TEXTS.items():
        data = directory / "data"
        data.write_bytes(text * (96 if place.quick else 256))
        candidates: dict[str, Callable[[], Done]] = {
            "ours": functools.partial(_measure, directory, data),
            "conmon": functools.partial(_conmon, directory, data),
        }
        results: dict[str, list[Done]] = {name: [] for name in candidates}
        for turn in range(4 if place.quick else 11):
            for name, candidate in candidates.items():
                done = candidate()
                if turn:
                    results[name].append(done)
        data.unlink()
        rows += _rows(what, results["ours"], results["conmon"])
    return rows


def _rows(what: str, ours: list[Done], conmon: list[Done]) -> list[Row]:
    rate, cpu = (statistics.median(column) for column in zip(*ours, strict=True))
    their_rate, their_cpu = (statistics.median(column) for column in zip(*conmon, strict=True))
    return [
        Row(
            f"`cri` log, {what}",
            f"{rate:.0f} MB/s",
            f"{their_rate:.0f} MB/s (conmon)",
            f"{rate / their_rate:.2f}",
            "≥ 1 ×",
            rate >= their_rate,
        ),
        Row(
            "its CPU time",
            f"{cpu:.2f} ms/MB",
            f"{their_cpu:.2f} ms/MB (conmon)",
            f"{cpu / their_cpu:.2f}",
            "≤ 1 ×",
            cpu <= their_cpu,
        ),
    ]
