# SPDX-License-Identifier: Apache-2.0
"""What people on a console are told, what is written down of them, and whose window the guest fills."""

from __future__ import annotations

import pytest

from consoles.streams.sinks.attach import AttachStatistics
from consoles.streams.terminal import Size
from runphi_async.events import AnyEvent, Attach, Detach, Observe, Share, Take, kind
from runphi_async.terminals.people import Role, Wish
from runphi_async.terminals.sessions import Session, Sessions, Who, printable, read_size


class Sink:
    """Where a client's frames go."""

    def __init__(self) -> None:
        self.eager = True
        self.notices: list[str] = []
        self.roles: list[bytes] = []

    def statistics(self) -> AttachStatistics:
        return AttachStatistics(10, 20, 3, 4)

    def notice(self, text: bytes) -> None:
        self.notices.append(text.decode())

    def role(self, name: bytes) -> None:
        self.roles.append(name)


class Console:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.sizes: list[tuple[int, int]] = []
        self.people = Sessions(self.note, lambda rows, cols: self.sizes.append((rows, cols)))

    def note(self, event: AnyEvent) -> None:
        assert isinstance(event, Attach | Detach | Take | Share | Observe)
        self.events.append((kind(event), event.who.partition(" ")[0], event.role))

    def join(
        self, name: str, wish: Wish | Role = Wish.PLAIN, size: Size | None = None, *, quiet: bool = False
    ) -> tuple[Session, Sink]:
        sink = Sink()
        who = Who(name, 42, "pts/3", "")
        return self.people.join(who, "ctrl-] t", wish, sink, quiet=quiet, size=size), sink


def test_notices_events_and_roles() -> None:
    console = Console()
    anna, anna_sees = console.join("anna")
    bob, bob_sees = console.join("bob")
    carl, carl_sees = console.join("carl", quiet=True)
    assert anna_sees.roles == [b"writer"]
    assert bob_sees.roles == [b"observer"]
    assert (anna_sees.eager, bob_sees.eager) == (True, False)
    console.people.take(bob)
    assert (anna_sees.roles[-1], bob_sees.roles[-1]) == (b"observer", b"writer")
    console.people.leave(anna)
    console.people.leave(anna)  # twice is no harm
    assert anna_sees.notices[-1] == "bob (pid 42, pts/3) has taken over, you only watch now; ctrl-] t takes back"
    assert carl_sees.notices == ["anna (pid 42, pts/3) may type, you only watch; ctrl-] t takes over"]
    assert console.events == [
        ("attach", "anna", "writer"), ("attach", "bob", "observer"), ("attach", "carl", "observer"),
        ("observe", "anna", "observer"), ("take", "bob", "writer"), ("detach", "anna", "observer"),
    ]  # fmt: skip
    (row, _) = console.people.rows()
    assert (row.role, row.user, row.sent, row.skipped, row.lag) == ("writer", "bob", 10, 20, 7)
    assert console.people.typists() == "bob (pid 42, pts/3)"
    assert carl.quiet


def test_the_window_is_the_writers_or_the_owners() -> None:
    console = Console()
    first, _ = console.join("first", size=Size(10, 20))
    assert console.sizes == [(10, 20)]
    second, _ = console.join("second", size=Size(30, 40))
    console.people.resized(second, Size(31, 41))
    assert console.sizes == [(10, 20)]  # whoever watches has no say
    console.people.resized(first, Size(11, 21))
    console.people.take(second)
    assert console.sizes[1:] == [(11, 21), (31, 41)]
    owner, _ = console.join("owner", Wish.OWN, size=Size(50, 60))
    console.people.resized(second, Size(1, 1))
    console.people.resized(owner, Size(51, 61))
    assert console.sizes[3:] == [(50, 60), (51, 61)]


def test_who_watches_is_told_once_that_typing_is_in_vain() -> None:
    console = Console()
    writer, _ = console.join("writer")
    watcher, sees = console.join("watcher")
    before = len(sees.notices)
    assert writer.types()
    assert [watcher.types() for _ in range(3)] == [False] * 3
    assert len(sees.notices) == before + 1
    console.people.take(watcher)
    assert watcher.types()
    console.people.observe(watcher)
    before = len(sees.notices)
    assert not watcher.types()
    assert len(sees.notices) == before + 1  # another role, another warning


def test_a_strangers_words_are_harmless() -> None:
    assert printable("a\x1b[2Jb\x07ü\n") == "a?[2Jb???"
    assert len(printable("x" * 1000)) == 40
    assert Who("anna", 7, "", "second desk").text() == "anna (second desk, pid 7)"


@pytest.mark.parametrize(
    ("payload", "size"),
    [
        (b"24 80", (24, 80)), (b"0 0", (0, 0)), (b"99999 99999", (9999, 9999)), (b"", None), (b"24", None),
        (b"24 80 1", None), (b"a b", None), (b"-1 5", None), (b"1" * 20 + b" 1", None), (b"\xb2 1", None),
    ],
)  # fmt: skip
def test_sizes(payload: bytes, size: tuple[int, int] | None) -> None:
    assert read_size(payload) == size
