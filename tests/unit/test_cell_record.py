# SPDX-License-Identifier: Apache-2.0
"""What a cell's driver keeps: how far it has come, for a next supervisor, and what nobody could be told yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.base import Told
from backends.ending import Ending
from backends.jailhouse.ending import Phase
from backends.jailhouse.marks import Said
from backends.jailhouse.progress import PHASE, SAID, Progress
from backends.jailhouse.voice import HEARD_MAX, Voice
from runphi_async.events import CpusBack, CpusLeft, kind

if TYPE_CHECKING:
    from pathlib import Path


def test_a_next_supervisor_finds_what_was_written(tmp_path: Path) -> None:
    first = Progress(str(tmp_path), fresh=True)
    assert (first.phase, first.said) == (Phase.NONE, None)
    first.go(Phase.STARTED)
    first.keep(Said(3, "no such program"))
    assert (tmp_path / PHASE).read_text() == "started\n"
    assert (tmp_path / SAID).read_text() == "3 no such program\n"
    second = Progress(str(tmp_path), fresh=False)
    assert (second.phase, second.said) == (Phase.STARTED, Said(3, "no such program"))


@pytest.mark.parametrize("text", [b"", b"flying\n", b"\xff", b"x" * 100])
def test_files_that_say_nothing_are_no_trouble(tmp_path: Path, text: bytes) -> None:
    (tmp_path / PHASE).write_bytes(text)
    (tmp_path / SAID).write_bytes(text)
    found = Progress(str(tmp_path), fresh=False)
    assert (found.phase, found.said) == (Phase.NONE, None)


def test_a_record_that_is_gone_keeps_no_word_and_raises_for_no_step(tmp_path: Path) -> None:
    progress = Progress(str(tmp_path / "gone"), fresh=True)
    progress.keep(Said(0))
    assert progress.said == Said(0)
    with pytest.raises(OSError, match="No such file"):
        progress.go(Phase.MAKING)
    assert progress.phase is Phase.NONE, "a step that is not written was not taken"


class People:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[str] = []
        self.ending = Ending()
        self.voice = Voice(self.ending)

    def attend(self) -> None:
        told = Told(
            lambda: None, lambda printed: None, self.lines.append, lambda event: self.events.append(kind(event))
        )
        self.ending.attend(told)
        self.voice.attend(told)


def test_what_nobody_could_hear_is_said_once_somebody_attends() -> None:
    people = People()
    people.voice.say("early")
    people.voice.note(CpusLeft(cpus="1", root=""))
    assert (people.lines, people.events) == ([], [])
    people.attend()
    people.voice.say("late")
    assert (people.lines, people.events) == (["early", "late"], ["cpus-left"])


def test_behind_the_end_there_are_events_and_no_lines() -> None:
    people = People()
    people.attend()
    people.ending.once()
    people.voice.say("too late")
    people.voice.note(CpusBack(cpus="1", offline=""))
    assert (people.lines, people.events) == ([], ["cpus-back"])


def test_a_guest_that_plays_the_hypervisor_is_not_heard_for_ever() -> None:
    people = People()
    people.attend()
    for number in range(HEARD_MAX + 5):
        people.voice.heard(f"line {number}")
    assert len(people.events) == HEARD_MAX
