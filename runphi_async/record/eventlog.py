# SPDX-License-Identifier: Apache-2.0
"""The event log of a container: one JSON object a line, numbered, in the record; ``runphi events`` shows it.

One writer (the supervisor), so created < started < exit holds for every reader (containerd#7111).
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final

import msgspec

from runphi_async import regular
from runphi_async.events import encode, kind
from runphi_async.host.clock import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runphi_async.events import AnyEvent, Own
    from runphi_async.host.clock import Timekeeper

NAME: Final = "events.jsonl"
#: to a regular file; where QEMU has put a FIFO it does not wait for a reader
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
log = logging.getLogger(__name__)


#: This much of a log's end is read for the number of its last event, and more only if that is in none of it.
END: Final = 1 << 14
_GROWTH: Final = 16


class Numbered(msgspec.Struct):
    """What an event is counted by."""

    seq: int


_decoder = msgspec.json.Decoder(Numbered)


def last_number(path: str) -> int:
    """Return the number of the last event in a log, 0 when there is none.

    Only the end is read, because this blocks the loop: with the first event after a restart.
    """
    limit = END
    while True:
        data = regular.tail(path, limit)
        for line in reversed(data.splitlines()):
            try:
                return _decoder.decode(line).seq
            except msgspec.MsgspecError:  # torn by a full disk, or its beginning was not read
                continue
        if len(data) < limit:
            return 0
        limit *= _GROWTH


class EventLog:
    """Writes events and wakes those who follow.

    :param clock: dates them.
    """

    def __init__(self, clock: Timekeeper = SYSTEM) -> None:
        self._clock = clock
        self._numbers: dict[str, int] = {}
        self._followers: dict[str, set[Callable[[], None]]] = {}
        self._watchers: set[Callable[[], None]] = set()

    def write(self, directory: str, event: AnyEvent) -> None:
        """Append one event; a record that is gone has no more events."""
        number = self._number(directory) + 1
        line = encode({"seq": number, "time": self._clock.wall()}, event)
        try:
            fd = os.open(os.path.join(directory, NAME), _APPEND, 0o600)
        except FileNotFoundError:
            return
        except OSError as exc:  # its place is taken by a link or a FIFO
            log.warning("cannot write an event into %s: %s", directory, exc.strerror)
            return
        try:
            os.write(fd, line)
        except OSError as exc:  # its disk is full: what happens to the container matters more
            log.error("cannot write an event into %s: %s", directory, exc.strerror)
            return
        finally:
            os.close(fd)
        self._numbers[directory] = number
        for wake in (*self._followers.get(directory, ()), *self._watchers):
            wake()

    def _number(self, directory: str) -> int:
        if directory not in self._numbers:
            self._numbers[directory] = last_number(os.path.join(directory, NAME))
        return self._numbers[directory]

    def read(self, directory: str, offset: int) -> bytes:
        """Return the events from byte ``offset`` on."""
        try:
            with open(regular.opened(os.path.join(directory, NAME), links=False), "rb") as file:
                file.seek(offset)
                return file.read()
        except OSError:
            return b""

    def has(self, directory: str, event: type[Own]) -> bool:
        """Whether an event of this kind was ever written. Within a text its quotes would be escaped."""
        return msgspec.json.encode({"event": kind(event)})[1:-1] in self.read(directory, 0)

    @contextlib.contextmanager
    def following(self, directory: str, wake: Callable[[], None]) -> Iterator[None]:
        """Call ``wake`` after every event while the block runs."""
        followers = self._followers.setdefault(directory, set())
        followers.add(wake)
        try:
            yield
        finally:
            followers.discard(wake)

    def forget(self, directory: str) -> None:
        """The record goes away: wake whoever follows a last time."""
        self._numbers.pop(directory, None)
        for wake in (*self._followers.pop(directory, ()), *self._watchers):
            wake()

    @contextlib.contextmanager
    def watching(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call ``wake`` after every event of any container while the block runs."""
        self._watchers.add(wake)
        try:
            yield
        finally:
            self._watchers.discard(wake)
