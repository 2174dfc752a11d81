# SPDX-License-Identifier: Apache-2.0
"""The watch over all cells: whoever watches hears of it when it fails, for nobody else would end the container."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from backends.jailhouse.sysfs import View
from backends.jailhouse.watcher import Look, Watcher
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

EMPTY = View(enabled=True, cells=())


class Board:
    """Answers in turn, with the last one for ever."""

    def __init__(self, answers: Sequence[View | Exception]) -> None:
        self._answers = list(answers)

    async def look(self) -> View:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Container:
    """One that watches."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.views: list[View | None] = []
        self.failures: list[BaseException] = []
        self.heard = asyncio.Event()
        self._trouble = trouble

    def look(self) -> Look:
        return Look(self._on_view, self._on_failure)

    def _on_view(self, view: View | None) -> None:
        self.views.append(view)
        self.heard.set()
        if self._trouble is not None:
            raise self._trouble

    def _on_failure(self, exc: BaseException) -> None:
        self.failures.append(exc)
        self.heard.set()

    async def hears(self) -> None:
        self.heard.clear()
        async with asyncio.timeout(5):
            await self.heard.wait()


async def test_looking_that_fails_is_told_to_all_once() -> None:
    mistake = RuntimeError("not thought of")
    watcher = Watcher(Board([EMPTY, mistake]).look)
    first, second = Container(), Container()
    watcher.watch("c1", first.look())
    watcher.watch("c2", second.look())
    await first.hears()
    await first.hears()
    assert first.failures == second.failures == [mistake]
    assert first.views == second.views == [EMPTY]


async def test_who_comes_later_is_looked_after_again() -> None:
    watcher = Watcher(Board([RuntimeError("not thought of"), EMPTY]).look)
    first, second = Container(), Container()
    watcher.watch("c1", first.look())
    await first.hears()
    watcher.watch("c2", second.look())
    await second.hears()
    assert (first.views, second.views) == ([], [EMPTY])
    watcher.unwatch("c2")


async def test_one_containers_trouble_is_its_own() -> None:
    mistake = RuntimeError("not thought of")
    watcher = Watcher(Board([EMPTY]).look)
    bad, good = Container(mistake), Container()
    watcher.watch("bad", bad.look())
    watcher.watch("good", good.look())
    await good.hears()
    await good.hears()
    assert bad.failures == [mistake]
    assert (len(bad.views), good.failures) == (1, [])
    watcher.unwatch("good")


async def test_a_board_that_does_not_answer_is_no_mistake() -> None:
    watcher = Watcher(Board([BackendError("no answer")]).look)
    only = Container()
    watcher.watch("c1", only.look())
    await only.hears()
    assert (only.views[0], only.failures) == (None, [])
    watcher.unwatch("c1")
