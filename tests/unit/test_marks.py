# SPDX-License-Identifier: Apache-2.0
"""The words of a cell's init are taken out of its console, wherever a read ends; nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.jailhouse import ending, marks
from backends.jailhouse.marks import Filter, Marked, MarkedLine, Said

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "0123456789abcdef"


def word(key: str, value: object, mark: str = MARK) -> bytes:
    return f"\x1b_runphi:{mark}:{key}={value}\x1b\\".encode()


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


OUTPUT = st.lists(st.one_of(st.binary(max_size=8), st.sampled_from([b"\x1b", b"\x1b_", b"\x1b_runphi:", b"\x1b\\"])))


@given(OUTPUT, st.integers(0, 255), st.lists(st.integers(0, 500), max_size=6))
def test_an_end_is_found_and_never_shown(output: list[bytes], code: int, cuts: list[int]) -> None:
    printed = b"".join(output)
    found = Filter(MARK)
    shown = b"".join(found.feed(part) for part in pieces(printed + word("exit", code) + b"panic", cuts))
    assert (shown, found.said) == (printed, Said(code))


@given(OUTPUT, st.lists(st.integers(0, 500), max_size=6))
def test_what_is_held_is_shown_with_the_next_byte(output: list[bytes], cuts: list[int]) -> None:
    printed = b"".join(output)
    found = Filter(MARK)
    shown = b"".join(found.feed(part) for part in pieces(printed, cuts))
    assert printed.startswith(shown)
    assert len(printed) - len(shown) < len(word("", "", MARK))
    assert shown + found.feed(b".") == printed + b"."
    assert found.said is None


def test_only_init_knows_the_mark() -> None:
    found = Filter(MARK)
    forged = word("exit", 0, "fedcba9876543210")
    assert found.feed(forged + b"x") == forged + b"x"
    assert found.said is None


def test_an_error_stands_with_its_code() -> None:
    found = Filter(MARK)
    assert found.feed(b"a" + word("error", "cannot run /x: \x07no") + b"b" + word("exit", 127) + b"c") == b"ab"
    assert found.said == Said(127, "cannot run /x: ?no")
    assert ending.said(Said(127, "no")) == (127, "cannot run the process: no")
    assert ending.said(Said(3)) == (3, "exited with 3")


@pytest.mark.parametrize("broken", [word("exit", ""), word("exit", "7x"), word("news", "1")])
def test_what_is_not_understood_is_left_out(broken: bytes) -> None:
    found = Filter(MARK)
    assert found.feed(b"a" + broken + b"b" + word("exit", 3)) == b"ab"
    assert found.said == Said(3)


def test_a_word_that_lost_its_end_is_shown_at_last() -> None:
    found = Filter(MARK)
    cut = word("exit", 7)[:-2] + b"x" * 500
    assert found.feed(cut) == cut
    assert found.feed(b"more" + word("exit", 7)) == b"more"
    assert found.said == Said(7)


@given(st.integers(0, 255), st.text("ab c/:", max_size=20).map(str.strip))
def test_it_survives_a_supervisor(code: int, error: str) -> None:
    assert Said.read(Said(code, error).line() + "\n") == Said(code, error)


@pytest.mark.parametrize("line", ["", "x 1", "-1"])
def test_half_a_line_is_nothing(line: str) -> None:
    assert Said.read(line) is None


class Far:
    """A source, and who listens."""

    def __init__(self, room: int = 1000) -> None:
        self.calls: list[object] = []
        self.told: list[object] = []
        self.room = room
        self.wakers: list[Callable[[], None]] = []

    async def open(self, listener: object) -> None:
        self.listener = listener

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

    def write(self, data: bytes) -> int:
        part = data[: self.room]
        self.room -= len(part)
        self.calls.append(part)
        return len(part)

    def when_writable(self, wake: Callable[[], None]) -> None:
        self.wakers.append(wake)

    def wake(self) -> None:
        wakers, self.wakers = self.wakers, []
        for wake in wakers:
            wake()

    async def close(self) -> None:
        self.calls.append("close")

    def received(self, data: bytes) -> None:
        self.told.append(data)

    def gone(self, reason: str) -> None:
        self.told.append(reason)

    def back(self) -> None:
        self.told.append("back")


class Line(Far):
    async def send_break(self, seconds: float) -> None:
        self.calls.append(seconds)


async def test_everything_else_passes_through() -> None:
    far = Line()
    said: list[Said] = []
    source = marks.marked(far, MARK, said.append)
    assert isinstance(source, MarkedLine)
    assert type(marks.marked(Far(), MARK, said.append)) is Marked
    await source.open(far)
    source.received(b"one")
    source.received(word("exit", 9)[:5])
    source.gone("why")
    source.back()
    assert said == []
    source.received(word("exit", 9)[5:])
    source.received(b"never")
    assert (far.told, said) == ([b"one", "why", "back"], [Said(9)])
    source.pause()
    source.resume()
    await source.send_break(0.25)
    await source.close()
    assert far.calls == ["pause", "resume", 0.25, "close"]


def asked(far: Far) -> bytes:
    return b"".join(data for data in far.calls if isinstance(data, bytes))


async def test_nothing_is_typed_before_somebody_listens() -> None:
    far = Far()
    source = Marked(far, MARK, lambda said: None)
    await source.open(far)
    wakes: list[str] = []
    assert source.write(b"early") == 0
    source.when_writable(lambda: wakes.append("now"))
    source.word("winsize 24 80")
    source.end_of_input(5)
    assert (far.calls, wakes) == ([], [])
    source.received(word("ready", "")[:-3] + b"\x1b\\")
    assert (asked(far), wakes) == (f"\x1b_runphi:{MARK}:winsize 24 80\x1b\\".encode(), ["now"])
    far.calls.clear()
    assert source.write(b"early") == 5
    assert asked(far) == b"early" + f"\x1b_runphi:{MARK}:eof\x1b\\".encode()
    assert far.told == []


async def test_a_word_is_never_torn_by_what_is_typed() -> None:
    far = Far(room=7)
    source = Marked(far, MARK, lambda said: None, begun=True)
    await source.open(far)
    source.word("signal 15")
    assert source.write(b"typed") == 0
    for _ in range(9):
        far.room = 7
        far.wake()
    assert source.write(b"typed") == 5
    assert asked(far) == f"\x1b_runphi:{MARK}:signal 15\x1b\\".encode() + b"typed"


async def test_a_guest_that_begins_anew_is_waited_for() -> None:
    far = Far()
    source = Marked(far, MARK, lambda said: None, begun=True)
    await source.open(far)
    assert source.write(b"a") == 1
    source.word("x")
    source.again()
    assert source.write(b"b") == 0
    source.received(b"it prints")
    assert source.write(b"c") == 1
