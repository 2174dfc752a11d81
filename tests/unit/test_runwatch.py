# SPDX-License-Identifier: Apache-2.0
"""The watch over one QEMU that does not answer: what it has said of its end counts, whatever it does then."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from backends.qemu import watch
from backends.qemu.heard import Heard
from backends.qemu.settings import InitSeconds
from backends.qemu.watch import RunWatch
from runphi_async.aio.owned import OwnedTasks
from runphi_async.errors import BackendError
from runphi_async.partition.spec import GuestKind
from tests.unit.consolekit import until

if TYPE_CHECKING:
    import pytest

    from backends.qemu.second import SecondTry
    from backends.qemu.vmm import Vmm


class Silent:
    """A QEMU that runs and answers nothing; its own monitor as well."""

    name = "c1"
    plan = SimpleNamespace(kind=GuestKind.INMATE, accel="tcg")
    told = None
    second = False
    is_over = False
    is_monitored = True
    ended = False

    def __init__(self) -> None:
        self.heard = Heard()
        self.monitor = self
        self.asked = 0
        self.destroyed = 0

    async def execute(self, command: str, *, patience: float) -> object:
        self.asked += 1
        raise BackendError(f"cannot run {command!r}: no answer")

    def destroy(self) -> None:
        self.destroyed += 1


class Failures(list[str]):
    def __call__(self, task: str, exc: BaseException) -> None:
        self.append(f"{task}: {exc!r}")


def watching(driver: Silent) -> RunWatch:
    return RunWatch(cast("Vmm", driver), cast("SecondTry", None), InitSeconds())


async def test_one_that_said_it_ends_is_helped_though_it_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU may hang on its way out, with its monitor gone already: nobody else would ever end the container."""
    monkeypatch.setattr(watch, "ENDING_PATIENCE", 0.02)
    driver, failures = Silent(), Failures()
    tasks = OwnedTasks(failures)
    run = watching(driver)
    run.start(tasks)
    run.heard(watch.ENDS)
    await until(lambda: driver.destroyed, "help")
    await asyncio.sleep(0.05)
    assert (driver.destroyed, failures) == (1, [])
    await run.close()
    await tasks.close()


async def test_one_that_said_nothing_of_an_end_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full console stops QEMU from answering, and its guest is there all the same."""
    monkeypatch.setattr(watch, "ENDING_PATIENCE", 0.02)
    driver, failures = Silent(), Failures()
    tasks = OwnedTasks(failures)
    run = watching(driver)
    run.start(tasks)
    run.heard("STOP")
    await until(lambda: driver.asked, "a look")
    await asyncio.sleep(0.05)
    assert (driver.destroyed, failures) == (0, [])
    await run.close()
    await tasks.close()
