# SPDX-License-Identifier: Apache-2.0
"""Who may type: every event in every situation, and a machine that tries all orders of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from runphi_async.events import Attach, Observe
from runphi_async.terminals.people import Change, People, Role, Wish

ROLES = {"w": Role.WRITER, "s": Role.SHARER, "o": Role.OBSERVER, "r": Role.OWNER}


def people(pattern: str) -> People[int]:
    """Make a console with persons 1, 2, … in the roles of the letters, by joining only."""
    made: People[int] = People()
    wishes = {"w": Wish.TAKE, "s": Wish.SHARE, "o": Wish.OBSERVE, "r": Wish.OWN}
    # A taker demotes the others, so it comes first.
    order = sorted(range(len(pattern)), key=lambda i: pattern[i] != "w")
    for i in order:
        made.join(i + 1, f"p{i + 1}", "^] t", wishes[pattern[i]])
    return made


def show(made: People[int]) -> str:
    letters = {role: letter for letter, role in ROLES.items()}
    return "".join(letters[made.role(number)] for number in sorted(made))


def told(change: Change[int], person: int) -> list[str]:
    return [notice.text for notice in change.notices if notice.to == person]


@pytest.mark.parametrize(
    ("before", "wish", "after"),
    [
        ("", Wish.PLAIN, "w"), ("", Wish.OBSERVE, "o"), ("", Wish.TAKE, "w"), ("", Wish.SHARE, "s"),
        ("", Wish.OWN, "r"),
        ("w", Wish.PLAIN, "wo"), ("w", Wish.OBSERVE, "wo"), ("w", Wish.TAKE, "ow"), ("w", Wish.SHARE, "ws"),
        ("s", Wish.PLAIN, "so"), ("s", Wish.TAKE, "ow"), ("s", Wish.SHARE, "ss"), ("o", Wish.PLAIN, "ow"),
        ("oo", Wish.PLAIN, "oow"), ("wso", Wish.TAKE, "ooow"), ("wso", Wish.SHARE, "wsos"), ("wss", Wish.PLAIN, "wsso"),
        ("r", Wish.PLAIN, "rw"), ("r", Wish.TAKE, "rw"), ("rw", Wish.TAKE, "row"), ("rw", Wish.PLAIN, "rwo"),
        ("w", Wish.OWN, "wr"),
    ],
)  # fmt: skip
def test_joining(before: str, wish: Wish, after: str) -> None:
    made = people(before)
    change = made.join(len(before) + 1, "new", "^] t", wish)
    assert show(made) == after
    changed = {i + 1 for i, (old, new) in enumerate(itertools.zip_longest(before, after)) if old != new}
    assert set(change.roles) == changed
    assert change.happenings[-1] == (Attach, len(before) + 1, made.role(len(before) + 1))
    for number in range(1, len(before) + 1):  # everybody else hears of it, once
        assert len(told(change, number)) == 1


@pytest.mark.parametrize(
    ("before", "event", "after"),
    [
        ("w", "take", "w"), ("o", "take", "w"), ("s", "take", "w"), ("r", "take", "r"), ("ow", "take", "wo"),
        ("osw", "take", "woo"), ("sw", "take", "wo"), ("ws", "take", "wo"),
        ("w", "share", "w"), ("o", "share", "s"), ("s", "share", "s"), ("r", "share", "r"), ("ow", "share", "sw"),
        ("w", "observe", "o"), ("o", "observe", "o"), ("s", "observe", "o"), ("r", "observe", "r"),
        ("wo", "observe", "oo"), ("ws", "observe", "os"),
    ],
)  # fmt: skip
def test_what_the_first_person_does(before: str, event: str, after: str) -> None:
    made = people(before)
    change: Change[int] = getattr(made, event)(1)
    assert show(made) == after
    assert told(change, 1), "whoever does something gets an answer"
    changed = {i + 1 for i in range(len(before)) if before[i] != after[i]}
    assert changed <= set(change.roles) <= changed | {1}
    if not changed:
        assert change.happenings == ()


def test_the_former_writer_is_told_who_took_over_and_how_to_take_back() -> None:
    made = people("wo")
    change = made.join(3, "anna (pid 7)", "--take", Wish.TAKE)
    assert told(change, 1) == ["anna (pid 7) has taken over, you only watch now; ^] t takes back"]
    assert told(change, 2) == ["anna (pid 7) has taken over"]
    assert [happening[:2] for happening in change.happenings] == [(Observe, 1), (Attach, 3)]


def test_who_only_watches_is_told_whom_and_how_to_take_over() -> None:
    made = people("w")
    change = made.join(2, "p2", "^] t", Wish.PLAIN)
    assert told(change, 2) == ["p1 may type, you only watch; ^] t takes over"]
    assert told(change, 1) == ["p2 joined and watches"]


@pytest.mark.parametrize(("pattern", "free"), [("wo", True), ("wso", False), ("wro", True), ("oo", False)])
def test_the_keyboard_that_became_free_is_offered(pattern: str, free: bool) -> None:
    change = people(pattern).leave(1)
    assert ("nobody types now, ^] t takes over" in told(change, len(pattern))[0]) is free


def test_a_role_outlives_the_supervisor() -> None:
    made: People[int] = People()
    for number, letter in enumerate("wso", 1):
        change = made.back(number, f"p{number}", "^] t", ROLES[letter])
        assert change == Change((), (), (number,))  # nothing changed, so nothing is said
    assert show(made) == "wso"


def test_the_writer_has_its_role_back_from_somebody_who_got_it_by_chance() -> None:
    made: People[int] = People()
    made.join(1, "newcomer", "^] t", Wish.PLAIN)
    change = made.back(2, "p2", "^] t", Role.WRITER)
    assert show(made) == "ow"
    assert told(change, 1) == ["p2 is back and may type, you only watch; ^] t takes over"]


def test_but_not_from_somebody_who_took_it() -> None:
    made = people("w")
    change = made.back(2, "p2", "^] t", Role.WRITER)
    assert show(made) == "wo"
    assert told(change, 2) == ["p1 has taken over, you only watch; ^] t takes back"]


class Console(RuleBasedStateMachine):
    """Any order of events: at most one writer, nobody's role changes unheard, the keyboard goes to nobody unasked."""

    persons = Bundle("persons")

    def __init__(self) -> None:
        super().__init__()
        self.people: People[int] = People()
        self.roles: dict[int, Role] = {}
        self.next = 1

    def took(self, change: Change[int], actor: int | None) -> None:
        now = {number: self.people.role(number) for number in self.people}
        changed = {number for number, role in now.items() if self.roles.get(number) is not role}
        assert set(change.roles) >= changed
        assert {notice.to for notice in change.notices} <= set(now)
        for number in changed - {actor}:
            assert now[number] is Role.OBSERVER  # others only ever lose
            assert [n for n in change.notices if n.to == number and n.own], "it must be told"
            assert (Observe, number, Role.OBSERVER) in change.happenings
        for number in now:
            assert sum(notice.to == number for notice in change.notices) <= 1
        self.roles = now

    @rule(target=persons, wish=st.sampled_from(Wish))
    def join(self, wish: Wish) -> int:
        number, self.next = self.next, self.next + 1
        self.took(self.people.join(number, f"p{number}", "how", wish), number)
        assert wish is Wish.PLAIN or self.people.role(number) is {
            Wish.OBSERVE: Role.OBSERVER, Wish.TAKE: Role.WRITER, Wish.SHARE: Role.SHARER, Wish.OWN: Role.OWNER
        }[wish]  # fmt: skip
        return number

    @rule(target=persons, role=st.sampled_from([Role.WRITER, Role.SHARER, Role.OBSERVER]))
    def back(self, role: Role) -> int:
        number, self.next = self.next, self.next + 1
        self.took(self.people.back(number, f"p{number}", "how", role), number)
        assert self.people.role(number) in (role, Role.OBSERVER)
        return number

    @rule(person=consumes(persons))
    def leave(self, person: int) -> None:
        self.took(self.people.leave(person), person)

    @rule(person=persons)
    def take(self, person: int) -> None:
        self.took(self.people.take(person), person)
        assert self.people.role(person).types

    @rule(person=persons)
    def share(self, person: int) -> None:
        self.took(self.people.share(person), person)
        assert self.people.role(person).types

    @rule(person=persons)
    def observe(self, person: int) -> None:
        self.took(self.people.observe(person), person)
        assert self.people.role(person) in (Role.OBSERVER, Role.OWNER)

    @invariant()
    def one_writer(self) -> None:
        writers = [number for number, role in self.roles.items() if role is Role.WRITER]
        assert len(writers) <= 1
        assert self.people.writer() == (writers[0] if writers else None)
        assert len(self.people) == len(self.roles)


Console.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestConsole = Console.TestCase
