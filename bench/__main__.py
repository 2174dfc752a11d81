# SPDX-License-Identifier: Apache-2.0
"""``python -m bench BUILT [--quick] [--write] [--only CASE]``: bin/bench builds what it needs and calls this."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import bulk, channels, engine, logs, many, people, plain, table, verbs
from bench.measure import BenchError
from bench.place import Place
from runphi_async.testing.containerd import CHECKOUT, EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

CASES: Final[dict[str, Callable[[Place], list[table.Row]]]] = {
    "verbs": verbs.run,
    "plain": plain.run,
    "boot": engine.boot,
    "echo": engine.echo,
    "bulk": bulk.run,
    "logs": logs.run,
    "channels": channels.run,
    "many": many.run,
    "people": people.run,
}
DOCUMENT: Final = CHECKOUT / "docs" / "performance.md"


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Runs the cases; returns 1 when one could not be measured. A goal that is not met is no failure."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("built", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", action="append", choices=sorted(CASES), metavar="CASE")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write keeps the whole table: leave --only out")
    signal.signal(signal.SIGTERM, _interrupted)
    load, rows, failed = os.getloadavg()[0], [], False
    place = Place(options.built, quick=options.quick)
    try:
        for name in options.only or CASES:
            begun = time.monotonic()
            try:
                rows += CASES[name](place)
            except (BenchError, EngineError, OSError, subprocess.SubprocessError) as exc:
                failed = True
                print(f"bench: cannot measure {name}: {exc}", file=sys.stderr)
            print(f"[{name} took {time.monotonic() - begun:.0f} s]", file=sys.stderr)
    except KeyboardInterrupt:
        print("bench: interrupted, cleaning up", file=sys.stderr)
        failed = True
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for thing in place.close():
            print(f"bench: was left over and is removed now: {thing}", file=sys.stderr)
    note = table.circumstances(options.quick, load)
    print(f"\n{note}\n\n{table.render(rows)}")
    if options.write and not failed:
        table.write(DOCUMENT, note, table.render(rows))
        print(f"written to {DOCUMENT}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
