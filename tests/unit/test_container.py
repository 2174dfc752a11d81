# SPDX-License-Identifier: Apache-2.0
"""The state machine: every (status, event) decided on purpose; and a container that holds to it, whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runphi_async.container.forgetting import forget
from runphi_async.errors import StateError
from runphi_async.lifeline import stub
from runphi_async.record.lifecycle import Action, Event, Lifecycle, Status
from tests.unit.containerkit import PATIENCE, House, house, settled

if TYPE_CHECKING:
    from collections.abc import Coroutine

A, E, S = Action, Event, Status
STILL: Final = "cannot {} container c1: it is still being created"
ALIVE: Final = (S.CREATING, S.CREATED, S.STARTING, S.RUNNING, S.PAUSED)
FACTS: Final = (E.MADE, E.STARTED, E.NOT_STARTED, E.PAUSED, E.RESUMED, E.ENDED, E.ABANDONED)
ASKED: Final = tuple(event for event in Event if event not in FACTS)

#: what is asked for: in which statuses, and what is done; anywhere else it is refused
ALLOWED: Final[dict[Event, dict[Status, Action | None]]] = {
    E.START: {S.CREATED: A.BOOT},
    E.PAUSE: {S.RUNNING: A.SUSPEND},
    E.RESUME: {S.PAUSED: A.CONTINUE},
    E.SIGNAL: {S.CREATED: None, S.STARTING: None, S.RUNNING: A.DELIVER, S.PAUSED: A.DELIVER},
    E.STOP: {S.CREATED: A.DESTROY, S.STARTING: A.DESTROY, S.RUNNING: A.DELIVER, S.PAUSED: A.DELIVER},
    E.KILL: dict.fromkeys((S.CREATED, S.STARTING, S.RUNNING, S.PAUSED), A.DESTROY),
    E.DELETE: {S.CREATED: A.END, S.STOPPED: None},
    E.FORCE_DELETE: {**dict.fromkeys(ALIVE, A.END), S.STOPPED: None},
}
#: what facts lead to; anywhere else they are no news
NEWS: Final[dict[Event, dict[Status, Status]]] = {
    E.MADE: {S.CREATING: S.CREATED},
    E.STARTED: {S.CREATED: S.RUNNING, S.STARTING: S.RUNNING},
    E.NOT_STARTED: {S.STARTING: S.CREATED, S.RUNNING: S.CREATED},
    E.PAUSED: {S.RUNNING: S.PAUSED},
    E.RESUMED: {S.PAUSED: S.RUNNING},
    E.ENDED: dict.fromkeys(ALIVE, S.STOPPED),
    E.ABANDONED: {status: status for status in ALIVE},
}


class Standing:
    """A record, as far as its status goes."""

    def __init__(self, status: Status) -> None:
        self.id = "c1"
        self.status = status


def refusal(status: Status, event: Event) -> str:
    with pytest.raises(StateError) as caught:
        Lifecycle(Standing(status)).ask(event)
    return str(caught.value)


@pytest.mark.parametrize(("status", "event"), list(itertools.product(Status, ASKED)), ids=str)
def test_what_is_asked_for(status: Status, event: Event) -> None:
    life = Lifecycle(Standing(status))
    if status not in ALLOWED[event]:
        text = refusal(status, event)
        assert life.status is status
        assert (text == STILL.format(event)) == (status is S.CREATING)
        for phrase in ("does not exist", "no such process", "no such file", "operation not permitted", "\n"):
            assert phrase not in text.lower()  # engines take these for something else
        return
    assert life.check(event) is ALLOWED[event][status]
    assert life.status is status
    assert life.ask(event) is ALLOWED[event][status]
    assert life.status is (S.STARTING if event is E.START else status)


@pytest.mark.parametrize(("status", "event"), list(itertools.product(Status, FACTS)), ids=str)
def test_facts(status: Status, event: Event) -> None:
    life = Lifecycle(Standing(status))
    step = life.tell(event)
    assert (step is not None) == (status in NEWS[event])
    assert life.status is NEWS[event].get(status, status)
    assert step is None or step.action is (A.DESTROY if event is E.ABANDONED else None)


@pytest.mark.parametrize(
    ("status", "event", "text"),
    [
        (S.STOPPED, E.START, "cannot start a container that has stopped"),
        (S.PAUSED, E.START, "cannot start a container in the paused state"),
        (S.RUNNING, E.START, "cannot start an already running container"),
        (S.RUNNING, E.DELETE, "cannot delete container c1 that is not stopped: running"),
        (S.RUNNING, E.RESUME, "container not paused"),
        # containerd: checkKillError looks for these words in any case
        (S.STOPPED, E.KILL, "container not running"),
        (S.STOPPED, E.STOP, "container not running"),
        (S.STOPPED, E.SIGNAL, "container not running"),
        (S.CREATED, E.PAUSE, "container not running"),
    ],
)
def test_refusals_are_those_of_runc(status: Status, event: Event, text: str) -> None:
    assert refusal(status, event) == text


def test_engines_see_none_but_their_own_statuses() -> None:
    assert {status.shown.value for status in Status} == {"creating", "created", "running", "paused", "stopped"}
    assert S.STARTING.shown is S.CREATED


class Lives(RuleBasedStateMachine):
    """A container of the product with the fake backend, and what anybody may do to it in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = TemporaryDirectory()
        self.over = asyncio.Event()
        self.told: int | None = None
        self.do(self.open())

    def do(self, what: Coroutine[object, object, None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(PATIENCE):
                await what

        self.runner.run(bounded())

    async def open(self) -> None:
        made: asyncio.Future[House] = asyncio.get_running_loop().create_future()

        async def hold() -> None:
            async with house(Path(self.directory.name)) as found:
                made.set_result(found)
                await self.over.wait()

        self.task = asyncio.create_task(hold())
        self.house = await made
        self.guest = await self.house.create("c1")
        self.expected = S.CREATED

    async def ended(self) -> None:
        await settled(self.guest)
        self.told = await self.house.said("c1")
        self.expected = S.STOPPED

    def vmm_lives(self) -> bool:
        pid = stub.read_pid(self.guest.directory)
        try:
            return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return False

    @rule(event=st.sampled_from([E.START, E.PAUSE, E.RESUME, E.SIGNAL, E.STOP, E.KILL]))
    def ask(self, event: Event) -> None:
        if event is E.STOP and self.expected is S.PAUSED:
            return  # it takes the signal when it goes on, or has a deadline
        number = {E.SIGNAL: signal.SIGUSR1, E.STOP: signal.SIGTERM, E.KILL: signal.SIGKILL}.get(event)
        before = self.expected

        async def run() -> None:
            try:
                if event is E.START:
                    await self.guest.start()
                elif number is not None:
                    await self.guest.signal(number)
                else:
                    await self.guest.request(event)
            except StateError:
                assert before not in ALLOWED[event]
                return
            assert before in ALLOWED[event]
            if event in (E.KILL, E.STOP):
                await self.ended()
            else:
                after = {E.START: S.RUNNING, E.PAUSE: S.PAUSED, E.RESUME: S.RUNNING}
                self.expected = after.get(event, before)

        self.do(run())

    @rule(event=st.sampled_from([E.PAUSED, E.RESUMED]))
    def others_tell(self, event: Event) -> None:
        """Somebody else has paused the guest, or let it go on: the record follows."""

        async def run() -> None:
            number = signal.SIGSTOP if event is E.PAUSED else signal.SIGCONT
            if self.expected in NEWS[event]:
                os.kill(stub.read_pid(self.guest.directory) or -1, number)
            if self.guest.running is not None:
                told = self.guest.running.told()
                (told.paused if event is E.PAUSED else told.resumed)("somebody")
            self.expected = NEWS[event].get(self.expected, self.expected)

        self.do(run())

    @precondition(lambda self: self.expected is not S.STOPPED)
    @rule(whose=st.sampled_from(["machine", "init"]))
    def something_dies(self, whose: str) -> None:
        async def run() -> None:
            pid = stub.read_pid(self.guest.directory) if whose == "machine" else self.guest.record.pid
            os.kill(pid or -1, signal.SIGKILL)
            await self.ended()

        self.do(run())

    @invariant()
    def the_record_says_how_it_is(self) -> None:
        assert self.guest.record.status is self.expected
        assert self.vmm_lives() == (self.expected is not S.STOPPED)
        saved = self.house.supervisor.store.load("c1")
        assert saved is not None
        assert saved.status is self.expected
        if self.told is not None:
            assert self.told in (saved.exit_code, -signal.SIGKILL)
            assert saved.reason

    def teardown(self) -> None:
        async def close() -> None:
            await self.guest.end()
            await forget(self.guest)
            assert os.listdir(self.house.supervisor.store.run_dir) == []
            self.over.set()
            await self.task

        self.do(close())
        self.runner.close()
        self.directory.cleanup()


Lives.TestCase.settings = settings(
    max_examples=12, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLives = Lives.TestCase
