# SPDX-License-Identifier: Apache-2.0
"""The last screen: what is painted is what was shown, whatever a guest has printed."""

from __future__ import annotations

import importlib.util
import random
import time
from typing import Any

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consoles.streams import screen
from consoles.streams.terminal import Size
from runphi_async.errors import UnsupportedError
from runphi_async.terminals import replay


def model(data: bytes, rows: int = 6, cols: int = 20) -> Any:
    made = pyte.Screen(cols, rows)
    pyte.ByteStream(made).feed(data)
    return made


WORDS = st.sampled_from(
    [b"a", b"word ", b"\r\n", b"\t", b"\b", b"\x1b[H", b"\x1b[2J", b"\x1b[K", b"\x1b[3;4H", b"\x1b[1;31m", b"\x1b[m",
     b"\x1b[7m", b"\x1b[38;5;200m", b"\x1b[48;2;1;2;3m", b"\x1b[A", b"\x1bM", b"\x1b[2L", b"\x1b[P", b"\x1b[?25l",
     b"\x1b[?25h", "ü€".encode()]
)  # fmt: skip


@given(st.lists(WORDS, max_size=60).map(b"".join))
def test_what_is_painted_is_what_was_shown(data: bytes) -> None:
    painted = screen.paint(data, Size(6, 20))
    assert painted.used == len(data)
    shown, again = model(data), model(painted.data)
    assert again.display == shown.display
    for y in range(6):
        assert [again.buffer[y][x] for x in range(20)] == [shown.buffer[y][x] for x in range(20)]
    assert again.cursor.y == shown.cursor.y
    assert again.cursor.x == min(shown.cursor.x, 19)
    assert again.cursor.attrs._replace(data=" ") == shown.cursor.attrs._replace(data=" ")
    assert again.cursor.hidden == shown.cursor.hidden


@pytest.mark.parametrize(
    ("data", "used"),
    [
        (b"", 0), (b"abc", 3), (b"abc\x1b", 3), (b"abc\x1b[", 3), (b"abc\x1b[31", 3), (b"abc\x1b[31m", 8),
        (b"a\x1b]0;title", 1), (b"a\x1b]0;title\x1b", 1), (b"a\x1b]0;title\x07", 11), (b"a\x1b]0;t\x1b\\", 8),
        (b"a\x1bP1;2", 1), (b"a\x1b(", 1), (b"a\x1b(B", 4), (b"\x1b\x1b[", 1), (b"\xc3", 0), (b"a\xe2\x82", 1),
        (b"a\xe2\x82\xac", 4), (b"a\xf0\x9f\x98", 1), (b"\x80\x80\x80\x80", 4), (b"\x1b[" + b"1" * 300, 302),
    ],
)  # fmt: skip
def test_what_its_end_cuts_in_two_is_left(data: bytes, used: int) -> None:
    assert screen.complete(data) == used


def test_not_on_a_terminal_it_is_lines() -> None:
    assert screen.paint(b"\x1b[2J\x1b[2;3H\x1b[31mred\x1b[m\r\nend", None).data == b"\n  red\nend\n"


@pytest.mark.parametrize(
    "data",
    [b"\x1b[" + b"9" * 60_000 + b"m", b"\x1b[?1;2m\x1b[>4;2m\x1b[?5n\x1b[c\x1b[6n", b"\xff" * 1000, b"\x9b31m"],
    ids=["digits", "private", "bytes", "c1"],
)
def test_nothing_upsets_it(data: bytes) -> None:
    painted = screen.paint(data + b"\x1b[m\r\n" * 300 + b"\x1b[2J\x1b[Hhere", Size(6, 20))
    assert model(painted.data).display[0].startswith("here")


def test_noise_takes_bounded_time() -> None:
    noise = random.Random(3).randbytes(screen.PART)
    begun = time.process_time()
    screen.paint(noise, Size(500, 1000))
    assert time.process_time() - begun < 10


def test_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install pyte"):
        replay.check("screen")
