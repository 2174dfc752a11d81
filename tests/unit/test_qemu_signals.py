# SPDX-License-Identifier: Apache-2.0
"""Signals for a Linux guest, and for how long one was left where it was put."""

from __future__ import annotations

import signal

from backends.ending import Ending
from backends.guest.initchannel import InitChannel
from backends.qemu.signals import Signals


class Guest:
    """A guest's init that hears everything, and a clock that runs when it is told to."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.clock = 0.0
        self.init = InitChannel(Ending(), self.sent.append)
        self.signals = Signals(self.init, lambda: self.init.said, lambda: self.clock)

    def says(self, *lines: bytes) -> None:
        for line in lines:
            self.init.hear(line)

    def echoes(self) -> None:
        self.says(self.sent[-1].encode())


async def test_a_stop_before_there_is_a_process_is_not_for_init() -> None:
    guest = Guest()
    assert not await guest.signals.deliver(signal.SIGTERM)
    assert guest.sent == []
    assert await guest.signals.deliver(signal.SIGUSR1)
    assert guest.sent == ["signal 10"]


async def test_an_init_that_answers_is_asked_behind_the_signal() -> None:
    guest = Guest()
    guest.says(b"init 1", b"ready")
    guest.clock = 5.0
    assert await guest.signals.deliver(signal.SIGTERM)
    assert guest.sent[0] == "signal 15"
    assert guest.sent[1].startswith("echo ")
    guest.clock = 7.5
    assert guest.signals.unheard() == 2.5
    guest.echoes()
    assert guest.signals.unheard() is None


async def test_a_late_answer_to_an_earlier_signal_is_none_to_this_one() -> None:
    guest = Guest()
    guest.says(b"init 1")
    await guest.signals.deliver(signal.SIGTERM)
    first = guest.sent[-1].encode()
    await guest.signals.deliver(signal.SIGTERM)
    guest.says(first)
    assert guest.signals.unheard() is not None
    guest.echoes()
    assert guest.signals.unheard() is None


async def test_of_an_init_that_does_not_answer_nobody_can_know() -> None:
    guest = Guest()
    guest.says(b"ready")
    assert await guest.signals.deliver(signal.SIGTERM)
    assert guest.sent == ["signal 15"]
    guest.clock = 100.0
    assert guest.signals.unheard() is None
