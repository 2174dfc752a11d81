# SPDX-License-Identifier: Apache-2.0
"""The event log: numbered without holes, also over a restart, and whoever follows learns of everything."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from runphi_async import regular
from runphi_async.events import Create, Exit, HypervisorLine, Pause, Start
from runphi_async.record.eventlog import END, NAME, EventLog, last_number

if TYPE_CHECKING:
    from pathlib import Path


def events(log: EventLog, directory: Path, offset: int = 0) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read(str(directory), offset).splitlines()]


def test_events_are_numbered_and_timed(tmp_path: Path) -> None:
    log = EventLog()
    log.write(str(tmp_path), Create(backend="fake", guest="inmate", memory=1 << 20, vcpus=1))
    log.write(str(tmp_path), Exit(code=3, reason='a "b"\nc', delivered=True))
    first, second = events(log, tmp_path)
    assert (first["seq"], first["event"], first["backend"]) == (1, "create", "fake")
    assert (second["seq"], second["code"], second["reason"]) == (2, 3, 'a "b"\nc')
    assert isinstance(first["time"], float)
    assert first["time"] <= second["time"]  # type: ignore[operator]
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def test_reading_goes_on_at_an_offset(tmp_path: Path) -> None:
    log = EventLog()
    log.write(str(tmp_path), Start())
    offset = len(log.read(str(tmp_path), 0))
    assert log.read(str(tmp_path), offset) == b""
    log.write(str(tmp_path), Pause())
    assert [event["event"] for event in events(log, tmp_path, offset)] == ["pause"]


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    EventLog().write(str(tmp_path), Start())
    EventLog().write(str(tmp_path), Pause())
    assert [event["seq"] for event in events(EventLog(), tmp_path)] == [1, 2]


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog()
    for _ in range(1000):
        log.write(str(tmp_path), HypervisorLine(text="x" * 100))
    assert (tmp_path / NAME).stat().st_size > 4 * END
    asked: list[int] = []
    tail = regular.tail

    def asking(path: str, limit: int) -> bytes:
        asked.append(limit)
        return tail(path, limit)

    monkeypatch.setattr(regular, "tail", asking)
    EventLog().write(str(tmp_path), Start())
    assert asked == [END]
    assert last_number(str(tmp_path / NAME)) == 1001


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"", 0),
        (b'{"seq":1,"event":"a"}\n{"seq":2,"eve', 1),
        (b'{"seq":7,"event":"a"}\n\xff\n[]\n', 7),
        (b'{"seq":3,"event":"a"}\n{"seq":4,"text":"' + b"x" * (3 * END) + b'"}\n', 4),
        (b"x" * (3 * END), 0),
    ],
    ids=["empty", "torn", "garbage", "longer than what is read", "nothing of it"],
)
def test_the_last_number_of_any_file(tmp_path: Path, content: bytes, number: int) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert last_number(str(tmp_path / NAME)) == number


def test_a_record_that_is_gone_has_no_events(tmp_path: Path) -> None:
    log = EventLog()
    gone = tmp_path / "gone"
    log.write(str(gone), Start())
    assert log.read(str(gone), 0) == b""
    assert not gone.exists()


def test_followers_are_woken_by_their_record_only(tmp_path: Path) -> None:
    log, woken = EventLog(), []
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with (
        log.following(str(one), lambda: woken.append("a")),
        log.following(str(one), lambda: woken.append("b")),
        log.following(str(two), lambda: woken.append("c")),
    ):
        log.write(str(one), Start())
        assert sorted(woken) == ["a", "b"]
        log.forget(str(two))
        assert sorted(woken) == ["a", "b", "c"]
    log.write(str(one), Start())
    assert len(woken) == 3


def test_a_name_used_again_begins_anew(tmp_path: Path) -> None:
    log = EventLog()
    record = tmp_path / "c1"
    for _ in range(2):
        record.mkdir()
        log.write(str(record), Start())
        assert [event["seq"] for event in events(log, record)] == [1]
        log.forget(str(record))
        shutil.rmtree(record)
