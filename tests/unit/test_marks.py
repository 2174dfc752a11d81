# SPDX-License-Identifier: Apache-2.0
"""The words of a cell's init are taken out of its console, wherever a read ends; nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.jailhouse import ending, marks
from backends.jailhouse.marks import Filter, Marked, MarkedLine, Said

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

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.told: list[object] = []

    async def open(self, listener: object) -> None:
        self.listener = listener

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

    def write(self, data: bytes) -> int:
        self.calls.append(data)
        return 1

    def when_writable(self, wake: object) -> None:
        self.calls.append(wake)

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
    assert source.write(b"in") == 1
    source.when_writable(said.clear)
    await source.send_break(0.25)
    await source.close()
    assert far.calls == ["pause", "resume", b"in", said.clear, 0.25, "close"]
