# SPDX-License-Identifier: Apache-2.0
"""The people on one console as the supervisor holds them: carries out what ``runphi_async.terminals.people`` decides.

Notices and roles go to the clients, events into the event log, the window size of whoever types to the guest.
"""

from __future__ import annotations

import os
import pwd
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import anyio

from consoles.streams import terminal
from runphi_async import digits
from runphi_async.terminals.people import Change, People, Role, Wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.streams.sinks.attach import AttachStatistics
    from runphi_async.events import AnyEvent
    from runphi_async.wire.call import Call

#: Longest text of a client's own that others are shown.
WORDS_MAX: Final = 40
#: Largest size of a terminal that is believed.
_SIZE_MAX: Final = 9999


class Who(NamedTuple):
    """A client. User, pid and terminal are what the kernel says; ``words`` is what the client says of itself."""

    user: str
    pid: int
    tty: str
    words: str

    def text(self) -> str:
        """Return a name for notices."""
        place = f"{self.words}, " if self.words else ""
        tty = f", {self.tty}" if self.tty else ""
        return f"{self.user} ({place}pid {self.pid}{tty})"


def printable(text: str, limit: int = WORDS_MAX) -> str:
    """Return what is safe to show of a stranger's words."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text[:limit])


async def who_is(call: Call, words: str) -> Who:
    """Find out who calls; the client's descriptors are still open."""
    # User data bases may lie on a network.
    return await anyio.to_thread.run_sync(_who, call.uid, call.pid, call.fds[0], printable(words))


def _who(uid: int, pid: int, stdin: int, words: str) -> Who:
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = f"#{uid}"
    try:
        tty = os.ttyname(stdin).removeprefix("/dev/")
    except OSError:
        tty = ""
    return Who(printable(user), pid, printable(tty), words)


class Output(Protocol):
    """Where a client's console output, notices and roles go: ``AttachSink``, or less for one that only sends."""

    eager: bool

    def statistics(self) -> AttachStatistics:
        """Return the client's numbers."""
        ...

    def notice(self, text: bytes) -> None:
        """Say lines to the person."""
        ...

    def role(self, name: bytes) -> None:
        """Say what the person may do; only the latest counts."""
        ...


class Session:
    """One attached client.

    :param quiet: is not told of others.
    :param size: how large its terminal is, None when it has none.
    """

    def __init__(self, who: Who, sink: Output, *, quiet: bool, size: terminal.Size | None) -> None:
        self.who = who
        self.sink = sink
        self.quiet = quiet
        self.size = size
        self.since = time.time()
        #: whether what it types goes to the guest; kept up to date by ``Sessions``
        self.may_type = False
        #: has been told that what it types goes nowhere
        self.warned = False

    def types(self) -> bool:
        """Somebody types: whether that goes to the guest; one to whom it does not is told once."""
        if not self.may_type and not self.warned:
            self.warned = True
            self.say("you only watch: what you type goes nowhere")
        return self.may_type

    def say(self, text: str) -> None:
        """Send lines to the person."""
        self.sink.notice(text.encode("utf-8", "replace"))


class Row(NamedTuple):
    """One line of `who`."""

    role: str
    user: str
    pid: int
    tty: str
    words: str
    since: float
    sent: int
    skipped: int
    lag: int


class Sessions:
    """Everybody on one console.

    :param note: writes an event.
    :param resize: tells the guest rows and columns of the terminal that counts, if it is an attached one.
    """

    def __init__(self, note: Callable[[AnyEvent], None], resize: Callable[[int, int], None]) -> None:
        self._people: People[Session] = People()
        self._note = note
        self._resize = resize

    def rows(self) -> list[Row]:
        """Return who is here, in the order they came."""
        return [self._row(session) for session in self._people]

    def _row(self, session: Session) -> Row:
        sent, skipped, lag, unread = session.sink.statistics()
        who = session.who
        role = self._people.role(session).value
        return Row(role, who.user, who.pid, who.tty, who.words, session.since, sent, skipped, lag + unread)

    def typists(self) -> str:
        """Return the names of those who hold the keyboard, "" when nobody does."""
        return " and ".join(session.who.text() for session in self._people.typists())

    # Section: coming and going

    def join(
        self,
        who: Who,
        how: str,
        wish: Wish | Role,
        sink: Output,
        *,
        quiet: bool = False,
        size: terminal.Size | None = None,
    ) -> Session:
        """Somebody comes; one who was here before under another supervisor comes with the ``Role`` it had."""
        session = Session(who, sink, quiet=quiet, size=size)
        if isinstance(wish, Role):
            change = self._people.back(session, who.text(), how, wish)
        else:
            change = self._people.join(session, who.text(), how, wish)
        self._carry_out(change)
        return session

    def leave(self, session: Session) -> None:
        """Somebody goes or has vanished."""
        if session in self._people:
            self._carry_out(self._people.leave(session))

    def take(self, session: Session) -> None:
        """Let a client be the only one who types."""
        self._carry_out(self._people.take(session))

    def share(self, session: Session) -> None:
        """Let a client type beside the others."""
        self._carry_out(self._people.share(session))

    def observe(self, session: Session) -> None:
        """Let a client only watch."""
        self._carry_out(self._people.observe(session))

    def resized(self, session: Session, size: terminal.Size) -> None:
        """A client's terminal has this size now."""
        session.size = size
        if self._counts(session):
            self._resize(*size)

    def _counts(self, session: Session) -> bool:
        """Whether this client's terminal is the one the guest fills: the owner's, else the writer's."""
        role = self._people.role(session)
        owned = any(self._people.role(other) is Role.OWNER for other in self._people)
        return role is (Role.OWNER if owned else Role.WRITER)

    def _carry_out(self, change: Change[Session]) -> None:
        for what, session, role in change.happenings:
            self._note(what(who=session.who.text(), role=role.value))
        for session in change.roles:
            role = self._people.role(session)
            session.warned = False
            session.may_type = session.sink.eager = role.types
            session.sink.role(role.encode())
            if session.size is not None and self._counts(session):
                self._resize(*session.size)
        for notice in change.notices:
            if notice.own or not notice.to.quiet:
                notice.to.say(notice.text)


def read_size(payload: bytes) -> terminal.Size | None:
    """Return the size in a RESIZE frame, None when it makes no sense."""
    sizes = [digits.whole(word) for word in payload.split(b" ")]
    rows, cols = sizes if len(sizes) == 2 else (None, None)
    return None if rows is None or cols is None else terminal.Size(min(rows, _SIZE_MAX), min(cols, _SIZE_MAX))
