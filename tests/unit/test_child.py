# SPDX-License-Identifier: Apache-2.0
"""The VMM as drivers see it: a child of the init process, seen to end once its status is known, or never will be."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from runphi_async.lifeline import stub
from runphi_async.lifeline.child import StubChild
from tests.unit.consolekit import until
from tests.unit.stubkit import Life, living

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLEEP = ("/bin/sh", "-c", "exec sleep 1000")
LEAVE = ("/bin/sh", "-c", "exit 3")


class Driver:
    """What it calls back."""

    def __init__(self, directory: Path) -> None:
        self.ends = 0
        self.losses = 0
        self.child = StubChild(str(directory), self._ended, self._lost)

    def _ended(self) -> None:
        self.ends += 1

    def _lost(self) -> None:
        self.losses += 1


@contextlib.contextmanager
def driving(life: Life) -> Iterator[Driver]:
    driver = Driver(life.directory)
    os.set_blocking(life.bell, False)

    def rang() -> None:
        os.read(life.bell, 100)
        driver.child.rang()

    asyncio.get_running_loop().add_reader(life.bell, rang)
    try:
        yield driver
    finally:
        asyncio.get_running_loop().remove_reader(life.bell)
        driver.child.close()


async def test_an_end_is_known_with_its_status(tmp_path: Path) -> None:
    with living(tmp_path, stub.command(LEAVE, None)) as life, driving(life) as driver:
        await until(lambda: driver.ends > 0, "the end")
        assert driver.child.ended
        assert stub.read_status(str(tmp_path)) == 3
        assert driver.losses == 0
        await asyncio.to_thread(life.ended, b"0")


async def test_one_that_is_not_there_yet_is_killed_when_it_is(tmp_path: Path) -> None:
    with living(tmp_path, stub.command(SLEEP, None)) as life, driving(life) as driver:
        driver.child.kill(60.0)
        await until(lambda: driver.ends > 0, "the end")
        assert stub.read_status(str(tmp_path)) == 128 + 9
        assert driver.losses == 0
        await asyncio.to_thread(life.ended, b"0")


async def test_one_whose_parent_is_dead_is_lost_and_not_waited_for(tmp_path: Path) -> None:
    with living(tmp_path, stub.command(SLEEP, None)) as life, driving(life) as driver:
        await until(lambda: driver.child.hold() is not None, "the child")
        os.kill(life.pid, 9)
        os.waitpid(life.pid, 0)
        driver.child.kill()
        await until(lambda: driver.losses > 0, "the loss")
        assert (driver.ends, driver.losses) == (0, 1)
        assert not driver.child.ended


async def test_one_that_never_was_is_lost_once(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.child.kill(0.01)
    driver.child.kill(0.01)
    await until(lambda: driver.losses > 0, "the loss")
    assert (driver.child.begun, driver.losses) == (False, 1)


async def test_nobody_is_called_once_it_is_over(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.child.kill(0.01)
    driver.child.over()
    driver.child.kill(0.01)
    await asyncio.sleep(0.05)
    assert driver.losses == 0
    driver.child.close()


async def test_a_second_child_takes_the_place_of_the_first(tmp_path: Path) -> None:
    with living(tmp_path, stub.command(LEAVE, None, SLEEP)) as life, driving(life) as driver:
        await until(lambda: driver.ends > 0, "the first one's end")
        driver.child.renew()
        os.unlink(tmp_path / stub.VMM_PID)
        os.unlink(tmp_path / stub.VMM_STATUS)
        assert not driver.child.begun
        stub.say_again(str(tmp_path))
        await until(lambda: driver.child.hold() is not None, "the second one")
        assert not driver.child.ended
        driver.child.kill()
        await until(lambda: driver.child.ended, "its end")
        assert stub.read_status(str(tmp_path)) == 128 + 9
        await asyncio.to_thread(life.ended, b"0")
