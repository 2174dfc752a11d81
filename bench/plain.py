# SPDX-License-Identifier: Apache-2.0
"""What an ordinary container pays for the runtime that stands before runc: each call with and without it."""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING, Final

from bench.measure import in_turns, timed
from bench.table import Row
from bench.verbs import Cycle

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.place import Place

#: what any call of a Python program costs
INTERPRETER: Final = ["/usr/bin/python3", "-c", "pass"]
GOAL: Final = 1.0


def _row(what: str, ours: float, runc: float, interpreter: float) -> Row:
    """A row of what a call costs beyond runc's own time."""
    added = ours - runc
    return Row(
        f"ordinary container: {what}, beyond runc's {runc:.1f} ms",
        f"{added:.1f} ms",
        f"{interpreter:.1f} ms (python3 -c pass)",
        f"{added / interpreter:.2f}",
        f"≤ {GOAL:g} ×",
        added <= GOAL * interpreter,
    )


def run(place: Place) -> list[Row]:
    """Measures the verbs of an ordinary container."""
    count = 15 if place.quick else 60
    root = ["--root", str(place.path / "ordinary")]
    ours = Cycle(place, [place.runphi, *root], "ours", place.busybox_bundle("ours"))
    runc = Cycle(place, [place.runc, *root], "runc", place.busybox_bundle("runc"))
    lasting = Cycle(place, [place.runc, *root], "lasting", place.busybox_bundle("lasting"))
    pid = lasting.create()
    try:
        lasting.verb("start", "lasting")
        candidates: dict[str, Callable[[], float]] = {"interpreter": functools.partial(timed, INTERPRETER, place.env)}
        for name, runtime in (("ours", place.runphi), ("runc", place.runc)):
            candidates[name] = functools.partial(timed, [runtime, *root, "state", "lasting"], place.env)
        state = in_turns(count, candidates)
        in_turns(max(6, count // 2), {"ours": ours, "runc": runc})
    finally:
        lasting.end(pid)
    interpreter = state["interpreter"]
    rows = [_row("`state`", state["ours"], state["runc"], interpreter)]
    for verb in ("create", "start", "kill", "delete"):
        added, without = (statistics.median(cycle.verbs[verb][1:]) for cycle in (ours, runc))
        rows.append(_row(f"`{verb}`", added, without, interpreter))
    return rows
