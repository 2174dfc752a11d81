# SPDX-License-Identifier: Apache-2.0
"""Who may type on a console and who only watches: one writer, any number of observers, decided here and nowhere else.

Synchronous and without I/O: every event gives the notices and events that follow from it, and whoever calls passes
them on (``runphi_async.terminals.sessions``). The engine's own stdin is no person: it always may type.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from runphi_async.events import Attach, Detach, Observe, Share, Take

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

#: a person, whatever the caller knows somebody by
P = TypeVar("P", bound="Hashable")


class Role(StrEnum):
    """What a person on a console may do."""

    #: the terminal of `run`, which stands in for the engine's: types, whoever else does
    OWNER = "owner"
    #: types; there is at most one
    WRITER = "writer"
    #: types beside the others, by `--share`
    SHARER = "sharer"
    #: watches
    OBSERVER = "observer"

    @property
    def types(self) -> bool:
        """Whether what this person types goes to the guest."""
        return self is not Role.OBSERVER


class Wish(StrEnum):
    """What a person asks for."""

    #: the role of the writer if it is free, else to watch
    PLAIN = "plain"
    OBSERVE = "observe"
    #: to be the only one who types
    TAKE = "take"
    #: to type beside the others
    SHARE = "share"
    #: see ``Role.OWNER``
    OWN = "own"


class Notice(NamedTuple, Generic[P]):
    """A line for one person's terminal.

    :ivar own: it is about the very person's own role, or an answer to what the person did.
    """

    to: P
    text: str
    own: bool


class Happening(NamedTuple, Generic[P]):
    """Something for the event log."""

    what: type[Attach | Detach | Take | Share | Observe]
    person: P
    role: Role


class Change(NamedTuple, Generic[P]):
    """What follows from an event.

    :ivar roles: everybody whose role is another one now, and whoever took it anew.
    """

    notices: tuple[Notice[P], ...] = ()
    happenings: tuple[Happening[P], ...] = ()
    roles: tuple[P, ...] = ()


class Person(NamedTuple):
    """Somebody on the console.

    :ivar how: what this person does to become the writer, in words that follow "… takes over".
    :ivar claimed: took the role on purpose, or had it before the supervisor was restarted.
    """

    name: str
    how: str
    role: Role
    claimed: bool


class People(Generic[P]):
    """Everybody on one console, in the order they came: the one place where that is kept."""

    def __init__(self) -> None:
        self._people: dict[P, Person] = {}

    def __iter__(self) -> Iterator[P]:
        return iter(self._people)

    def __contains__(self, person: object) -> bool:
        return person in self._people

    def __len__(self) -> int:
        return len(self._people)

    def role(self, person: P) -> Role:
        """Return what a person may do."""
        return self._people[person].role

    def writer(self) -> P | None:
        """Return the writer."""
        return next((number for number, one in self._people.items() if one.role is Role.WRITER), None)

    def typists(self) -> list[P]:
        """Return those who hold the keyboard: writer and sharers (an owner types without holding it)."""
        return [n for n, one in self._people.items() if one.role in (Role.WRITER, Role.SHARER)]

    # Section: events

    def join(self, person: P, name: str, how: str, wish: Wish) -> Change[P]:
        """Somebody comes."""
        before = self._names(self.typists())
        role = self._granted(wish)
        self._people[person] = Person(name, how, Role.OBSERVER, False)
        demoted, notices = self._become(person, role, claimed=wish is Wish.TAKE)
        if role is Role.OBSERVER and wish is Wish.PLAIN:
            notices.append(self._own(person, f"{before} may type, you only watch; {how} takes over"))
        elif role is Role.SHARER and before:
            notices.append(self._own(person, f"you and {before} may type"))
        does = "watches" if role is Role.OBSERVER else "may type"
        heard = {notice.to for notice in notices}
        others = [self._other(n, f"{name} joined and {does}") for n in self._people if n != person and n not in heard]
        happenings = (*self._demotions(demoted), Happening(Attach, person, role))
        return Change((*others, *notices), happenings, (*demoted, person))

    def back(self, person: P, name: str, how: str, role: Role) -> Change[P]:
        """Somebody returns to whom a supervisor that died had given ``role``: nothing is said if nothing changes."""
        holder = self.writer()
        if role is Role.WRITER and holder is not None and self._people[holder].claimed:
            role = Role.OBSERVER
            self._people[person] = Person(name, how, role, False)
            text = f"{self._names([holder])} has taken over, you only watch; {how} takes back"
            return Change((self._own(person, text),), (), (person,))
        self._people[person] = Person(name, how, role, role is Role.WRITER)
        if role is not Role.WRITER or holder is None:
            return Change((), (), (person,))
        self._set(holder, Role.OBSERVER)
        text = f"{name} is back and may type, you only watch; {self._people[holder].how} takes over"
        return Change((self._own(holder, text),), (Happening(Observe, holder, Role.OBSERVER),), (holder, person))

    def leave(self, person: P) -> Change[P]:
        """Somebody goes, or has vanished."""
        gone = self._people.pop(person)
        happening = Happening(Detach, person, gone.role)
        return Change(tuple(self._stepped_back(gone, f"{gone.name} left")), (happening,), ())

    def take(self, person: P) -> Change[P]:
        """Somebody wants to be the only one who types."""
        if self._people[person].role is Role.OWNER:
            return Change((self._own(person, "this terminal may always type"),))
        if self.typists() == [person] and self._people[person].role is Role.WRITER:
            return Change((self._own(person, "you are the writer already"),))
        demoted, notices = self._become(person, Role.WRITER, claimed=True)
        happenings = (*self._demotions(demoted), Happening(Take, person, Role.WRITER))
        notices.append(self._own(person, "you may type now"))
        return Change(tuple(notices), happenings, (*demoted, person))

    def share(self, person: P) -> Change[P]:
        """Somebody wants to type beside the others."""
        one = self._people[person]
        if one.role.types:
            return Change((self._own(person, "you may type already"),))
        before = self._names(self.typists())
        self._set(person, Role.SHARER)
        text = f"you and {before} may type" if before else "you may type now"
        others = [self._other(n, f"{one.name} may type, too") for n in self._people if n != person]
        return Change((*others, self._own(person, text)), (Happening(Share, person, Role.SHARER),), (person,))

    def observe(self, person: P) -> Change[P]:
        """Somebody wants to watch only."""
        one = self._people[person]
        if one.role is Role.OWNER:
            return Change((self._own(person, "this terminal may always type"),))
        if one.role is Role.OBSERVER:
            return Change((self._own(person, "you watch already"),))
        self._set(person, Role.OBSERVER)
        notices = [n for n in self._stepped_back(one, f"{one.name} only watches now") if n.to != person]
        notices.append(self._own(person, f"you only watch now; {one.how} takes over"))
        return Change(tuple(notices), (Happening(Observe, person, Role.OBSERVER),), (person,))

    # Section: how it is decided

    def _granted(self, wish: Wish) -> Role:
        match wish:
            case Wish.OWN:
                return Role.OWNER
            case Wish.TAKE:
                return Role.WRITER
            case Wish.SHARE:
                return Role.SHARER
            case Wish.PLAIN if not self.typists():
                return Role.WRITER
        return Role.OBSERVER

    def _become(self, person: P, role: Role, *, claimed: bool) -> tuple[list[P], list[Notice[P]]]:
        """Give ``role`` to a person; return whom that demotes and what they are told."""
        demoted: list[P] = []
        notices: list[Notice[P]] = []
        name = self._people[person].name
        if role is Role.WRITER:
            demoted = [number for number in self.typists() if number != person]
            for number in demoted:
                self._set(number, Role.OBSERVER)
                how = self._people[number].how
                notices.append(self._own(number, f"{name} has taken over, you only watch now; {how} takes back"))
            if demoted:
                bystanders = [n for n in self._people if n not in demoted and n != person]
                notices += [self._other(n, f"{name} has taken over") for n in bystanders]
        self._people[person] = self._people[person]._replace(role=role, claimed=claimed)
        return demoted, notices

    def _stepped_back(self, gone: Person, said: str) -> list[Notice[P]]:
        free = gone.role in (Role.WRITER, Role.SHARER) and not self.typists()
        notices = []
        for number, one in self._people.items():
            offer = f"; nobody types now, {one.how} takes over" if free and one.role is Role.OBSERVER else ""
            notices.append(self._other(number, said + offer))
        return notices

    def _set(self, person: P, role: Role) -> None:
        self._people[person] = self._people[person]._replace(role=role, claimed=False)

    def _demotions(self, persons: list[P]) -> list[Happening[P]]:
        return [Happening(Observe, person, Role.OBSERVER) for person in persons]

    def _own(self, person: P, text: str) -> Notice[P]:
        return Notice(person, text, True)

    def _other(self, person: P, text: str) -> Notice[P]:
        return Notice(person, text, False)

    def _names(self, persons: list[P]) -> str:
        return " and ".join(self._people[person].name for person in persons)
