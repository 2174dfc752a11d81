# SPDX-License-Identifier: Apache-2.0
"""A client that stays behind for too long is moved forward; words of ours that it does not read are bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consoles.streams.sinks.attach import LEAST, WORDS, Age, AttachSink
from runphi_async.wire.console import unpack_offset
from runphi_async.wire.outgoing import Outgoing, Outlet
from tests.unit.consolekit import journals, pattern, until
from tests.unit.wirekit import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consoles.streams.journal import Journal


@pytest.fixture
def journal() -> Iterator[Journal]:
    yield from journals()


def test_a_client_is_left_alone_while_it_is_young() -> None:
    age = Age(10)
    age.note(100, 1000)
    assert age.onward(109, 500, 100_000) == 500


def test_an_old_lag_is_skipped_to_half_the_age() -> None:
    age = Age(10)
    for second in range(21):
        age.note(100 + second, 10_000 * second)
    # At 120 the client stands at 50 000, which was the end at 105: 15 s ago. It goes on where the end was at 116: a
    # note is taken every eighth of the age only.
    assert age.onward(120, 50_000, 200_000) == 160_000
    assert age.onward(120, 150_000, 200_000) == 150_000


def test_a_guest_that_fell_silent_is_not_skipped_over() -> None:
    """What it said last is the newest there is: a screenful of it is shown however old it is."""
    age = Age(10)
    age.note(100, 50_000)
    age.note(101, 60_000)
    assert age.onward(200, 1000, 60_000) == 60_000 - LEAST
    assert age.onward(200, 60_000 - 100, 60_000) == 60_000 - 100


@given(
    steps=st.lists(st.tuples(st.floats(0.01, 20), st.integers(0, 50_000), st.integers(0, 60_000)), max_size=60),
    limit=st.floats(0.5, 30),
)
def test_it_only_ever_goes_forward_and_never_past_the_end(steps: list[tuple[float, int, int]], limit: float) -> None:
    age, now, tail, offset = Age(limit), 0.0, 0, 0
    ends: list[tuple[float, int]] = []
    for passed, printed, read in steps:
        now += passed
        tail += printed
        ends.append((now, tail))
        age.note(now, tail)
        onward = age.onward(now, offset, tail)
        assert offset <= onward <= tail
        if onward > offset:  # never without need: what is skipped is old
            assert any(when <= now - limit and end > offset for when, end in ends)
            assert tail - onward >= min(LEAST, tail - offset)
        offset = min(onward + read, tail)
        assert len(age._ends) <= 12


class Client(Peer):
    def __init__(self, journal: Journal, age: float) -> None:
        super().__init__(8192)
        self.outgoing = Outgoing(self.ours)
        self.sink = AttachSink(journal, Outlet(self.outgoing), 0, 1 << 30, age)

    @property
    def has_all(self) -> bool:
        statistics = self.sink.statistics()
        return statistics.lag == 0 and statistics.unread == 0 and not self.half

    def close(self) -> None:
        self.sink.close()
        self.outgoing.close()
        super().close()


async def test_a_client_that_was_asleep_is_shown_the_present(journal: Journal) -> None:
    client = Client(journal, 0.2)
    journal.append(pattern(0, 500_000))
    client.sink.pump()
    began = client.sink._loop.time()
    await until(lambda: client.sink._loop.time() > began + 0.3)
    journal.append(pattern(500_000, 100))
    client.sink.pump()
    assert client.sink.statistics().unread > 0
    frames: list[tuple[bytes, bytes]] = []

    def all_read() -> bool:
        frames.extend(client.frames())
        return client.has_all

    await until(all_read)
    skips = [unpack_offset(payload) for kind, payload in frames if kind == b"K"]
    assert len(skips) == 1
    assert client.sink.skipped > 300_000
    shown = b"".join(payload for kind, payload in frames if kind == b"O")
    assert shown.endswith(pattern(skips[0], 500_100 - skips[0]))
    assert len(shown) + client.sink.skipped == 500_100
    client.close()


async def test_a_client_that_keeps_up_is_never_skipped(journal: Journal) -> None:
    client = Client(journal, 0.05)
    began, total = client.sink._loop.time(), 0
    frames: list[tuple[bytes, bytes]] = []
    while client.sink._loop.time() < began + 0.3:
        journal.append(pattern(total, 3000))
        total += 3000
        client.sink.pump()
        frames += client.frames()
        await until(lambda: client.sink.statistics().lag == 0)
    frames += client.frames()
    assert client.sink.skipped == 0
    assert b"".join(payload for kind, payload in frames if kind == b"O") == pattern(0, total)
    client.close()


async def test_words_of_ours_are_bounded_and_of_a_fact_only_the_latest_counts(journal: Journal) -> None:
    client = Client(journal, 10)
    journal.append(bytes(100_000))
    client.sink.pump()
    for number in range(1000):
        client.sink.notice(b"%d" % number)
        client.sink.role(b"role %d" % number)
    frames: list[tuple[bytes, bytes]] = []

    def all_read() -> bool:
        frames.extend(client.frames())
        return client.has_all

    await until(all_read)
    assert [payload for kind, payload in frames if kind == b"N"] == [b"%d" % n for n in range(1000 - WORDS, 1000)]
    assert [payload for kind, payload in frames if kind == b"W"] == [b"role 999"]
    assert sum(len(payload) for kind, payload in frames if kind == b"O") == 100_000
    client.close()
