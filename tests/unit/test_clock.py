# SPDX-License-Identifier: Apache-2.0
"""The clock that is moved by hand does what the machine's own does, when it is told to."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import anyio
import pytest

from runphi_async.host.clock import SYSTEM
from runphi_async.testing.clock import FakeClock

if TYPE_CHECKING:
    from runphi_async.host.clock import Timekeeper


def test_the_machines_own() -> None:
    assert abs(SYSTEM.wall() - time.time()) < 60
    assert abs(SYSTEM.monotonic() - time.monotonic()) < 60


def test_time_stands_still_until_it_is_moved() -> None:
    clock = FakeClock(wall=5.0)
    assert (clock.wall(), clock.monotonic()) == (5.0, 0.0)
    clock.advance(2.5)
    assert (clock.wall(), clock.monotonic()) == (7.5, 2.5)


async def passed(clock: Timekeeper, seconds: float) -> None:
    """Let seconds pass, or wait for them."""
    if isinstance(clock, FakeClock):
        await asyncio.sleep(0)  # whoever waits has begun to
        clock.advance(seconds)


@pytest.mark.parametrize("clock", [SYSTEM, FakeClock()], ids=["system", "fake"])
async def test_a_block_is_left_when_its_time_is_over(clock: Timekeeper) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(passed, clock, 0.01)
        with clock.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        with clock.move_on_after(1000) as scope:
            await asyncio.sleep(0)
        assert not scope.cancel_called


@pytest.mark.parametrize("clock", [SYSTEM, FakeClock()], ids=["system", "fake"])
async def test_who_sleeps_wakes(clock: Timekeeper) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(passed, clock, 0.01)
        await clock.sleep(0.01)


@pytest.mark.parametrize("clock", [SYSTEM, FakeClock()], ids=["system", "fake"])
async def test_a_shield_lets_only_the_time_through(clock: Timekeeper) -> None:
    left = False
    with anyio.CancelScope() as outer:
        outer.cancel()
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope(shield=True):
                tasks.start_soon(passed, clock, 0.01)
                with clock.move_on_after(0.01, shield=True) as scope:
                    if isinstance(clock, FakeClock):
                        clock.advance(0.01)
                    await anyio.sleep_forever()
                left = scope.cancelled_caught
    assert left


async def test_who_waits_is_seen() -> None:
    clock = FakeClock()
    assert clock.waits == []
    with clock.move_on_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clock.sleep, 3)
            await asyncio.sleep(0)
            assert clock.waits == [3, 5]
            clock.advance(1)
            assert clock.waits == [2, 4]
            clock.advance(2)
        assert clock.waits == [2]
    assert clock.waits == []
