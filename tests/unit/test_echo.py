# SPDX-License-Identifier: Apache-2.0
"""The look-out for the echo of a key: it finds a quick one without a turn of the loop, and costs little otherwise."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from consoles.streams import hub as hub_module
from consoles.streams.hub import Hub
from consoles.streams.input import KEY, InputQueue
from consoles.streams.journal import Journal
from tests.unit.consolekit import drain, pipe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Ends:
    def __init__(self) -> None:
        source, self.guest_out = pipe()
        self.guest_in, writer = pipe()
        self.hub = Hub(Journal.create("echo"), source, window=65536, replay=0)
        self.hub.start()
        self.looked = 0
        self.queue = InputQueue(writer, self.look)

    def look(self) -> None:
        self.looked += 1
        self.hub.expect_echo()

    def close(self) -> None:
        self.queue.close()
        self.hub.close()
        os.close(self.guest_out)
        os.close(self.guest_in)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    yield made
    made.close()


async def test_a_quick_echo_is_there_when_feed_returns(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ECHO_WAIT", 20.0)  # it ends with the echo, whatever the machine does meanwhile

    def guest() -> None:
        while not (data := drain(ends.guest_in)):
            time.sleep(0.001)
        os.write(ends.guest_out, data)

    thread = threading.Thread(target=guest)
    thread.start()
    ends.queue.feed(b"x")
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
        ends.queue.feed(b"x")
        asked += bool(looked)
    assert ends.looked == keys
    assert asked == hub_module.ECHO_TRIES + 3


async def test_a_paste_is_not_a_key(ends: Ends) -> None:
    ends.queue.feed(b"p" * (KEY + 1))
    assert ends.looked == 0
    ends.queue.feed(b"\x1b[A")
    assert ends.looked == 1


async def test_no_look_out_when_the_hub_does_not_listen(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ECHO_WAIT", float("inf"))  # it would never end
    ends.hub.close()
    ends.hub.expect_echo()
