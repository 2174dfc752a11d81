# SPDX-License-Identifier: Apache-2.0
"""What runs, and what is true when nothing does: sizes of terminals, the end of input, signals, what is found."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from consoles.streams import terminal
from runphi_async.container.guestterminal import SIZE_PERIOD
from runphi_async.errors import BackendError, NotFoundError, StateError
from runphi_async.record.lifecycle import Event, Status
from runphi_async.testing.clock import FakeClock
from tests.unit.consolekit import until
from tests.unit.containerkit import House, held, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from runphi_async.container.container import Container
    from runphi_async.container.running import Running


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def place(tmp_path: Path, clock: FakeClock) -> AsyncIterator[House]:
    async with held(tmp_path, clock) as made:
        yield made


def runs(guest: Container) -> Running:
    assert guest.running is not None
    return guest.running


@pytest.fixture
async def engine(place: House, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The engine's end of the terminal of a container c1."""
    given = place.order
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.path / "socket"))
        listener.listen()
        monkeypatch.setattr(place, "order", lambda *words: given(*words, console_socket="socket"))
        await place.create("c1", terminal=True)
        with listener.accept()[0] as connection:
            _, (master,), _, _ = socket.recv_fds(connection, 100, 1)
    yield master
    os.close(master)


async def test_the_guest_learns_the_size_of_the_engines_terminal_when_it_changes(
    place: House, engine: int, clock: FakeClock
) -> None:
    guest, driver = place.supervisor.guests["c1"], place.drivers["c1"]
    terminal.set_size(engine, terminal.Size(24, 80))
    await guest.start()
    assert driver.sizes == [(24, 80)]
    for size in (terminal.Size(24, 80), terminal.Size(30, 100)):
        terminal.set_size(engine, size)
        await until(lambda: SIZE_PERIOD in clock.waits)
        clock.advance(SIZE_PERIOD)
        await until(lambda: SIZE_PERIOD in clock.waits)
    assert driver.sizes == [(24, 80), (30, 100)]
    terminal.set_size(engine, terminal.Size(40, 120))
    await guest.signal(signal.SIGWINCH)
    assert driver.sizes[-1] == (40, 120)
    # whoever attaches sees the same screen, and the engine's user cannot be told
    runs(guest).terminal.resize(1, 1)
    assert driver.sizes[-1] == (40, 120)
    assert driver.inputs == []  # a terminal has no end of input


async def test_who_types_gives_the_size_where_no_engine_has_a_terminal(place: House) -> None:
    guest = await place.create("c1")
    await guest.start()
    runs(guest).terminal.resize(24, 80)
    assert place.drivers["c1"].sizes == [(24, 80)]


async def test_the_guest_learns_of_the_end_of_input(place: House) -> None:
    """The engine's stdin is /dev/null here."""
    await place.create("c1")
    await until(lambda: place.drivers["c1"].inputs == [0], "the end of input")


async def test_nobody_is_told_anything_behind_the_end(place: House) -> None:
    guest = await place.create("c1")
    kept, driver = runs(guest), place.drivers["c1"]
    told = list(driver.inputs)
    await guest.signal(9)
    await settled(guest)
    kept.terminal.resize(24, 80)
    kept.terminal.end_of_input(7)
    kept.terminal.look(kept.streams.console)
    assert (driver.sizes, driver.inputs[len(told) :]) == ([], [])
    with pytest.raises(StateError, match="container not running"):
        kept.destroy(9)


async def test_signals_that_let_it_stand_still_and_go_on(place: House) -> None:
    guest = await place.create("c1")
    await guest.signal(signal.SIGSTOP)
    assert guest.record.status is Status.CREATED  # nothing runs that could
    await guest.start()
    for number, status in ((signal.SIGSTOP, "paused"), (signal.SIGSTOP, "paused"), (signal.SIGCONT, "running")):
        await guest.signal(number)
        assert str(guest.record.status) == status


async def test_a_fake_guest_has_no_break(place: House) -> None:
    guest = await place.create("c1")
    assert await runs(guest).send_break() is False


async def test_what_is_found_of_a_container(place: House) -> None:
    guest = await place.create("c1", annotations={"org.runphi.log": "raw"})
    assert guest.stream(None) is runs(guest).streams.console
    with pytest.raises(NotFoundError, match="has no channel"):
        guest.stream("other")
    assert [log.kind for log in guest.logs(None)] == ["raw"]
    assert await guest.memory_limit() is None
    await guest.signal(9)
    await settled(guest)
    assert guest.stream(None) is guest.console is None
    assert [log.kind for log in guest.logs(None)] == ["raw"]
    guest.reopen_logs()  # there is nothing to do
    with pytest.raises(StateError, match="container not running"):
        await guest.request(Event.PAUSE)


async def test_hooks_and_limits_are_read_when_nobody_has_them_at_hand(place: House) -> None:
    hook = {"path": "/bin/true"}
    limit = {"resources": {"memory": {"limit": 1 << 27}}, "namespaces": []}
    await place.create("c1", hooks={"poststop": [hook]}, linux=limit)
    again = type(place.supervisor.guests["c1"])(place.supervisor.guests["c1"].record, place.supervisor.shared)
    assert [found.path for found in (await again.hooks()).poststop] == ["/bin/true"]
    assert await again.memory_limit() == 1 << 27
    with pytest.raises(BackendError, match="cannot drive the guest: it is not made"):
        await again.start()
