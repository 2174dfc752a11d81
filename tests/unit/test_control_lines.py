# SPDX-License-Identifier: Apache-2.0
"""What a Linux guest's init says on its control port, when the guest itself says it: anything."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.base import Told
from backends.ending import Ending
from backends.guest.initchannel import InitChannel, InitWords

LINES = st.binary() | st.builds(
    lambda word, rest: word + b" " + rest,
    st.sampled_from([b"written", b"exit", b"error"]),
    st.sampled_from([b"9" * 5000, "²".encode(), b"18446744073709551616", b"-1", b"7", b""]) | st.binary(),
)


def channel(told: Told, sent: list[str] | None = None) -> InitChannel:
    ending = Ending()
    ending.attend(told)
    return InitChannel(ending, (sent if sent is not None else []).append)


@settings(max_examples=300)
@given(lines=st.lists(LINES, max_size=4))
@example(lines=[b"written " + b"9" * 5000, b"exit 7"])
def test_no_line_of_a_guest_is_too_much(lines: list[bytes]) -> None:
    printed: list[int] = []
    shown: list[str] = []
    init = channel(Told(lambda: None, printed.append, shown.append))
    for line in lines:
        init.hear(line)
    assert all(0 <= number < 1 << 63 for number in printed)
    assert len(printed) <= 1
    assert all(len(text) <= 400 for text in shown)


def test_what_it_says_is_acted_on_once() -> None:
    heard: list[object] = []
    init = channel(Told(lambda: heard.append("ended"), heard.append, heard.append))
    for line in (
        b"ready",
        b"error no such program",
        b"error and more",
        b"written 12",
        b"exit 127",
        b"exit 0",
        b"news 1",
    ):
        init.hear(line)
    assert heard == ["no such program", 12]
    assert (init.said.exit, init.said.error) == (127, "no such program")


def test_a_next_supervisor_acts_on_the_end_and_says_nothing_twice() -> None:
    heard: list[object] = []
    init = channel(Told(lambda: None, heard.append, heard.append))
    init.replaying = True
    for line in (b"error no such program", b"written 0", b"exit 127"):
        init.hear(line)
    assert heard == [0], "our predecessor may have died before it destroyed the guest"


def test_nobody_hears_what_comes_behind_the_end() -> None:
    heard: list[object] = []
    ending = Ending()
    ending.attend(Told(lambda: heard.append("ended"), heard.append, heard.append))
    init = InitChannel(ending, lambda line: None)
    ending.once()
    init.hear(b"exit 3")
    assert heard == ["ended"]
    assert init.said.exit == 3, "it counts all the same"


async def test_what_it_is_told() -> None:
    sent: list[str] = []
    init = channel(Told(lambda: None, lambda printed: None, lambda text: None), sent)
    init.resize(24, 80)
    assert await init.deliver(15)
    init.end_of_input(12)
    assert sent == ["winsize 24 80", "signal 15", "eof 12"]
    assert init.unheard() is None


@pytest.mark.parametrize("line", [b"init", b"ready", b"written 1", b"echo 5"])
def test_any_word_says_that_the_kernel_has_come_so_far(line: bytes) -> None:
    words = InitWords()
    assert not words.reached
    words.word(line)
    assert words.reached


def test_a_number_that_is_none_is_no_word() -> None:
    heard = InitWords()
    for line in (b"written " + b"9" * 5000, b"exit " + b"9" * 5000):
        assert heard.word(line) == ""
    assert (heard.written, heard.exit) == (0, None)
    assert heard.word(b"exit 7") == "exit"
    assert heard.exit == 7
