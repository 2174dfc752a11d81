# SPDX-License-Identifier: Apache-2.0
"""The look-out for the echo of a key: it finds a quick one without a turn of the loop, and costs little otherwise."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from consoles.streams import hub as hub_module
from consoles.streams.feed import Feed
from consoles.streams.fifo import FifoSource
from consoles.streams.input import KEY
from consoles.streams.journal import Journal
from tests.unit.consolekit import drain, pipe
from tests.unit.sourcekit import Puppet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Ends:
    def __init__(self) -> None:
        source, self.guest_out = pipe()
        self.guest_in, writer = pipe()
        self.source = FifoSource(source, writer)
        self.feed = Feed(Journal.create("echo"), self.source, window=65536, replay=0)
        self.hub = self.feed.hub
        self.hub.start()

    def close(self) -> None:
        self.hub.close()
        self.source.shut()
        os.close(self.guest_out)
        os.close(self.guest_in)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    yield made
    made.close()


async def test_a_quick_echo_is_there_when_typed_returns(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ECHO_WAIT", 20.0)  # it ends with the echo, whatever the machine does meanwhile

    def guest() -> None:
        while not (data := drain(ends.guest_in)):
            time.sleep(0.001)
        os.write(ends.guest_out, data)

    thread = threading.Thread(target=guest)
    thread.start()
    ends.feed.typed(b"x")
    thread.join()
    assert ends.hub.journal.tail == 1
    assert ends.hub.journal.read(0, 10) == b"x"


async def test_a_guest_that_does_not_answer_at_once_is_asked_rarely(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = [False]
    monkeypatch.setattr(os, "sched_yield", lambda: looked.append(True))
    monkeypatch.setattr(hub_module, "ECHO_WAIT", 0.01)
    keys = 4 * hub_module.ECHO_TRIES
    asked = 0
    for _ in range(keys):
        looked.clear()
        ends.feed.typed(b"x")
        asked += bool(looked)
    assert asked == hub_module.ECHO_TRIES + 3


async def test_a_paste_is_not_a_key(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(os, "sched_yield", lambda: looked.append(True))
    monkeypatch.setattr(hub_module, "ECHO_WAIT", 0.01)
    ends.feed.typed(b"p" * (KEY + 1))
    ends.feed.typed(b"")
    assert not looked
    ends.feed.typed(b"\x1b[A")
    assert looked


async def test_a_key_that_still_waits_has_no_echo_yet(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ECHO_WAIT", float("inf"))  # it would never end
    ends.feed.input.feed(bytes(200_000))
    assert ends.feed.input.queued
    ends.feed.typed(b"x")


async def test_a_source_without_the_fast_path_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ECHO_WAIT", float("inf"))  # it would never end
    source = Puppet()
    feed = Feed(Journal.create("echo"), source, window=65536, replay=0)
    feed.hub.start()
    feed.typed(b"x")
    assert source.written == b"x"
    feed.hub.close()


async def test_no_look_out_when_the_hub_does_not_listen(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ECHO_WAIT", float("inf"))  # it would never end
    ends.hub.close()
    ends.hub.expect_echo()
