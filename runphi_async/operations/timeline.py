# SPDX-License-Identifier: Apache-2.0
"""What hypervisor, guests and runtime said, merged by time; for ``runphi timeline``.

A ``Track`` is one stream of items in order of time that remembers how far it was read. ``look`` is called on the loop
and only notes what there is; ``items`` reads files and is called in a thread.
"""

from __future__ import annotations

import datetime
import functools
import heapq
import json
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from backends.lines import Kind
from consoles.streams import logreader
from consoles.streams.sinks.logfile import PAIR
from runphi_async.terminals.consolelogs import plans, raw_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runphi_async.container.container import Container
    from runphi_async.record.eventlog import EventLog
    from runphi_async.terminals.hypervisor import Entry, HypervisorConsole

#: A log is read in steps of this.
CHUNK: Final = 1 << 18
#: A longer line of a guest is shown in pieces.
LINE_MAX: Final = 8192


class Item(NamedTuple):
    """One thing that was said.

    :ivar time: nanoseconds since the epoch.
    :ivar source: ``hypervisor``, ``cell``, ``console``, ``event``, or ``unknown``: the hypervisor or one of its cells.
    :ivar name: the cell or container it is about; "" when that cannot be told, or there is none.
    :ivar more: further fields of the JSON form.
    """

    time: int
    source: str
    name: str
    text: str
    more: dict[str, Any]


class Track(Protocol):
    """One stream of items."""

    def look(self) -> None:
        """Note what there is now; called on the loop."""
        ...

    def items(self) -> Iterator[Item]:
        """Give what came since the last call; called in a thread."""
        ...


class HypervisorTrack:
    """The lines of the hypervisor's console."""

    def __init__(self, console: HypervisorConsole, since: int) -> None:
        self._console = console
        self._since = since
        self._seq = -1
        self._fresh: list[Entry] = []

    def look(self) -> None:
        """Take the lines at hand."""
        self._fresh = self._console.after(self._seq)

    def items(self) -> Iterator[Item]:
        """Give older lines from the file, where those at hand do not reach back far enough."""
        fresh, self._fresh = self._fresh, []
        last = fresh[-1].seq if fresh else self._console.seq
        if self._seq < 0 or (fresh and fresh[0].seq > self._seq + 1):
            for entry in self._console.history(self._since):
                if self._seq < entry.seq <= last:
                    self._seq = entry.seq
                    yield hypervisor_item(entry)
        for entry in fresh:
            if entry.seq > self._seq:
                self._seq = entry.seq
                if entry.time >= self._since:
                    yield hypervisor_item(entry)
        self._seq = max(self._seq, 0)


def hypervisor_item(entry: Entry) -> Item:
    """Return a line of the hypervisor's console as an item."""
    more: dict[str, Any] = {"cut": True} if entry.cut else {}
    if entry.kind is Kind.MISSED:
        text = f"[{entry.missed} bytes of the hypervisor's console were lost]"
        return Item(entry.time, "hypervisor", "", text, {"missed": entry.missed})
    if entry.kind is Kind.MARK:
        return Item(entry.time, "event", "", entry.text, {"event": entry.text.partition(":")[0]})
    source = {Kind.HYPERVISOR: "hypervisor", Kind.INMATE: "cell"}.get(entry.kind, "unknown")
    return Item(entry.time, source, entry.cell, entry.text, more)


class EventTrack:
    """A container's events."""

    def __init__(self, events: EventLog, directory: str, name: str, since: int) -> None:
        self._events = events
        self._directory = directory
        self._name = name
        self._since = since
        self._offset = 0

    def look(self) -> None:
        """Nothing: the file is the truth."""

    def items(self) -> Iterator[Item]:
        """Give the events that are complete in the file."""
        data = self._events.read(self._directory, self._offset)
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for line in data.splitlines():
            try:
                event: dict[str, Any] = msgspec.json.decode(line)
                item = event_item(event, self._name)
            except (msgspec.MsgspecError, KeyError, TypeError):
                continue  # cut by a full disk
            if item.time >= self._since:
                yield item


def event_item(event: dict[str, Any], name: str) -> Item:
    """Return an event as an item."""
    more = {key: value for key, value in event.items() if key not in ("seq", "time", "event")}
    words = [event["event"], *(f"{key}={_plain(value)}" for key, value in more.items())]
    return Item(int(event["time"] * 1e9), "event", name, " ".join(words), {"event": event["event"], **more})


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text and " " not in text else json.dumps(text)


class ConsoleTrack:
    """The lines of a guest's console, from its log.

    The log's index says when each stretch was written. A line has the time of its last byte: what was typed at a prompt
    belongs to when it was typed, and nobody who follows is shown a line of the past.
    """

    def __init__(self, directory: str, name: str, since: int) -> None:
        self._directory = directory
        self._name = name
        self._since = since
        self._offset = -1
        self._rest = b""
        self._rest_time = 0
        #: there will be no more: an unfinished line is shown as well
        self.final = False
        self._final = False

    def look(self) -> None:
        """Take the word of the loop on whether this is all."""
        self._final = self.final

    def items(self) -> Iterator[Item]:
        """Give the lines that are complete in the log."""
        if self._offset < 0:
            first, _ = logreader.bounds(self._directory)
            self._offset = logreader.since(self._directory, self._since) if self._since else first
        while True:
            at, data = logreader.read(self._directory, self._offset, CHUNK)
            if not data:
                break
            if at > self._offset:
                self._rest = b""
                text = f"[{at - self._offset} bytes were rotated away]"
                yield self._item(self._time(at), text.encode(), cut=True)
            yield from self._lines(at, data)
            self._offset = at + len(data)
        if self._final and self._rest:
            rest, self._rest = self._rest, b""
            yield self._item(self._rest_time, rest, cut=True)

    def _lines(self, at: int, data: bytes) -> Iterator[Item]:
        times = stretches(self._directory, at, at + len(data))
        number, start = 0, 0
        while start < len(data):
            end = data.find(b"\n", start, start + LINE_MAX)
            whole = end >= 0
            stop = end if whole else min(len(data), start + LINE_MAX)
            last = at + (stop if whole else stop - 1)
            while number + 1 < len(times) and times[number + 1][0] <= last:
                number += 1
            if times:
                self._rest_time = times[number][1]
            line = self._rest + data[start:stop] if self._rest else data[start:stop]
            start = stop + 1 if whole else stop
            ends = whole or len(line) >= LINE_MAX
            self._rest = b"" if ends else line
            if ends:
                yield self._item(self._rest_time, line, cut=not whole)

    def _time(self, at: int) -> int:
        found = stretches(self._directory, at, at + 1)
        return found[0][1] if found else self._rest_time

    def _item(self, when: int, line: bytes, *, cut: bool) -> Item:
        text = line.rstrip(b"\r").decode("utf-8", "backslashreplace")
        return Item(when, "console", self._name, text, {"cut": True} if cut else {})


def stretches(directory: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return (offset, time) of the stretches of a log that make up the bytes from ``start`` to ``end``."""
    found: list[tuple[int, int]] = []
    for segment in logreader.segments(directory):
        if segment.base >= end or segment.base + segment.size <= start:
            continue
        try:
            with open(segment.times, "rb") as file:
                found += _between(file.fileno(), start, end)
        except OSError:
            continue  # rotated away meanwhile
    return found


def _between(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Look up the last pair at or before ``start`` by halving, then go on to ``end``."""

    def pair(number: int) -> tuple[int, int]:
        offset, when = PAIR.unpack(os.pread(fd, PAIR.size, number * PAIR.size))
        return offset, when

    low, high = 0, os.fstat(fd).st_size // PAIR.size
    count = high
    while high - low > 1:
        middle = (low + high) // 2
        if pair(middle)[0] <= start:
            low = middle
        else:
            high = middle
    for number in range(low, count):
        offset, when = pair(number)
        if offset >= end:
            return
        yield offset, when


class Timeline:
    """All tracks together."""

    def __init__(self, since: int) -> None:
        self._since = since
        self._tracks: dict[Container | None, list[Track]] = {}
        self._early: list[Item] = []

    def add_hypervisor(self, console: HypervisorConsole) -> None:
        """Show the hypervisor's console."""
        self._tracks[None] = [HypervisorTrack(console, self._since)]

    def add_guest(self, guest: Container, events: EventLog) -> None:
        """Show a container's console and events; a second time makes no difference."""
        record = guest.record
        if guest in self._tracks:
            return
        tracks: list[Track] = [EventTrack(events, guest.directory, record.name, self._since)]
        directory = raw_directory(plans(record))
        if directory is not None:
            tracks.append(ConsoleTrack(directory, record.name, self._since))
        self._tracks[guest] = tracks

    @property
    def guests(self) -> list[Container]:
        """The containers that are shown."""
        return [guest for guest in self._tracks if guest is not None]

    def finish(self, guest: Container) -> None:
        """There will be no more of a container's console."""
        for track in self._tracks[guest]:
            if isinstance(track, ConsoleTrack):
                track.final = True

    def drop(self, guest: Container) -> None:
        """Forget a container that is deleted."""
        self._tracks.pop(guest, None)

    @property
    def waits(self) -> bool:
        """Whether items are held back because older ones might still come."""
        return bool(self._early)

    def turn(self, until: int) -> Iterator[Item]:
        """Give what is new, in order of time; what came after ``until`` is kept for a later turn.

        Called on the loop; to be read in a thread.
        """
        tracks = [track for tracks in self._tracks.values() for track in tracks]
        for track in tracks:
            track.look()
        early, self._early = self._early, []
        return self._merge(tracks, early, until)

    def _merge(self, tracks: Sequence[Track], early: list[Item], until: int) -> Iterator[Item]:
        streams = [iter(early), *(track.items() for track in tracks)]
        for item in heapq.merge(*streams, key=lambda item: item.time):
            if item.time <= until:
                yield item
            else:
                self._early.append(item)


# Section: as text


def safe(text: str) -> str:
    """Return text in which nothing can act on a terminal: what is not printable is spelled out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode() if character != "\\" else character


def stamp(time_ns: int) -> str:
    """Return a time as people and programs read it: UTC, microseconds."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06d}Z"


@functools.lru_cache(maxsize=64)  # thousands of lines share a second
def _second(seconds: int) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%S}"


def as_text(item: Item) -> str:
    """Return an item as one line: time, who spoke, about whom, what."""
    unknown = "?" if item.source in ("cell", "unknown") else "-"
    source = "?" if item.source == "unknown" else item.source
    return f"{stamp(item.time)} {source:<10} {safe(item.name) or unknown:<16} {safe(item.text)}".rstrip() + "\n"


def as_json(item: Item) -> str:
    """Return an item as one line of JSON, in ASCII: it may end up on a terminal as well."""
    data = {"time": stamp(item.time), "source": item.source, "name": item.name or None, "text": item.text}
    return json.dumps({**item.more, **data}) + "\n"
