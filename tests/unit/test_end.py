# SPDX-License-Identifier: Apache-2.0
"""The end of a container is guaranteed, and nobody else's: whatever raises, the engine hears a code, others live on."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import anyio
import pytest

from backends.base import Abilities
from runphi_async.container.ending import Settlement
from runphi_async.container.running import END_PATIENCE, OVERDUE
from runphi_async.record.lifecycle import Event, Status
from runphi_async.terminals.console import Console
from runphi_async.testing.backend import FakeDriver
from runphi_async.testing.clock import FakeClock
from tests.unit.clikit import answer
from tests.unit.consolekit import until
from tests.unit.containerkit import House, held, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from runphi_async.container.container import Container
    from runphi_async.container.ending import EndStep
    from runphi_async.record.store import Record


class Full:
    """A disk without room: what a write says of it."""

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "state.json")


class Deaf:
    """Somebody in a guest who can be given a signal, of whom nobody can tell what became of it."""

    async def deliver(self, signal: int) -> bool:
        return True

    def unheard(self) -> float | None:
        return fails()


def fails(*_: object, **__: object) -> NoReturn:
    raise ZeroDivisionError("nobody thought of this")


async def fails_later(*_: object, **__: object) -> NoReturn:
    raise ZeroDivisionError("nobody thought of this")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[House]:
    async with held(tmp_path) as made:
        yield made


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def timeless(tmp_path: Path, clock: FakeClock) -> AsyncIterator[House]:
    """A house in which no time passes but by ``clock``."""
    async with held(tmp_path, clock) as made:
        yield made


async def running(place: House, name: str = "c1") -> Container:
    guest = await place.create(name)
    await guest.start()
    return guest


async def check(place: House, guest: Container, other: Container, code: int, reason: str) -> None:
    """The engine heard the code, the state says why, the other one lives on, and both can be deleted."""
    await settled(guest)
    name = guest.record.name
    assert await place.said(name) == code
    call = await answer(place.supervisor, "--root", place.root, "state", name)
    assert '"status": "stopped"' in call.said(b"o") or '"status":"stopped"' in call.said(b"o")
    assert guest.record.exit_code == code
    assert reason in (guest.record.reason or "")
    assert other.record.status is Status.RUNNING
    assert (await answer(place.supervisor, "--root", place.root, "pause", "other")).status == 0
    assert (await answer(place.supervisor, "--root", place.root, "resume", "other")).status == 0
    for gone in (name, "other"):
        deleted = await answer(place.supervisor, "--root", place.root, "delete", "--force", gone)
        assert (deleted.status, deleted.frames[:-1]) == (0, [])
    assert os.listdir(place.path / "run") == []


async def test_a_full_disk_keeps_nobody_from_ending(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    other, guest = await running(place, "other"), await running(place)
    monkeypatch.setattr(place.supervisor.store, "save", Full())
    await guest.signal(15)
    await check(place, guest, other, 0, "exited with 0")


async def test_a_kill_on_a_full_disk(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    other, guest = await running(place, "other"), await running(place)
    monkeypatch.setattr(place.supervisor.store, "save", Full())
    await guest.signal(9)
    await check(place, guest, other, 137, "killed by signal 9")


async def test_a_record_that_was_removed(place: House) -> None:
    other, guest = await running(place, "other"), await running(place)
    shutil.rmtree(guest.directory)
    await guest.signal(9)
    await check(place, guest, other, 137, "killed by signal 9")


async def test_a_start_that_cannot_be_written_down_ends_the_container(
    place: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, guest = await running(place, "other"), await place.create("c1")
    monkeypatch.setattr(place.supervisor.store, "save", Full())
    with pytest.raises(OSError, match="No space left"):
        await guest.start()
    await check(place, guest, other, 137, "killed by signal 9")


@pytest.mark.parametrize(
    ("method", "code", "reason"),
    [
        ("settle", 125, "internal error: nobody can say how it ended"),
        ("end", 137, "internal error: nobody thought of this"),
    ],
)
async def test_a_driver_that_fails(
    place: House, method: str, code: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, guest = await running(place, "other"), await running(place)
    monkeypatch.setattr(place.drivers["c1"], method, fails)
    await guest.signal(9)
    await check(place, guest, other, code, reason)


async def test_a_driver_that_does_not_let_go(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    other, guest = await running(place, "other"), await running(place)
    let_go = place.drivers["c1"].release
    monkeypatch.setattr(place.drivers["c1"], "release", fails_later)
    await guest.signal(9)
    await check(place, guest, other, 137, "killed by signal 9")
    await let_go()


async def test_a_driver_that_fails_at_the_bell(
    timeless: House, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for what it does there: it would never have said that the guest has ended."""
    other, guest = await running(timeless, "other"), await running(timeless)
    monkeypatch.setattr(timeless.drivers["c1"], "rang", fails)
    (Path(guest.directory) / "bell").write_text("\n")
    await until(lambda: END_PATIENCE in clock.waits or guest.settled.is_set())
    clock.advance(END_PATIENCE)
    await check(timeless, guest, other, 137, "internal error: nobody thought of this")


async def test_a_driver_that_cannot_tell_whether_a_signal_was_taken(
    place: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is a task of the guest: its crash ended the supervisor, and with it every verb."""
    other, guest = await running(place, "other"), await running(place)

    driver = place.drivers["c1"]
    asked = driver.abilities._replace(signals=Deaf())
    monkeypatch.setattr(FakeDriver, "abilities", property(lambda self: asked if self is driver else Abilities()))
    await guest.signal(15)
    await check(place, guest, other, 137, "internal error: nobody thought of this")


@pytest.mark.parametrize("part", ["drain", "close"])
async def test_a_console_that_fails(place: House, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other, guest = await running(place, "other"), await running(place)
    assert guest.console is not None
    close = guest.console.close
    monkeypatch.setattr(guest.console, part, fails_later)
    await guest.signal(9)
    await check(place, guest, other, 137, "killed by signal 9")
    if part == "close":
        await close()


async def test_a_task_of_its_console_that_fails(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    other = await running(place, "other")
    created = asyncio.Event()

    async def fails_then() -> None:
        await created.wait()
        await fails_later()

    monkeypatch.setattr(Console, "start", lambda self, tasks: tasks.start_soon(fails_then))
    guest = await place.create("c1")
    created.set()
    await check(place, guest, other, 137, "internal error: nobody thought of this")


async def test_a_save_that_fails_for_what_others_told(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else pauses the guest while there is no room: it goes on, and what it is stays known."""
    guest = await running(place)
    monkeypatch.setattr(place.supervisor.store, "save", Full())
    assert guest.running is not None
    guest.running.told().paused("somebody")
    assert guest.record.status is Status.PAUSED
    assert not guest.settled.is_set()
    await guest.request(Event.RESUME)
    await guest.signal(9)
    await settled(guest)
    assert await place.said("c1") == 137


async def test_the_end_is_on_disk_before_the_engine_hears_of_it(place: House) -> None:
    guest = await running(place)
    saved: list[Record | None] = []
    release = place.drivers["c1"].release

    async def look() -> None:
        saved.append(place.supervisor.store.load("c1"))
        await release()

    place.drivers["c1"].release = look  # type: ignore[method-assign]
    await guest.signal(9)
    await settled(guest)
    assert await place.said("c1") == 137
    assert saved[0] is not None
    assert (saved[0].status, saved[0].exit_code) == (Status.STOPPED, 137)
    await until(lambda: b'"exit"' in place.supervisor.events.read(guest.directory, 0), "the event")


# Section: steps that hang


class Hanging:
    """Lets one step of an end hang: the first that has not hung yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, deaf: bool) -> None:
        self.deaf = deaf
        self.hung: list[EndStep] = []
        self.step: EndStep | None = None
        self.over = anyio.Event()
        for part in ("last_bytes", "letting_go"):
            monkeypatch.setattr(Settlement, part, self._wrap(getattr(Settlement, part)))

    def _wrap(self, steps: Callable[[Settlement], Sequence[EndStep]]) -> Callable[[Settlement], Sequence[EndStep]]:
        return lambda settlement: [self._one(step) for step in steps(settlement)]

    async def taken(self, guest: Container) -> EndStep | None:
        """Return the step that hangs now, None when the guest has ended without one."""
        await until(lambda: self.step is not None or guest.settled.is_set())
        return self.step

    def _one(self, step: EndStep) -> EndStep:
        async def take() -> None:
            if self.step is not None or step.what in [known.what for known in self.hung]:
                await step.take()
                return
            self.step = step
            self.hung.append(step)
            with anyio.CancelScope(shield=self.deaf):
                await self.over.wait()

        return step._replace(take=take)


@pytest.mark.parametrize("deaf", [False, True], ids=["until it is cancelled", "whatever is done"])
async def test_no_step_that_hangs_keeps_the_engine_waiting(
    timeless: House, clock: FakeClock, deaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step in turn, whichever there are: the engine hears the code when the step's time is over."""
    hanging = Hanging(monkeypatch, deaf=deaf)
    while True:
        guest = await running(timeless)
        hanging.step = None
        await guest.signal(9)
        step = await hanging.taken(guest)
        if step is not None:
            assert not guest.settled.is_set()
            clock.advance(step.seconds - 0.5)
            await asyncio.sleep(0.01)
            assert not guest.settled.is_set(), step
            clock.advance(0.5)
        await settled(guest)
        assert await timeless.said("c1") == 137
        assert (guest.record.status, guest.record.exit_code) == (Status.STOPPED, 137)
        assert (await answer(timeless.supervisor, "--root", timeless.root, "delete", "c1")).status == 0
        if step is None:
            break
    hanging.over.set()
    assert [step.what for step in hanging.hung[-2:]] == ["let go of its machine", "close its console"]
    assert all(0 < step.seconds <= 90 for step in hanging.hung)
    assert len(hanging.hung) >= 6


async def test_a_driver_that_never_says_the_end(
    timeless: House, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told to end the guest, as often as somebody likes, and nothing comes of it."""
    other, guest = await running(timeless, "other"), await running(timeless)
    monkeypatch.setattr(timeless.drivers["c1"], "end", lambda: None)
    for _ in range(3):
        await guest.signal(9)
    await until(lambda: OVERDUE in clock.waits)
    clock.advance(OVERDUE - 0.5)
    await asyncio.sleep(0.01)
    assert not guest.settled.is_set()
    clock.advance(0.5)
    await check(timeless, guest, other, 137, "its driver did not end it within 180 s")


@pytest.mark.parametrize("part", ["last_bytes", "letting_go"])
async def test_a_mistake_in_the_end_itself(place: House, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine hears the code even so."""
    other, guest = await running(place, "other"), await running(place)
    kept = guest.running
    with monkeypatch.context() as broken:
        broken.setattr(Settlement, part, fails)
        await guest.signal(9)
        await settled(guest)
    assert kept is not None
    if part == "letting_go":
        await kept.driver.release()
        await kept.streams.close()
    await check(place, guest, other, 137, "killed by signal 9")


async def test_dates_are_those_of_the_clock(timeless: House, clock: FakeClock) -> None:
    guest = await timeless.create("c1")
    assert guest.since_start() is None
    begun = clock.wall()
    await guest.start()
    clock.advance(7)
    assert (guest.record.started, guest.since_start()) == (begun, 7)
    await guest.signal(9)
    await settled(guest)
    assert guest.record.finished == begun + 7
    events = [json.loads(line) for line in timeless.supervisor.events.read(guest.directory, 0).splitlines()]
    assert {event["event"]: event["time"] - begun for event in events} == {"create": 0, "start": 0, "exit": 7}
    assert await timeless.said("c1") == 137
