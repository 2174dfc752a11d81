# SPDX-License-Identifier: Apache-2.0
"""Making a container: whichever step fails, and whoever interferes, nothing of it stays."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, NoReturn

import pytest

from backends.base import Accounting
from consoles.streams.fifo import FifoSource
from runphi_async.container import assembly
from runphi_async.container.creation import STEPS
from runphi_async.container.undoing import Undo
from runphi_async.errors import BackendError, HookError, RunphiError, SpecError, StateError
from runphi_async.record.lifecycle import Status
from runphi_async.terminals import channels
from runphi_async.testing.backend import FakeBackend
from runphi_async.testing.clock import FakeClock
from tests.unit.clikit import answer
from tests.unit.consolekit import until
from tests.unit.containerkit import House, held, settled, state_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from runphi_async.container.container import Container


class Stumble(Exception):
    """A step has failed as nobody thought of."""


class Follower:
    """Follows a creation, and lets it fail at the beginning of a step, or at its end."""

    def __init__(self, step: str = "", *, done: bool = False) -> None:
        self.fails_at = (step, done)
        self.seen: list[tuple[str, bool]] = []

    def __call__(self, step: str, done: bool) -> None:
        self.seen.append((step, done))
        if (step, done) == self.fails_at:
            raise Stumble(step)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[House]:
    async with held(tmp_path) as made:
        yield made


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


async def check_nothing_left(place: House, descriptors_before: list[str]) -> None:
    """No record, link, log, cgroup, process, descriptor, and nothing in the register."""
    for name in place.forked:
        await place.said(name)
    for where in ("run", "root", "log"):
        assert not (place.path / where).exists() or os.listdir(place.path / where) == [], where
    assert place.supervisor.guests == {}
    assert place.groups.made == {}
    await until(lambda: len(descriptors()) <= len(descriptors_before), "descriptors are closed")
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("guest ")]


async def delete(place: House, name: str) -> None:
    call = await answer(place.supervisor, "--root", place.root, "delete", "--force", name)
    assert (call.status, call.frames[:-1]) == (0, [])


async def test_a_creation_takes_every_step_there_is(place: House) -> None:
    before = descriptors()
    follower = Follower()
    guest = await place.create("c1", follow=follower)
    assert guest.record.status is Status.CREATED
    assert sorted(step for step, done in follower.seen if done) == sorted(STEPS)
    assert place.groups.made[guest.record.cgroup] >= {guest.record.pid}
    saved = place.supervisor.store.load("c1")
    assert saved is not None
    assert (saved.status, saved.pid) == (Status.CREATED, guest.record.pid)
    assert (place.path / "run" / "c1" / "pidfile").read_text() == str(guest.record.pid)
    await delete(place, "c1")
    await check_nothing_left(place, before)


@pytest.mark.parametrize("done", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("step", STEPS)
async def test_whichever_step_fails_nothing_stays(place: House, step: str, done: bool) -> None:
    await delete(place, "nobody")  # whatever is opened once and for all
    before = descriptors()
    follower = Follower(step, done=done)
    with pytest.raises(Stumble):
        await place.create("c1", follow=follower, annotations={"org.runphi.log": "raw"})
    assert (step, done) in follower.seen
    await check_nothing_left(place, before)


@pytest.mark.parametrize("done", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("step", STEPS)
async def test_whenever_it_is_cancelled_nothing_stays(place: House, step: str, done: bool) -> None:
    """The client has gone, which cancels the verb."""
    await delete(place, "nobody")
    before = descriptors()
    tasks: list[asyncio.Task[Container]] = []
    over: list[str] = []

    def cancel(at: str, ended: bool) -> None:
        if (at, ended) == (step, done):
            tasks[0].cancel()
        if ended:
            over.append(at)

    tasks.append(asyncio.create_task(place.create("c1", follow=cancel)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    if over[-1:] == ["publish"]:  # it had nothing to wait for any more
        await delete(place, "c1")
    await check_nothing_left(place, before)


@pytest.mark.parametrize("step", STEPS)
async def test_a_container_in_the_making_can_be_deleted(place: House, step: str) -> None:
    """The making ends with an error, or came too early or too late to be bothered."""
    await delete(place, "nobody")
    before = descriptors()
    deletions: list[asyncio.Task[None]] = []

    def follow(at: str, done: bool) -> None:
        if at == step and not done:
            deletions.append(asyncio.create_task(delete(place, "c1")))

    failed = None
    try:
        await place.create("c1", follow=follow)
    except (BackendError, StateError, OSError) as exc:
        failed = exc
    assert failed is None or step not in ("plan", "claim_record")  # nobody could have known of it
    async with asyncio.timeout(15):
        await deletions[0]
    await delete(place, "c1")
    await check_nothing_left(place, before)


# Section: what fails by itself


def refused(*_: object, **__: object) -> NoReturn:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize(
    ("where", "name"),
    [(FifoSource, "opened"), (channels, "open_all"), (assembly, "Watching"), (assembly, "InitBell")],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_whichever_part_cannot_be_opened_nothing_stays(
    place: House, where: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await delete(place, "nobody")
    before = descriptors()
    with monkeypatch.context() as broken:
        broken.setattr(where, name, refused)
        with pytest.raises(PermissionError):
            await place.create("c1", annotations={"org.runphi.log": "raw"})
    await check_nothing_left(place, before)


async def test_a_machine_that_ends_at_once(place: House) -> None:
    before = descriptors()
    try:
        guest = await place.create("c1", cmdline="fail-create")
        why = ""
    except BackendError as exc:
        why = str(exc)
    else:  # its end came behind the creation's
        await settled(guest)
        await delete(place, "c1")
    assert not why or why.startswith("cannot create the guest: VMM failed")
    await check_nothing_left(place, before)


async def test_a_hook_that_fails(place: House) -> None:
    before = descriptors()
    with pytest.raises(HookError, match="exit status 3"):
        await place.create("c1", hooks={"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]})
    await check_nothing_left(place, before)


async def test_a_pid_file_that_cannot_be_written(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    given = place.order
    monkeypatch.setattr(place, "order", lambda *words: given(*words, pid_file="/nonexistent/pid"))
    with pytest.raises(RunphiError, match="cannot write the pid file"):
        await place.create("c1")
    await check_nothing_left(place, before)


@pytest.mark.parametrize(("terminal", "socket_given"), [(True, False), (False, True)])
async def test_terminal_and_socket_belong_together(
    place: House, terminal: bool, socket_given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    given = place.order
    path = "/nonexistent/socket" if socket_given else None
    monkeypatch.setattr(place, "order", lambda *words: given(*words, console_socket=path))
    with pytest.raises(SpecError):
        await place.create("c1", terminal=terminal)
    await check_nothing_left(place, before)


async def test_the_engine_gets_the_terminal(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    given = place.order
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.path / "socket"))
        listener.listen()
        monkeypatch.setattr(place, "order", lambda *words: given(*words, console_socket="socket"))
        await place.create("c1", terminal=True)
        engine, _ = listener.accept()
        _, (master,), _, _ = socket.recv_fds(engine, 100, 1)
        engine.close()
        assert os.isatty(master)
        os.close(master)
        await delete(place, "c1")
    await check_nothing_left(place, before)


async def test_an_id_that_is_taken(place: House) -> None:
    guest = await place.create("c1")
    with pytest.raises(StateError, match="already exists"):
        await place.create("c1")
    assert place.supervisor.guests == {"c1": guest}
    assert guest.running is not None


async def test_an_init_process_that_is_killed_before_it_begins(place: House) -> None:
    before = descriptors()

    def follow(step: str, done: bool) -> None:
        if step == "fill_group" and not done:
            os.kill(place.supervisor.guests["c1"].record.pid, 9)

    try:
        guest = await place.create("c1", follow=follow)
    except RunphiError:
        pass
    else:
        await settled(guest)
        assert state_of(guest.record.pid) in ("", "Z")
        await delete(place, "c1")
    await check_nothing_left(place, before)


async def test_what_keeps_accounts_is_asked_when_all_are_taken_over(
    place: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a backend frees as nobody's must not be what is claimed meanwhile."""

    async def look_over(self: FakeBackend) -> list[object]:
        return []

    monkeypatch.setattr(FakeBackend, "look_over", look_over, raising=False)
    backend = await place.supervisor.backend("fake")
    assert isinstance(backend, Accounting)
    place.supervisor.recovered = type(place.supervisor.recovered)()
    making = asyncio.create_task(place.create("c1"))
    await asyncio.sleep(0.05)
    assert place.supervisor.guests == {}
    place.supervisor.recovered.set()
    await making
    await delete(place, "c1")


async def test_a_record_is_dated_by_the_clock(tmp_path: Path) -> None:
    clock = FakeClock(wall=1234.0)
    async with held(tmp_path, clock) as place:
        assert (await place.create("c1")).record.created == 1234.0


# Section: taking back


async def test_the_last_step_is_taken_back_first_whatever_fails() -> None:
    undo, taken = Undo(), []

    async def back(what: str) -> None:
        taken.append(what)
        if what == "b":
            raise Stumble(what)

    for what in "abc":
        undo.push(what, lambda what=what: back(what))  # type: ignore[misc]
    await undo.run()
    assert taken == ["c", "b", "a"]


async def test_from_the_hand_over_on_the_end_takes_back_everything() -> None:
    undo, taken = Undo(), []

    async def back(what: str) -> None:
        taken.append(what)

    undo.push("a", lambda: back("a"))
    undo.hand_over("end", lambda: back("end"))
    undo.push("b", lambda: back("b"))
    await undo.run()
    assert taken == ["end"]
