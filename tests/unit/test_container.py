# SPDX-License-Identifier: Apache-2.0
"""The state machine: every (status, event) decided on purpose, and what holds in whatever order things happen."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runphi_async.errors import StateError
from runphi_async.record.lifecycle import Action, Event, Status, Step, decide

A, E, S = Action, Event, Status
GONE = (A.DESTROY, A.SETTLE)
REMOVED = (A.DESTROY, A.SETTLE, A.FORGET)
NOT_RUNNING = "container not running"
STILL = "it is still being created"

#: what every event means in every status: the next status and the actions, or the refusal
TABLE: dict[Event, dict[Status, tuple[Status, tuple[Action, ...]] | str]] = {
    E.MADE: {S.CREATING: (S.CREATED, ()), S.CREATED: NOT_RUNNING, S.RUNNING: NOT_RUNNING, S.PAUSED: NOT_RUNNING,
             S.STOPPED: NOT_RUNNING},
    E.START: {S.CREATING: STILL, S.CREATED: (S.RUNNING, (A.BOOT,)),
              S.RUNNING: "cannot start an already running container",
              S.PAUSED: "cannot start a container in the paused state",
              S.STOPPED: "cannot start a container that has stopped"},
    E.PAUSE: {S.CREATING: STILL, S.CREATED: NOT_RUNNING, S.RUNNING: (S.PAUSED, (A.SUSPEND,)),
              S.PAUSED: NOT_RUNNING, S.STOPPED: NOT_RUNNING},
    E.RESUME: {S.CREATING: STILL, S.CREATED: "container not paused", S.RUNNING: "container not paused",
               S.PAUSED: (S.RUNNING, (A.CONTINUE,)), S.STOPPED: "container not paused"},
    E.SIGNAL: {S.CREATING: STILL, S.CREATED: (S.CREATED, ()), S.RUNNING: (S.RUNNING, (A.DELIVER,)),
               S.PAUSED: (S.PAUSED, (A.DELIVER,)), S.STOPPED: NOT_RUNNING},
    E.KILL: {S.CREATING: STILL, S.CREATED: (S.CREATED, (A.DESTROY,)), S.RUNNING: (S.RUNNING, (A.DESTROY,)),
             S.PAUSED: (S.PAUSED, (A.DESTROY,)), S.STOPPED: NOT_RUNNING},
    E.ENDED: {S.CREATING: (S.STOPPED, (A.SETTLE,)), S.CREATED: (S.STOPPED, (A.SETTLE,)),
              S.RUNNING: (S.STOPPED, (A.SETTLE,)), S.PAUSED: (S.STOPPED, (A.SETTLE,)), S.STOPPED: (S.STOPPED, ())},
    E.ABANDONED: {S.CREATING: (S.STOPPED, GONE), S.CREATED: (S.STOPPED, GONE), S.RUNNING: (S.STOPPED, GONE),
                  S.PAUSED: (S.STOPPED, GONE), S.STOPPED: (S.STOPPED, ())},
    E.FAILED: {S.CREATING: (S.STOPPED, REMOVED), S.CREATED: (S.STOPPED, GONE), S.RUNNING: (S.STOPPED, GONE),
               S.PAUSED: (S.STOPPED, GONE), S.STOPPED: (S.STOPPED, ())},
    E.DELETE: {S.CREATING: STILL, S.CREATED: (S.STOPPED, REMOVED),
               S.RUNNING: "cannot delete container c1 that is not stopped: running",
               S.PAUSED: "cannot delete container c1 that is not stopped: paused", S.STOPPED: (S.STOPPED, (A.FORGET,))},
    E.FORCE_DELETE: {S.CREATING: (S.STOPPED, REMOVED), S.CREATED: (S.STOPPED, REMOVED),
                     S.RUNNING: (S.STOPPED, REMOVED), S.PAUSED: (S.STOPPED, REMOVED),
                     S.STOPPED: (S.STOPPED, (A.FORGET,))},
}  # fmt: skip

EVERY = list(itertools.product(Status, Event))


def outcome(status: Status, event: Event) -> Step | None:
    try:
        return decide(status, event, "c1")
    except StateError:
        return None


@pytest.mark.parametrize(("status", "event"), EVERY, ids=lambda value: str(value))
def test_every_status_and_event(status: Status, event: Event) -> None:
    expected = TABLE[event][status]
    if isinstance(expected, str):
        with pytest.raises(StateError) as caught:
            decide(status, event, "c1")
        if expected == STILL:
            assert str(caught.value) == f"cannot {event} container c1: it is still being created"
        else:
            assert str(caught.value) == expected
    else:
        assert decide(status, event, "c1") == Step(*expected)


@pytest.mark.parametrize("event", [E.KILL, E.SIGNAL])
def test_kill_of_a_stopped_container_says_what_shims_match_on(event: Event) -> None:
    # containerd: checkKillError looks for these words in any case
    with pytest.raises(StateError, match="container not running"):
        decide(S.STOPPED, event, "c1")


@pytest.mark.parametrize(("status", "event"), EVERY, ids=lambda value: str(value))
def test_refusals_do_not_say_what_engines_take_for_something_else(status: Status, event: Event) -> None:
    if outcome(status, event) is None:
        with pytest.raises(StateError) as caught:
            decide(status, event, "c1")
        text = str(caught.value).lower()
        for phrase in ("does not exist", "no such process", "no such file", "operation not permitted"):
            assert phrase not in text
        assert "\n" not in text


STEPS = [(status, event, step) for status, event in EVERY if (step := outcome(status, event)) is not None]


@pytest.mark.parametrize(("status", "event", "step"), STEPS, ids=lambda value: str(value))
def test_actions_come_in_their_order(status: Status, event: Event, step: Step) -> None:
    order = [A.DESTROY, A.SETTLE, A.FORGET]
    ends = [action for action in step.actions if action in order]
    assert ends == sorted(ends, key=order.index)
    assert len(set(step.actions)) == len(step.actions)
    if step.status is S.STOPPED and status is not S.STOPPED:
        assert A.SETTLE in step.actions  # nobody stops without an exit code
    if A.SETTLE in step.actions or A.FORGET in step.actions:
        assert step.status is S.STOPPED
    if A.FORGET in step.actions:
        assert status is S.STOPPED or A.SETTLE in step.actions
    if A.DESTROY in step.actions:
        assert status is not S.STOPPED
    if event is E.ENDED:
        assert A.DESTROY not in step.actions


def test_force_delete_is_never_refused() -> None:
    assert all(A.FORGET in decide(status, E.FORCE_DELETE, "c1").actions for status in Status)


def test_what_happens_by_itself_is_never_refused() -> None:
    for status in Status:
        for event in (E.ENDED, E.ABANDONED, E.FAILED):
            assert decide(status, event, "c1").status is S.STOPPED


def test_stopped_is_final() -> None:
    for event in Event:
        step = outcome(S.STOPPED, event)
        assert step is None or step.status is S.STOPPED


class Container(RuleBasedStateMachine):
    """A world that carries the actions out: its guest must never be left alive, or be driven when it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.status = S.CREATING
        self.guest = "loaded"
        self.settled = 0
        self.forgotten = False

    @initialize(made=st.booleans())
    def create(self, made: bool) -> None:
        if made:
            self.happen(E.MADE)

    @precondition(lambda self: not self.forgotten)
    @rule(event=st.sampled_from([event for event in Event if event is not E.ENDED]))
    def happen(self, event: Event) -> None:
        try:
            step = decide(self.status, event, "c1")
        except StateError:
            return
        for action in step.actions:
            self.do(action)
        self.status = step.status

    @precondition(lambda self: not self.forgotten and self.guest == "gone" and not self.settled)
    @rule()
    def end_is_noticed(self) -> None:
        self.happen(E.ENDED)
        if not self.settled:
            self.do(A.SETTLE)

    @precondition(lambda self: self.guest in ("running", "loaded") and self.status is not S.STOPPED)
    @rule()
    def guest_dies(self) -> None:
        self.guest = "gone"
        self.happen(E.ENDED)

    @rule()
    def time_passes(self) -> None:
        """Also when the container is gone."""

    def do(self, action: Action) -> None:
        match action:
            case A.BOOT:
                assert self.guest in ("loaded", "gone")
                self.guest = "running" if self.guest == "loaded" else self.guest
            case A.SUSPEND:
                self.guest = "still" if self.guest == "running" else self.guest
            case A.CONTINUE:
                self.guest = "running" if self.guest == "still" else self.guest
            case A.DELIVER:
                assert self.status in (S.RUNNING, S.PAUSED)
            case A.DESTROY:
                self.guest = "gone"
            case A.SETTLE:
                assert self.guest == "gone"
                assert self.settled == 0
                self.settled += 1
            case A.FORGET:
                assert self.settled == 1
                self.forgotten = True

    @invariant()
    def a_stopped_container_has_no_guest(self) -> None:
        if self.status is S.STOPPED:
            assert self.guest == "gone"
            assert self.settled == 1
        if self.forgotten:
            assert self.status is S.STOPPED


Container.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestContainer = Container.TestCase
