# SPDX-License-Identifier: Apache-2.0
"""A signal that stops ends the guest: by itself, or by its deadline, or at once where it cannot be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import anyio
import pytest

from backends.base import Abilities
from runphi_async.container.stopping import Stopping
from runphi_async.errors import BackendError
from runphi_async.oci.signals import Meaning
from runphi_async.testing.clock import FakeClock

if TYPE_CHECKING:
    from backends.base import Driver

#: a deadline that passes, and one that does not
SOON, NEVER = 5.0, 1000.0


class Guest:
    """A driver that behaves as it is told, and remembers what was done to it."""

    def __init__(self, *, takes: bool = False, stops: bool = False, fails: bool = False) -> None:
        self.takes, self.stops, self.fails = takes, stops, fails
        self.waited: float | None = None
        self.destroyed: list[int] = []
        self.ended = anyio.Event()

    @property
    def abilities(self) -> Abilities:
        return Abilities(signals=self, stops=self)

    async def deliver(self, signal: int) -> bool:
        if self.fails:
            raise BackendError("it does not listen")
        return self.takes

    async def stop(self) -> bool:
        return self.stops

    def unheard(self) -> float | None:
        return self.waited

    def destroy(self, number: int) -> None:
        self.destroyed.append(number)
        self.ended.set()


async def ask(guest: Guest, seconds: float, what: Meaning = Meaning.STOP, times: int = 1) -> None:
    """Send a signal, and let as much time pass as the first deadline has."""
    clock = FakeClock()
    stopping = Stopping("c1", seconds, guest.destroy, guest.ended, clock)
    async with anyio.create_task_group() as tasks:
        for _ in range(times):
            await stopping.deliver(cast("Driver", guest), tasks, 15, what)
        await anyio.wait_all_tasks_blocked()
        clock.advance(SOON)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


async def test_who_has_no_ear_is_destroyed_at_once() -> None:
    guest = Guest()
    await ask(guest, NEVER)
    assert guest.destroyed == [15]


async def test_who_can_be_asked_has_until_the_deadline() -> None:
    patient, late = Guest(stops=True), Guest(stops=True)
    await ask(patient, NEVER)
    assert patient.destroyed == []
    await ask(late, SOON)
    assert late.destroyed == [15]


async def test_who_has_taken_the_signal_may_live_on() -> None:
    guest = Guest(takes=True)
    await ask(guest, SOON)
    assert guest.destroyed == []


async def test_who_never_takes_the_signal_is_destroyed() -> None:
    guest = Guest(takes=True)
    guest.waited = 5.0
    await ask(guest, SOON)
    assert guest.destroyed == [15]


async def test_who_has_not_had_the_time_yet_is_left_alone() -> None:
    guest = Guest(takes=True)
    guest.waited = 5.0
    await ask(guest, NEVER)
    assert guest.destroyed == []


async def test_a_guest_that_cannot_be_reached_is_destroyed() -> None:
    guest = Guest(fails=True)
    await ask(guest, NEVER)
    assert guest.destroyed == [15]


async def test_any_other_signal_destroys_nobody() -> None:
    for guest in (Guest(), Guest(takes=True)):
        guest.waited = 5.0
        await ask(guest, SOON, Meaning.PASS)
        assert guest.destroyed == []
    with pytest.raises(ExceptionGroup):
        await ask(Guest(fails=True), SOON, Meaning.PASS)


async def test_many_signals_are_one_deadline() -> None:
    guest = Guest(takes=True)
    guest.waited = 5.0
    await ask(guest, SOON, times=50)
    assert guest.destroyed == [15]
