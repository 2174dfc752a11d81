# SPDX-License-Identifier: Apache-2.0
"""One guest's console: a source feeds the journal, and every reader is a cursor on it.

Lossless sinks (the engine's stdio, the log) may slow the guest down and never lose; attached clients are skipped
forward and never slow anybody. The hub only moves bytes: who may attach, and when a guest has ended, is decided by
its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from consoles.streams.sinks.attach import AttachSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.streams.journal import Journal
    from consoles.streams.sinks.attach import Outlet

#: One turn of the loop takes at most this from one guest, so that fifty talking guests share the loop fairly.
TURN: Final = 1 << 20
#: A line is at least this often found when a replay starts: rows shown when the client did not say how many.
DEFAULT_ROWS: Final = 24
#: Those who only watch are shown what came within so many seconds, or so many bytes, at once.
GATHER: Final = 0.005
GATHER_BYTES: Final = 1 << 16
#: Seconds that the loop looks out for the echo of a key, and after how many misses it does so for one key in as many.
ECHO_WAIT: Final = 150e-6
ECHO_TRIES: Final = 8


class LosslessSink(Protocol):
    """A sink the guest waits for."""

    @property
    def lag(self) -> int:
        """Bytes that wait for this sink."""
        ...

    @property
    def needed(self) -> int:
        """Offset of the first byte whose memory must stay as it is."""
        ...

    def pump(self) -> None:
        """Take what there is."""
        ...

    def hurry(self) -> None:
        """Take what there is at once: nothing more will come."""
        ...


class Follower(Protocol):
    """A reader nobody waits for and who is no person, such as the rules; it may fall behind what is kept."""

    def pump(self) -> None:
        """There is more to read; return at once."""
        ...

    def close(self) -> None:
        """There will be no more: read the rest now, the journal is about to be closed."""
        ...


class Valve(Protocol):
    """What the hub needs of a source: to hold it back (``consoles.sources.base.Source`` is one)."""

    def pause(self) -> None:
        """Bring no more until ``resume``."""
        ...

    def resume(self) -> None:
        """Bring what comes."""
        ...


@runtime_checkable
class Spliced(Protocol):
    """The fast path, which a source may have: the kernel moves its bytes, none of them comes into this process.

    Such a source calls nobody's ``received``. It is asked for its bytes, so it never brings more than there is room
    for, and the rest stays with it.
    """

    def when_ready(self, take: Callable[[], object]) -> None:
        """Call ``take`` whenever there are bytes, as long as the source is not paused."""
        ...

    def splice(self, journal: Journal, limit: int) -> int:
        """Move up to ``limit`` bytes to the journal's end; return how many, 0 when there will be no more.

        :raises BlockingIOError: there is nothing now.
        """
        ...

    @property
    def unread(self) -> bool:
        """Whether bytes wait."""
        ...


class HubStatistics(NamedTuple):
    """Numbers of one console, in bytes; ``stalls`` counts how often the guest was made to wait."""

    received: int
    kept: int
    clients: int
    stalls: int


class Hub:
    """Moves one guest's output from ``source`` to all its readers.

    :param source: not owned; one that is not ``Spliced`` brings its bytes to ``accept`` (``consoles.streams.feed``).
    :param window: the guest may run this many bytes ahead of its slowest lossless sink.
    :param replay: bytes kept for those who attach later.
    """

    def __init__(self, journal: Journal, source: Valve, *, window: int, replay: int) -> None:
        self.journal = journal
        self._source = source
        self._spliced = source if isinstance(source, Spliced) else None
        if self._spliced is not None:
            self._spliced.when_ready(self._take)
        self._window = window
        self._replay = replay
        self._loop = asyncio.get_running_loop()
        self._sinks: list[LosslessSink] = []
        self._clients: set[AttachSink] = set()
        self._followers: set[Follower] = set()
        self._later: asyncio.TimerHandle | None = None
        self._shown = 0
        self._reading = False
        self._moved = asyncio.Event()
        self._stalls = 0
        self._closing = False
        self._echoes_missed = 0
        self._started = False

    def start(self) -> None:
        """Begin to listen to the guest; every lossless sink that takes up an old cursor has been added by now."""
        self._started = True
        self._pass_on()
        self._release()
        self._listen()

    def statistics(self) -> HubStatistics:
        """Return the console's numbers."""
        journal = self.journal
        return HubStatistics(journal.tail, journal.tail - journal.base, len(self._clients), self._stalls)

    @property
    def is_listening(self) -> bool:
        """Whether the source may bring bytes: not before ``start``, and not while the guest is made to wait."""
        return self._reading

    def add_sink(self, sink: LosslessSink, *, first: bool = False) -> None:
        """Add a sink that the guest waits for.

        :param first: it gets its bytes before the others: somebody looks at it.
        """
        self._sinks.insert(0 if first else len(self._sinks), sink)
        if self._started:
            sink.pump()

    def attach(
        self,
        outlet: Outlet,
        *,
        start: int | None,
        rows: int,
        limit: int,
        age: float = math.inf,
    ) -> AttachSink:
        """Add a client.

        :param start: absolute offset to go on at; None replays the last screenful of ``rows`` lines.
        """
        if start is None:
            start = self.screen_start(rows or DEFAULT_ROWS)
        start = min(max(start, self.journal.base), self.journal.tail)
        client = AttachSink(self.journal, outlet, start, limit, age)
        self._clients.add(client)
        client.pump()
        return client

    def detach(self, client: AttachSink) -> None:
        """Remove a client."""
        client.close()
        self._clients.discard(client)
        if self._closing and not self._clients:
            self.journal.close()

    def follow(self, follower: Follower) -> None:
        """Add a reader that nobody waits for."""
        self._followers.add(follower)

    def unfollow(self, follower: Follower) -> None:
        """Forget such a reader."""
        self._followers.discard(follower)

    def screen_start(self, rows: int) -> int:
        """Return the offset at which the last ``rows`` lines begin, as far as they are still kept."""
        tail = self.journal.tail
        first = max(self.journal.base, tail - self._replay)
        data = self.journal.read(first, tail - first)
        end = len(data)
        for _ in range(rows):
            end = data.rfind(b"\n", 0, end)
            if end < 0:
                return first
        return first + end + 1

    def _listen(self) -> None:
        if not self._reading:
            self._reading = True
            self._source.resume()

    def _stop_listening(self) -> None:
        if self._reading:
            self._reading = False
            self._source.pause()

    def accept(self, data: bytes) -> None:
        """Take what a source that cannot be spliced has read; beyond the window it is held back, never dropped."""
        self.journal.append(data)
        self._moved.set()
        self._pass_on()
        self._release()
        if self._reading and self._room() <= 0:
            self._stop_listening()
            self._stalls += 1

    def _room(self) -> int:
        return self._window - max((sink.lag for sink in self._sinks), default=0)

    def _take(self) -> bool:
        """Take what the guest printed by the fast path; return whether that was anything."""
        if self._spliced is None:
            return False
        room = self._room()
        if room <= 0:
            self._stop_listening()
            self._stalls += 1
            return False
        try:
            taken = self._spliced.splice(self.journal, min(room, TURN))
        except BlockingIOError:
            return False
        if taken == 0:
            self._stop_listening()
            return False
        self._moved.set()
        self._pass_on()
        self._release()
        return True

    def expect_echo(self) -> None:
        """A key went to the guest: look out for its echo without going to sleep.

        Going to sleep and waking up again on another CPU takes longer than a guest needs to echo (measured: 40 µs
        instead of 140 µs). A guest that does not answer that fast is asked rarely, and a source without the fast path
        never: there is nothing that could be asked.
        """
        if self._spliced is None:
            return
        self._echoes_missed += 1
        if self._echoes_missed > ECHO_TRIES and self._echoes_missed % ECHO_TRIES:
            return
        deadline = time.perf_counter() + ECHO_WAIT
        while self._reading and time.perf_counter() < deadline:
            if self._take():
                self._echoes_missed = 0
                return
            os.sched_yield()

    def _pass_on(self) -> None:
        for sink in self._sinks:
            sink.pump()
        if self._clients:
            self._pass_to_clients()
        if self._followers:
            for follower in tuple(self._followers):
                follower.pump()

    def _pass_to_clients(self) -> None:
        """Those who type first, and the others a little later: waking twenty processes delays the echo of a key."""
        patient = False
        for client in tuple(self._clients):
            if client.eager:
                client.pump()
            else:
                patient = True
        if patient and self.journal.tail - self._shown >= GATHER_BYTES:
            self._pass_to_patient()
        elif patient and self._later is None:
            self._later = self._loop.call_later(GATHER, self._pass_to_patient)

    def _pass_to_patient(self) -> None:
        self._forget_later()
        self._shown = self.journal.tail
        for client in tuple(self._clients):
            client.pump()  # also who types by now, and watched when the output came

    def _forget_later(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def say(self, line: bytes) -> None:
        """Put a line of the runtime's own into the console."""
        self.journal.append(line)
        self._pass_on()

    def progress(self) -> None:
        """A sink got rid of bytes: go on listening when there is room again."""
        self._moved.set()
        if not self._started or self._closing:
            return
        self._release()
        if not self._reading and self._room() > 0:
            self._listen()

    def _release(self) -> None:
        # Asked first, because it is free: what sinks need costs a system call each, and this runs for every key.
        if not self.journal.worth_releasing(self.journal.tail - self._replay):
            return
        oldest = min((sink.needed for sink in self._sinks), default=self.journal.tail)
        self.journal.release(min(oldest, self.journal.tail - self._replay))

    async def received(self, total: int, seconds: float) -> bool:
        """Wait until the guest's first ``total`` bytes are here; False: none came for ``seconds``."""
        while self.journal.tail < total:
            self._moved.clear()
            before = self.journal.tail
            if not await self._moves(seconds) and self.journal.tail == before:
                return False
        return True

    async def _moves(self, seconds: float) -> bool:
        """Wait until something has moved since ``_moved`` was cleared; False: nothing did."""
        with contextlib.suppress(TimeoutError):
            # Not wait_for: Python 3.11's forgets a cancellation that comes together with the event.
            async with asyncio.timeout(seconds):
                await self._moved.wait()
        return self._moved.is_set()

    async def drain(self, seconds: float) -> bool:
        """The guest has ended: pass on all it printed; return whether every lossless sink has it.

        :param seconds: how long to wait while no sink makes progress.
        """
        while True:
            self._take_rest()
            for sink in self._sinks:
                sink.hurry()
            if all(sink.lag == 0 for sink in self._sinks) and not self._unread():
                return True
            self._moved.clear()
            if not await self._moves(seconds):
                return False

    def _take_rest(self) -> None:
        while self._unread() and (room := self._room()) > 0:
            try:
                if self._spliced is None or self._spliced.splice(self.journal, room) == 0:
                    break
            except BlockingIOError:
                break
            self._pass_on()
        self._pass_on()

    def _unread(self) -> bool:
        return self._spliced is not None and self._spliced.unread

    def close(self) -> None:
        """Stop listening and close the journal; source and sinks are closed by their owners.

        Clients go on getting what they lag behind: the journal is closed when the last one is detached.
        """
        self._stop_listening()
        if self._later is not None:  # clients go on by themselves from here on
            self._pass_to_patient()
        self._closing = True
        for follower in tuple(self._followers):
            follower.close()
        self._followers.clear()
        if not self._clients:
            self.journal.close()
