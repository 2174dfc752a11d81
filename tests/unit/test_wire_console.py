# SPDX-License-Identifier: Apache-2.0
"""What is said of a console that is shown: the bytes stay, because clients outlive an upgrade."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runphi_async.wire.console import AttachStart, pack_offset, unpack_offset


@pytest.mark.parametrize(
    ("start", "payload"),
    [
        (AttachStart(), b"\x00"),
        (AttachStart(terminal=True, stdin=True, detach=b"\x10\x11"), b"\x03\x10\x11"),
        (AttachStart(terminal=True, stdin=True, people=True, escape=b"\x1d", detach=b"\x10"), b"\x1b\x1d\x10"),
        (AttachStart(terminal=True, stdin=True, forward=True), b"\x07"),
        (AttachStart(safe=True), b"\x40"),
    ],
)
def test_the_bytes(start: AttachStart, payload: bytes) -> None:
    assert start.encode() == payload
    assert vars(AttachStart.decode(payload)) == vars(start)


@given(st.lists(st.booleans(), min_size=5, max_size=5), st.binary(max_size=1), st.binary(max_size=20))
def test_what_goes_in_comes_out(flags: list[bool], escape: bytes, detach: bytes) -> None:
    terminal, stdin, forward, people, safe = flags
    start = AttachStart(
        terminal=terminal, stdin=stdin, forward=forward, people=people, safe=safe, escape=escape, detach=detach
    )
    assert vars(AttachStart.decode(start.encode())) == vars(start)


def test_what_makes_no_sense_is_refused_and_what_is_new_left_out() -> None:
    with pytest.raises(ValueError, match="how the console is shown"):
        AttachStart.decode(b"")
    with pytest.raises(ValueError, match="one byte"):
        AttachStart(escape=b"ab").encode()
    assert vars(AttachStart.decode(b"\xa0")) == vars(AttachStart())


@given(st.integers(0, (1 << 64) - 1))
def test_offsets(offset: int) -> None:
    assert len(pack_offset(offset)) == 8
    assert unpack_offset(pack_offset(offset)) == offset


def test_an_offset_is_written_as_ever() -> None:
    assert pack_offset(258) == b"\0\0\0\0\0\0\1\2"
