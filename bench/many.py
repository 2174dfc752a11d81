# SPDX-License-Identifier: Apache-2.0
"""Fifty guests started at once by nothing but the runtime: errors, time, memory, and rest when nothing happens."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.measure import BenchError, timed
from bench.place import SMALLEST, await_end
from bench.table import Row

if TYPE_CHECKING:
    from bench.place import Place

COUNT: Final = 50
PSS_GOAL: Final = 1.5
#: "≈ 0": a hundredth of one CPU
IDLE_GOAL: Final = 1.0
_WATCH: Final = 5.0
_PATIENCE: Final = 120.0
_MIB: Final = 1 << 20


def pss(pid: int) -> int:
    """A process's proportional share of memory, in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise BenchError(f"process {pid} has no memory")


def cpu_ms(pid: int) -> float:
    """CPU time of all threads of a process, in milliseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


class Fleet:
    """Fifty containers, each with a pipe as its console."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._bundles = {f"m{number}": place.inmate_bundle(f"m{number}", SMALLEST) for number in range(COUNT)}
        self._readers: list[int] = []
        self.pids: dict[str, int] = {}
        self.errors: list[str] = []

    def start(self) -> tuple[float, float]:
        """Starts all; returns the seconds until the last verb answered and until the last guest spoke."""
        begun = time.perf_counter()
        with ThreadPoolExecutor(COUNT) as threads:
            list(threads.map(self._start, self._bundles))
        answered = time.perf_counter() - begun
        silent = set(self._readers)
        while silent and time.perf_counter() - begun < _PATIENCE:
            silent -= set(select.select(list(silent), [], [], 1.0)[0])
        if silent:
            self.errors.append(f"{len(silent)} guests say nothing")
        return answered, time.perf_counter() - begun

    def _start(self, name: str) -> None:
        reader, writer = os.pipe()
        pid_file = self._place.path / f"{name}.pid"
        create = [self._place.runphi, "create", "--bundle", self._bundles[name], "--pid-file", str(pid_file), name]
        try:
            for words, out in ((create, writer), ([self._place.runphi, "start", name], subprocess.DEVNULL)):
                done = subprocess.run(
                    words,
                    env=self._place.env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    # the container's own stderr is create's: a pipe here would wait for the container's end
                    stderr=out,
                    check=False,
                )
                if done.returncode:
                    raise BenchError(f"{words[1]} {name} ended with {done.returncode}")
            self.pids[name] = int(pid_file.read_text())
        except (BenchError, OSError, ValueError) as exc:
            self.errors.append(str(exc))
        finally:
            os.close(writer)
        self._readers.append(reader)

    def stop(self) -> float:
        """Kills and deletes all; returns the seconds that took."""
        begun = time.perf_counter()
        with ThreadPoolExecutor(COUNT) as threads:
            list(threads.map(self._stop, self.pids.items()))
        for reader in self._readers:
            os.close(reader)
        return time.perf_counter() - begun

    def _stop(self, item: tuple[str, int]) -> None:
        name, pid = item
        with contextlib.suppress(ProcessLookupError):
            try:
                timed([self._place.runphi, "kill", name, "KILL"], self._place.env)
                await_end(pid)
                timed([self._place.runphi, "delete", name], self._place.env)
            except BenchError as exc:
                self.errors.append(str(exc))


def run(place: Place) -> list[Row]:
    """Measures the fleet."""
    timed([place.runphi, "list"], place.env)
    supervisor = int((place.engine.run_dir / "supervisor.pid").read_text())
    before = pss(supervisor)
    fleet = Fleet(place)
    try:
        answered, spoken = fleet.start()
        time.sleep(1.0)
        held = pss(supervisor)
        stubs = sum(pss(pid) for pid in fleet.pids.values())
        cpu = cpu_ms(supervisor)
        time.sleep(_WATCH)
        idle = (cpu_ms(supervisor) - cpu) / _WATCH / 10
    finally:
        stopped = fleet.stop()
    each = (held + stubs) / COUNT / _MIB
    return [
        Row(f"{COUNT} guests at once: errors", str(len(fleet.errors)), goal="0", met=not fleet.errors),
        Row("until all verbs answered; until all guests spoke", f"{answered:.1f} s; {spoken:.1f} s"),
        Row("kill, wait and delete of all", f"{stopped:.1f} s"),
        Row("supervisor's memory (PSS) before; with them", f"{before / _MIB:.1f} MiB; {held / _MIB:.1f} MiB"),
        Row("of one init stub", f"{stubs / COUNT / _MIB:.2f} MiB"),
        Row("per container outside the VMM", f"{each:.2f} MiB", goal=f"≤ {PSS_GOAL:g} MiB", met=each <= PSS_GOAL),
        Row(
            f"supervisor's CPU over {_WATCH:g} s of silence",
            f"{idle:.2f} %",
            goal=f"≈ 0 (≤ {IDLE_GOAL:g} %)",
            met=idle <= IDLE_GOAL,
        ),
        *(Row("error", text) for text in fleet.errors[:3]),
    ]
