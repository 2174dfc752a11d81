# SPDX-License-Identifier: Apache-2.0
"""The fake answers line by line as the recorded board did.

What cannot be the same twice is taken out of both sides: times in the kernel log and lines there of other drivers,
counts of hypervisor pages, the order in which CPUs come up, and how far a demo had counted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from runphi_async.testing.fake_jailhouse.tool import USAGE
from tests.unit.fakeboard import USAGE as FULL_USAGE
from tests.unit.fakeboard import FakeBoard, Result, session
from tests.unit.jailhousekit import DATA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.checkout import OpenCheckout

SESSIONS = sorted(path.stem for path in (DATA / "transcripts").glob("*.txt"))
#: Sessions in which a command is another user's: the programs must lie where that user reaches them.
OF_OTHER_USERS = ("grammar", "refusals")
#: Commands of which only the hypervisor's own lines are compared.
KERNEL_LOG = "dmesg"
NUMBERS = (
    (re.compile(r"mem \d+/994"), "mem N/994"),
    (re.compile(r"^Hello \d+ from"), "Hello N from"),
    (re.compile(r"(\] count) \d+$"), r"\1 N"),
    (re.compile(r"on CPU \d+$"), "on CPU N"),
)
CPU_LINE = re.compile(r" CPU \d+\.\.\. OK| Releasing CPU \d+")


@pytest.fixture
def board() -> Iterator[FakeBoard]:
    made = FakeBoard()
    yield made
    made.off()


@pytest.fixture
def open_board(open_checkout: OpenCheckout) -> Iterator[FakeBoard]:
    made = FakeBoard(open_checkout.root)
    yield made
    made.off()


def lines(text: str) -> list[str]:
    """The lines to compare."""
    found = []
    for line in text.replace("\r\n", "\n").rstrip("\n").splitlines():  # the recorder stripped the end
        plain = line
        for pattern, instead in NUMBERS:
            plain = pattern.sub(instead, plain)
        found.append(plain)
    cpus = iter(sorted(line for line in found if CPU_LINE.fullmatch(line)))
    return [next(cpus) if CPU_LINE.fullmatch(line) else line for line in found]


def kernel(text: str) -> list[str]:
    """The driver's lines of the kernel log, without their times; other output before it is kept."""
    rows = [re.sub(r"^\[ *[\d.]+\] ", "", row) for row in text.splitlines()]
    return [row for row in rows if re.search("[jJ]ailhouse|^ID |^\\d+ ", row) and "ivshmem" not in row]


def matches(command: str, expected: Result, answer: Result) -> bool:
    if (expected.err.splitlines(), expected.status) != (answer.err.splitlines(), answer.status):
        return False
    if KERNEL_LOG in command:
        wanted, given = kernel(expected.out), kernel(answer.out)
        return given[-len(wanted) :] == wanted
    wanted_text = USAGE.format(prog="jailhouse", blank=" ") if expected.out == f"{FULL_USAGE}\n" else expected.out
    return lines(wanted_text) == lines(answer.out)


def replay(name: str, board: FakeBoard) -> None:
    steps = session(DATA / "transcripts" / f"{name}.txt")
    assert len(steps) > 3
    for step in steps:
        if step.command is None:
            board.off()
            board.__init__(board.checkout)  # type: ignore[misc]
            continue
        answer = board.run(step.command)
        assert matches(step.command, step.result, answer), f"{step.command}\nwanted {step.result}\ngot    {answer}"


@pytest.mark.parametrize("name", [name for name in SESSIONS if name not in OF_OTHER_USERS])
@pytest.mark.timeout(300)
def test_sessions_are_answered_as_recorded(name: str, board: FakeBoard) -> None:
    replay(name, board)


@pytest.mark.parametrize("name", OF_OTHER_USERS)
@pytest.mark.timeout(300)
def test_other_users_are_answered_as_recorded(name: str, open_board: FakeBoard) -> None:
    replay(name, open_board)


def test_every_session_is_there() -> None:
    assert SESSIONS == ["cells", "cpus", "grammar", "messages", "parsing", "refusals", "states"]
