# SPDX-License-Identifier: Apache-2.0
"""The timeline: tracks in order of time, merged, held back while older items may come, shown safely."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.lines import Kind
from consoles.streams.sinks.logfile import INDEX, LOG, PAIR
from runphi_async.events import Exit, Start
from runphi_async.operations import timeline
from runphi_async.operations.timeline import (
    ConsoleTrack,
    EventTrack,
    HypervisorTrack,
    Item,
    Timeline,
    as_json,
    as_text,
    event_item,
    hypervisor_item,
    safe,
    stamp,
    stretches,
)
from runphi_async.record.eventlog import EventLog
from runphi_async.terminals.hypervisor import NAME, Entry, HypervisorConsole
from tests.unit.sourcekit import Puppet

if TYPE_CHECKING:
    from pathlib import Path

T = 1_700_000_000_000_000_000


def write_log(directory: Path, *parts: tuple[int, bytes], suffix: str = "", base: int = 0) -> None:
    """Write a log as the sink does: a first pair that names the base, then one for every part."""
    directory.mkdir(exist_ok=True)
    with open(directory / (LOG + suffix), "ab") as log, open(directory / (INDEX + suffix), "ab") as index:
        if index.tell() == 0:
            index.write(PAIR.pack(base, parts[0][0]))
        for when, data in parts:
            index.write(PAIR.pack(base + log.tell(), when))
            log.write(data)
            log.flush()


def shown(track: timeline.Track) -> list[tuple[int, str]]:
    track.look()
    return [(item.time, item.text) for item in track.items()]


# Section: consoles


def test_a_line_has_the_time_of_its_last_byte(tmp_path: Path) -> None:
    write_log(tmp_path / "a", (10, b"one\r\ntw"), (20, b"o\r\n"), (30, b"three\r\nfo"))
    track = ConsoleTrack(str(tmp_path / "a"), "a", 0)
    assert shown(track) == [(10, "one"), (20, "two"), (30, "three")]
    assert shown(track) == []
    write_log(tmp_path / "a", (40, b"ur\r\n> "))
    assert shown(track) == [(40, "four")]
    track.final = True
    assert shown(track) == [(40, "> ")]
    assert shown(track) == []


def test_a_console_since_a_time(tmp_path: Path) -> None:
    write_log(tmp_path / "a", (10, b"one\r\n"), (20, b"two\r\n"), (30, b"three\r\n"))
    assert shown(ConsoleTrack(str(tmp_path / "a"), "a", 15)) == [(20, "two"), (30, "three")]


def test_a_console_across_a_rotation(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    write_log(directory, (10, b"one\r\nt"), suffix=".1")
    write_log(directory, (20, b"wo\r\nthree\r\n"), base=6)
    track = ConsoleTrack(str(directory), "a", 0)
    assert shown(track) == [(10, "one"), (20, "two"), (20, "three")]
    for name in (LOG, INDEX):
        os.unlink(directory / name)
    write_log(directory, (50, b"six\r\n"), base=1000)
    assert shown(track) == [(50, f"[{1000 - 17} bytes were rotated away]"), (50, "six")]


def test_an_endless_line_is_shown_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "LINE_MAX", 4)
    write_log(tmp_path / "a", (10, b"abcdefgh"), (20, b"i\r\n"))
    track = ConsoleTrack(str(tmp_path / "a"), "a", 0)
    assert shown(track) == [(10, "abcd"), (10, "efgh"), (20, "i")]


def test_a_console_without_a_log(tmp_path: Path) -> None:
    assert shown(ConsoleTrack(str(tmp_path / "none"), "a", 0)) == []


@settings(deadline=None)  # a busy machine
@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=20), st.integers(0, 600), st.integers(1, 40))
def test_stretches_are_found_by_halving(tmp_path_factory: Any, parts: list[bytes], start: int, length: int) -> None:
    directory = tmp_path_factory.mktemp("log") / "a"
    write_log(directory, *((100 * (number + 1), part) for number, part in enumerate(parts)))
    pairs, at = [(0, 100)], 0
    for number, part in enumerate(parts):
        pairs.append((at, 100 * (number + 1)))
        at += len(part)
    expected = []
    if start < at:
        first = max(number for number, (offset, _) in enumerate(pairs) if offset <= start)
        expected = [pair for pair in pairs[first:] if pair[0] < start + length]
    assert stretches(str(directory), start, start + length) == expected


# Section: events


def test_events_as_items(tmp_path: Path) -> None:
    events = EventLog()
    track = EventTrack(events, str(tmp_path), "a", 0)
    events.write(str(tmp_path), Exit(code=3, reason="guest panicked", delivered=True))
    ((_, text),) = shown(track)
    assert text == 'exit code=3 reason="guest panicked" delivered=true'
    events.write(str(tmp_path), Start())
    assert [text for _, text in shown(track)] == ["start"]
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"half\n{"seq":9,"time":1.5,"event":"late"}\n{"seq":10,"ti')
    assert shown(track) == [(1_500_000_000, "late")]
    assert event_item({"seq": 1, "time": 2.0, "event": "start"}, "a").more == {"event": "start"}


def test_whoever_watches_all_events_hears_of_every_container(tmp_path: Path) -> None:
    events, heard = EventLog(), []
    with events.watching(lambda: heard.append(1)):
        events.write(str(tmp_path), Start())
        events.forget(str(tmp_path))
    events.write(str(tmp_path), Start())
    assert heard == [1, 1]


# Section: the hypervisor


def test_hypervisor_lines_from_the_file_and_at_hand(tmp_path: Path) -> None:
    entries = [Entry(n, 10 * n, Kind.HYPERVISOR, f"line {n}") for n in range(1, 9)]
    with open(tmp_path / NAME, "wb") as file:
        for entry in entries[:6]:
            file.write(json.dumps({"seq": entry.seq, "time": entry.time, "kind": "hypervisor", "text": entry.text})
                       .encode() + b"\n")  # fmt: skip
    console = HypervisorConsole(Puppet(), str(tmp_path), 1 << 20)
    console._recent.extend(entries[3:8])  # the last two are not on disk yet
    console.seq = 8
    track = HypervisorTrack(console, 0)
    assert shown(track) == [(10 * n, f"line {n}") for n in range(1, 9)]
    assert shown(track) == []
    console._recent.append(Entry(9, 90, Kind.HYPERVISOR, "line 9"))
    console.seq = 9
    assert shown(track) == [(90, "line 9")]
    assert shown(HypervisorTrack(console, 75)) == [(80, "line 8"), (90, "line 9")]


def test_who_wrote_a_line_is_said_or_said_to_be_unknown() -> None:
    def text(kind: Kind, cell: str = "", missed: int = 0) -> str:
        return as_text(hypervisor_item(Entry(1, T, kind, "hi", cell, False, missed))).split(" ", 1)[1]

    assert text(Kind.HYPERVISOR) == "hypervisor -                hi\n"
    assert text(Kind.HYPERVISOR, "vcon1") == "hypervisor vcon1            hi\n"
    assert text(Kind.INMATE, "vcon1") == "cell       vcon1            hi\n"
    assert text(Kind.INMATE) == "cell       ?                hi\n"
    assert text(Kind.UNKNOWN) == "?          ?                hi\n"
    gone = hypervisor_item(Entry(1, T, Kind.MARK, "hypervisor-console-gone: why"))
    assert (gone.source, gone.text) == ("event", "hypervisor-console-gone: why")
    assert gone.more == {"event": "hypervisor-console-gone"}
    assert (
        text(Kind.MISSED, missed=8005)
        == "hypervisor -                [8005 bytes of the hypervisor's console were lost]\n"
    )


# Section: all together


class Fixed:
    """A track of given items."""

    def __init__(self, *items: tuple[int, str]) -> None:
        self.new = [Item(when, "console", "a", text, {}) for when, text in items]
        self._noted: list[Item] = []

    def look(self) -> None:
        self._noted, self.new = self.new, []

    def items(self) -> Any:
        return iter(self._noted)


def test_tracks_are_merged_and_late_items_still_find_their_place() -> None:
    made = Timeline(0)
    first, second = Fixed((1, "a"), (5, "e"), (9, "i")), Fixed((2, "b"), (8, "h"))
    made._tracks = {None: [first, second]}

    def turn(until: int) -> str:
        return "".join(item.text for item in made.turn(until))

    assert turn(5) == "abe"
    assert made.waits
    second.new = [Item(7, "console", "a", "g", {}), Item(11, "console", "a", "k", {})]
    assert turn(10) == "ghi"
    assert turn(20) == "k"
    assert not made.waits


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äöü", "plain äöü"),
        ("a\tb", "a\tb"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("csi \x9b31m", "csi \\x9b31m"),
        ("right to left \u202e", "right to left \\u202e"),
        ("a\\b", "a\\b"),
        ("over\rwritten\b", "over\\rwritten\\x08"),
    ],
)
def test_nothing_acts_on_a_terminal(text: str, shown: str) -> None:
    assert safe(text) == shown


@settings(deadline=None)  # a busy machine
@given(st.text())
def test_shown_text_is_printable_whatever_was_said(text: str) -> None:
    line = as_text(Item(T, "console", text, text, {}))
    assert line.endswith("\n")
    assert line[:-1].replace("\t", "").isprintable()
    encoded = as_json(Item(T, "console", "a", text, {}))
    assert encoded.isascii()
    assert encoded[:-1].isprintable()
    assert json.loads(encoded)["text"] == text


def test_the_forms() -> None:
    item = Item(T + 123_456_789, "event", "demo", "exit code=3", {"event": "exit", "code": 3})
    assert as_text(item) == "2023-11-14T22:13:20.123456Z event      demo             exit code=3\n"
    assert json.loads(as_json(item)) == {
        "time": "2023-11-14T22:13:20.123456Z", "source": "event", "name": "demo", "text": "exit code=3",
        "event": "exit", "code": 3,
    }  # fmt: skip
    assert stamp(0) == "1970-01-01T00:00:00.000000Z"
