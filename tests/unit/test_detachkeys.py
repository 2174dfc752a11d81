# SPDX-License-Identifier: Apache-2.0
"""Detach keys: how people write them, and how the client finds them in what is typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runphi_async.client.keys import DetachKeys
from runphi_async.commands.detachkeys import parse
from runphi_async.errors import UsageError


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("CTRL-P, ctrl-Q", b"\x10\x11"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x00\x1b\x1c\x1d\x1e\x1f"),
        ("a,B", b"aB"),
        ("~,.", b"~."),
        ("", b""),
    ],
)
def test_parse(text: str, keys: bytes) -> None:
    assert parse(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ctrl-pq", "ab", "alt-x", "é", ",", "a,,b", "\x10"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(UsageError, match="unknown detach key"):
        parse(text)


def test_the_sequence_leaves_and_what_came_before_is_passed_on() -> None:
    assert DetachKeys(b"\x10\x11").feed(b"ls\r\x10\x11rest") == (b"ls\r", True)


def test_the_sequence_over_several_reads() -> None:
    keys = DetachKeys(b"\x10\x11")
    assert keys.feed(b"a\x10") == (b"a", False)
    assert keys.feed(b"b") == (b"\x10b", False)
    assert keys.feed(b"\x10") == (b"", False)
    assert keys.feed(b"\x11") == (b"", True)


def test_a_beginning_repeated() -> None:
    assert DetachKeys(b"\x10\x11").feed(b"\x10\x10\x11") == (b"\x10", True)
    assert DetachKeys(b"aab").feed(b"aaab") == (b"a", True)


def test_no_keys_pass_everything() -> None:
    assert DetachKeys(b"").feed(b"\x10\x11") == (b"\x10\x11", False)


@given(
    keys=st.text("ab", min_size=1, max_size=4).map(str.encode),
    pieces=st.lists(st.text("abc", max_size=5).map(str.encode), max_size=8),
)
def test_whatever_is_typed_nothing_is_lost_before_the_sequence(keys: bytes, pieces: list[bytes]) -> None:
    finder, passed, left = DetachKeys(keys), b"", False
    for piece in pieces:
        out, left = finder.feed(piece)
        passed += out
        if left:
            break
    typed = b"".join(pieces)
    found = typed.find(keys)
    assert left == (found >= 0)
    if left:
        assert passed == typed[:found]
    else:
        assert typed.startswith(passed)
        assert keys.startswith(typed[len(passed) :])
