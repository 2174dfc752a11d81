# SPDX-License-Identifier: Apache-2.0
"""Tasks with an owner, and the drivers' ends of guests that hang on them."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Final

from backends.base import Told
from backends.ending import Ending
from runphi_async.aio.owned import OwnedTasks

ROOT: Final = Path(__file__).resolve().parents[2]
#: programs that wait themselves for what they start, in a block of code
PROGRAMS: Final = {"accel/linuxproof.py", "accel/cache.py"}


class Owner:
    def __init__(self) -> None:
        self.failures: list[tuple[str, str]] = []
        self.tasks = OwnedTasks(lambda name, exc: self.failures.append((name, str(exc))))


async def fails() -> None:
    await asyncio.sleep(0)
    raise RuntimeError("not thought of")


async def lives() -> None:
    await asyncio.Event().wait()


async def test_a_failure_is_told_once_with_the_name() -> None:
    owner = Owner()
    owner.tasks.start(lives(), "good one")
    task = owner.tasks.start(fails(), "bad one")
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert owner.failures == [("bad one", "not thought of")]
    await owner.tasks.close()
    assert len(owner.failures) == 1


async def test_results_and_early_stops_are_no_failures() -> None:
    owner = Owner()

    async def answer() -> int:
        return 42

    assert await owner.tasks.start(answer(), "answer") == 42
    stopped = owner.tasks.start(lives(), "stopped")
    stopped.cancel()
    await asyncio.wait({stopped})
    await asyncio.sleep(0)
    assert owner.failures == []


async def test_closing_ends_everything_but_the_one_who_closes() -> None:
    owner = Owner()
    other = owner.tasks.start(lives(), "other")
    closing = owner.tasks.start(owner.tasks.close(), "closing")
    await closing
    assert other.cancelled()
    await owner.tasks.close()  # nothing is left, and that is no trouble


async def test_a_failure_on_the_way_out_is_told_as_well() -> None:
    owner = Owner()

    async def clumsy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("cannot let go")

    owner.tasks.start(clumsy(), "clumsy")
    await asyncio.sleep(0)
    await owner.tasks.close()
    await asyncio.sleep(0)
    assert owner.failures == [("clumsy", "cannot let go")]


def told(ends: list[int]) -> Told:
    return Told(lambda: ends.append(1), lambda printed: None, lambda text: None)


def test_an_end_is_told_once() -> None:
    ends: list[int] = []
    ending = Ending()
    assert not ending.once(), "nobody attends"
    ending.attend(told(ends))
    assert ending.once()
    assert not ending.once()
    assert ends == [1]
    ending.attend(told(ends))
    ending.forget()
    assert not ending.once()
    assert ends == [1]


def test_the_first_failure_is_the_reason() -> None:
    ending = Ending()
    assert ending.verdict() is None
    ending.broke("watch", RuntimeError("first"))
    ending.broke("telling", RuntimeError("second"))
    assert ending.verdict() == (125, "internal error in the watch: RuntimeError('first')")


def test_backends_start_no_task_without_an_owner() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "backends").rglob("*.py"))
        if "/".join(path.parts[-2:]) not in PROGRAMS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "create_task"
    ]
    assert bare == []
