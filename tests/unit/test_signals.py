# SPDX-License-Identifier: Apache-2.0
"""Signals as engines send them: none that is forwarded as a matter of course may destroy a guest."""

from __future__ import annotations

import signal

import pytest

from runphi_async.errors import UsageError
from runphi_async.oci.signals import Meaning, meaning, parse


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, Meaning.PROBE),
        (9, Meaning.KILL),
        (15, Meaning.STOP),
        (2, Meaning.STOP),
        (3, Meaning.STOP),
        (28, Meaning.RESIZE),
        (19, Meaning.PAUSE),
        (18, Meaning.RESUME),
        (1, Meaning.PASS),
        (10, Meaning.PASS),
        (64, Meaning.PASS),
    ],
)
def test_meaning(number: int, expected: Meaning) -> None:
    assert meaning(number) is expected


def test_only_three_signals_and_kill_can_end_a_guest() -> None:
    assert [n for n in range(65) if meaning(n) in (Meaning.KILL, Meaning.STOP)] == [2, 3, 9, 15]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9", 9), ("0", 0), ("64", 64), ("KILL", 9), ("SIGKILL", 9), ("kill", 9), ("sigTerm", 15), ("WINCH", 28),
        ("RTMIN", signal.SIGRTMIN), ("RTMIN+3", signal.SIGRTMIN + 3), ("SIGRTMAX", signal.SIGRTMAX), ("09", 9),
    ],
)  # fmt: skip
def test_parse(text: str, number: int) -> None:
    assert parse(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "65",
        "-9",
        "999999999999999999999",
        "FOO",
        "SIG",
        "9x",
        "RTMIN+31",
        "RTMIN+",
        "²",
        "１５",
        " 9",
        "SIGSIGKILL",
    ],
)
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(UsageError, match="unknown signal") as caught:
        parse(text)
    assert caught.value.hint is not None
