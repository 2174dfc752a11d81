# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.release debian12|debian13``: bin/quickstart and bin/test in a root of that release.

    [--core] [--at PATH] [--machine] [--run COMMAND] [quickstart|lint|unit|system|engine …] [-- pytest arguments]

Without names: quickstart, unit, system, engine. ``--core``: quickstart, and one guest of each kind under each engine.
quickstart begins with a Debian in which nothing was installed, the suites with what they install for themselves.
``--machine`` boots a machine of its own under QEMU, with cgroups of version 2, instead of a root on this kernel;
without names: quickstart --check, and the tests of cgroups.
"""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.release import machine
from tests.release.carried import CarryError
from tests.release.room import Room, copy_checkout
from tests.release.roots import RELEASES, STORE, Downloads, RootError, Roots, environment, say

if TYPE_CHECKING:
    from collections.abc import Sequence

SUITES: Final = ("lint", "unit", "system", "engine", "xen")
#: Where the copy of the checkout lies: only root reaches it there, and that must do.
PLACE: Final = "/root/runphi"
#: The tests that look closest at control groups.
CGROUPS: Final = "tests/unit/test_cgroup.py tests/unit/test_cgroup_v2.py"
#: Seconds for one try of the quickstart, with the installation of half a gigabyte of packages.
QUICKSTART_SECONDS: Final = 1800.0
#: Seconds for the suites together: several times what they need on two cores.
SUITES_SECONDS: Final = 7200.0
#: Seconds for a command that somebody asked for.
COMMAND_SECONDS: Final = 86400.0
#: The last line of bin/test.
TOTAL: Final = re.compile(rb"^(\d+) passed, (\d+) failed, (\d+) skipped$", re.MULTILINE)
#: How much of a run's output is searched for it.
TAIL: Final = 4096


class Step(NamedTuple):
    """One thing to do in a room of its own."""

    name: str
    #: begin with a Debian in which nothing was installed
    fresh: bool
    #: of bash, in the checkout
    command: str
    seconds: float


class Count(NamedTuple):
    """How many tests passed, failed, were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0


def on_machine() -> list[Step]:
    """Return what is to be done on a machine, in one go."""
    command = f"bin/quickstart --check && .venv/bin/python -m pytest -q {CGROUPS}"
    return [Step(command, False, command, SUITES_SECONDS)]


def steps(words: Sequence[str], core: bool, arguments: Sequence[str]) -> list[Step]:
    """Return what is to be done in rooms.

    :param arguments: for pytest.
    """
    found = []
    if "quickstart" in words or not words:
        names = ("bin/quickstart", "bin/quickstart --check")
        found += [Step(name, True, f"{name} </dev/null", QUICKSTART_SECONDS) for name in names]
    suites = [word for word in words if word in SUITES] or ([] if words else ["unit", "system", "engine"])
    if core:
        suites, arguments = ["engine"], ["-m", "core", *arguments]
    if suites:
        words = ["bin/test", *suites, *(["--", *arguments] if arguments else [])]
        found.append(Step(shlex.join(words), False, shlex.join(words), SUITES_SECONDS))
    return found


def count(tail: bytes, status: int) -> Count:
    """Return what a step's last words and its exit status come to: a step that counts nothing is one test."""
    totals = TOTAL.findall(tail)
    if not totals:
        return Count(passed=status == 0, failed=status != 0)
    passed, failed, skipped = map(int, totals[-1])
    return Count(passed, max(failed, int(status != 0)), skipped)


def perform(roots: Roots, step: Step, place: str | None) -> tuple[int, Count]:
    """Do one step; return its exit status and what it counted.

    :param place: where the copy of the checkout lies in the root; None: on a machine.
    """
    tail = b""

    def show(data: bytes) -> None:
        nonlocal tail
        tail = (tail + data)[-TAIL:]
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    if place is None:
        status = machine.run(roots, step.command, step.seconds, show)
        return status, count(tail, status)
    layers = roots.base() if step.fresh else roots.warm()
    with Room(layers, roots.release, STORE / "rooms") as room, Downloads(roots.store, room):
        copy_checkout(room.place(place))
        argv = ["/bin/bash", "-c", step.command]
        status = room.run(argv, environment(room), step.seconds, cwd=place, sink=show)
    return status, count(tail, status)


def main() -> int:
    """Return the first exit status that is not 0."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m tests.release", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("release", choices=RELEASES)
    parser.add_argument("words", nargs="*", metavar="suite", choices=["quickstart", *SUITES, []])
    parser.add_argument("--core", action="store_true", help="quickstart, and one guest of each kind under each engine")
    parser.add_argument("--at", default=PLACE, metavar="PATH", help=f"where the copy of the checkout lies ({PLACE})")
    parser.add_argument("--machine", action="store_true", help="boot a machine under QEMU, with cgroup v2 alone")
    parser.add_argument(
        "--run", metavar="COMMAND", help="run this by bash instead; with --fresh where nothing is installed"
    )
    parser.add_argument("--fresh", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(words[:split])
    if asked.machine and not (asked.words or asked.core):
        todo = on_machine()
    else:
        todo = steps(asked.words, asked.core, words[split + 1 :])
    if asked.run:
        todo = [Step(asked.run, asked.fresh, asked.run, COMMAND_SECONDS)]
    # bin/test ends us so when it is interrupted: the room must go, too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    roots = Roots(asked.release)
    counts, results = [], []
    try:
        for step in todo:
            say(f"{asked.release}: {step.name}")
            begun = time.monotonic()
            status, counted = perform(roots, step, None if asked.machine else asked.at)
            results.append((step.name, status, time.monotonic() - begun))
            counts.append(counted)
    except (RootError, CarryError) as exc:
        say(str(exc))
        print("0 passed, 1 failed, 0 skipped")
        return 1
    finally:
        roots.close()
    for name, status, seconds in results:
        say(f"{'ok    ' if status == 0 else 'FAILED'} {asked.release}: {name} ({seconds:.0f} s, status {status})")
    print("{} passed, {} failed, {} skipped".format(*map(sum, zip(*counts, strict=True))))
    return next((status for _, status, _ in results if status), 0)


if __name__ == "__main__":
    sys.exit(main())
