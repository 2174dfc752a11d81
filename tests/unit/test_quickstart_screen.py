# SPDX-License-Identifier: Apache-2.0
"""What quickstart shows of a guest's console."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runphi_async.testing.quickstart import screen
from runphi_async.testing.quickstart.screen import OutputGone, Shown

if TYPE_CHECKING:
    from collections.abc import Iterable


def shown(pieces: Iterable[bytes], monkeypatch: pytest.MonkeyPatch) -> str:
    out: list[str] = []
    monkeypatch.setattr(screen, "write", out.append)
    console = Shown()
    for piece in pieces:
        console.feed(piece)
    console.end()
    return "".join(out)


def test_lines_stand_behind_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown([b"one\r\n\r\ntwo\r\r\n> "], monkeypatch) == "    | one\n    |\n    | two\n    | > \n"


def test_a_prompt_comes_at_once_and_what_is_typed_begins_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out: list[str] = []
    monkeypatch.setattr(screen, "write", out.append)
    console = Shown()
    console.feed(b"> ")
    assert "".join(out) == "    | > "
    console.typed("exit 3\x1b")
    assert "".join(out) == "    | > \n  > types: exit 3\\x1b\n"


def test_control_sequences_are_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown([b"\x1b[2Jx\rz\x9b\xff"], monkeypatch) == "    | \\x1b[2Jx\\rz\ufffd\ufffd\n"


@given(data=st.binary(), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_it_does_not_matter_how_the_bytes_come(data: bytes, cuts: list[int]) -> None:
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(ends)]
    with pytest.MonkeyPatch.context() as patch:
        whole, parts = shown([data], patch), shown(pieces, patch)
    assert whole == parts
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", whole)
    assert all(line.startswith(screen.MARGIN.rstrip()) for line in whole.splitlines())


def test_nobody_reads_any_more(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    monkeypatch.setattr("os.dup2", lambda *_: None)
    with pytest.raises(OutputGone):
        screen.say("x")
