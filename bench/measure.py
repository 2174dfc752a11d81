# SPDX-License-Identifier: Apache-2.0
"""Clocks: how long a command takes, in turns with what it is compared with."""

from __future__ import annotations

import os
import signal
import statistics
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NULL: Final = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
_DEFAULT: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class BenchError(Exception):
    """Raised when something that is measured does not work."""


def timed(argv: list[str], env: Mapping[str, str]) -> float:
    """Runs a command on /dev/null; returns the milliseconds from before its start to its end."""
    begun = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, env, file_actions=_NULL, setsigdef=_DEFAULT)
    _, status = os.waitpid(pid, 0)
    taken = time.perf_counter() - begun
    if status:
        raise BenchError(f"{' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}")
    return taken * 1000


def in_turns(count: int, candidates: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Measures A B A B, so that drift hits all alike; returns the medians. The first turn is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(count + 1):
        for name, candidate in candidates.items():
            taken = candidate()
            if turn:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}
