# SPDX-License-Identifier: Apache-2.0
"""One open connection to a far end, and a source that connects again whenever it was lost.

``Link`` moves bytes of descriptors; ``Returning`` is the part that ptys, sockets, serial ports and follow commands
share: gone is said once, back only for a connection that holds, and the pauses between two tries grow up to a bound.
"""

from __future__ import annotations

import abc
import asyncio
import os
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from consoles.errors import SourceError
from consoles.wakers import Wakers, Writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sources.base import Listener

_Made = TypeVar("_Made")

#: One read takes at most this.
CHUNK: Final = 1 << 16
#: What is left is read up to this when a connection is closed.
DRAIN_MAX: Final = 1 << 20
#: Seconds before the first and, after doublings, between any two tries to connect again.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
#: Seconds after which a new connection that brought no byte yet counts as a return, and the next pause is a short one
#: again: a server that accepts and hangs up, or a command that fails at once, must not fill the console with marks.
STEADY: Final = 0.5


class Backoff:
    """Growing pauses between tries."""

    def __init__(self, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def pause(self) -> float:
        """Return how long to wait now."""
        now, self._next = self._next, min(2 * self._next, self._longest)
        return now

    def reset(self) -> None:
        """It worked: begin with short pauses again."""
        self._next = self._first


async def open_off_loop(work: Callable[[], _Made], undo: Callable[[_Made], None]) -> _Made:
    """Run ``work`` in a thread; when nobody waits for it any more, what it made is undone as soon as it is there."""
    loop = asyncio.get_running_loop()
    making = loop.run_in_executor(None, work)
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:

        def late(done: asyncio.Future[_Made]) -> None:
            if not done.cancelled() and done.exception() is None:
                loop.run_in_executor(None, undo, done.result())

        making.add_done_callback(late)
        raise


class Connection(Protocol):
    """What ``Returning`` needs of a connection; it begins paused and says ``lost`` at most once."""

    def pause(self) -> None:
        """Deliver nothing more until ``resume``."""
        ...

    def resume(self) -> None:
        """Deliver what comes."""
        ...

    def write(self, data: bytes) -> int:
        """Send what can be sent at once."""
        ...

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once when there is room."""
        ...

    async def close(self) -> None:
        """Let go of it in bounded time."""
        ...

    @property
    def reason(self) -> str:
        """Why it was lost, known best once it is closed."""
        ...


class Link:
    """A connection made of non-blocking descriptors, which it owns.

    :param read_fd: where the far end is read.
    :param write_fd: where it is written, may be the same; -1: it cannot be.
    :param received: given every chunk.
    :param lost: called once when the far end has hung up.
    """

    def __init__(
        self, read_fd: int, write_fd: int, received: Callable[[bytes], None], lost: Callable[[], None]
    ) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._received = received
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._room = Writable(write_fd)
        self._open = True
        #: why the connection was lost, "" while it holds
        self.reason = ""

    def pause(self) -> None:
        """Stop reading."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._read_fd)

    def resume(self) -> None:
        """Read."""
        if self._open and not self._reading and not self.reason:
            self._reading = True
            self._loop.add_reader(self._read_fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._read_fd, CHUNK)
        except BlockingIOError:
            return
        except OSError as exc:
            self.lose(exc.strerror or str(exc))
            return
        if data:
            self._received(data)
        else:
            self.lose("the far end has closed it")

    def lose(self, reason: str) -> None:
        """The far end is gone."""
        if self._open and not self.reason:
            self.reason = reason
            self.pause()
            self._room.drop()
            self._lost()

    def write(self, data: bytes) -> int:
        """Send as much as goes at once."""
        if not self._open or self.reason:
            return 0
        if self._write_fd < 0:
            return len(data)
        try:
            return os.write(self._write_fd, data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            # Not from within the caller's own write: it is told later, in its turn.
            self._loop.call_soon(self.lose, exc.strerror or str(exc))
            return 0

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once there is room; a connection that is lost wakes nobody."""
        self._room.add(wake)

    def drain(self) -> None:
        """Deliver what the far end wrote before now, up to a bound."""
        left = DRAIN_MAX
        while left > 0 and self._open:
            try:
                data = os.read(self._read_fd, min(CHUNK, left))
            except OSError:  # nothing there, or nobody
                return
            if not data:
                return
            left -= len(data)
            self._received(data)

    async def close(self) -> None:
        """Deliver the rest and close the descriptors."""
        if self._open:
            self.pause()
            self._room.drop()
            self.drain()
            self._open = False
            for fd in {self._read_fd, self._write_fd} - {-1}:
                os.close(fd)


class Returning(abc.ABC):
    """A source (``consoles.sources.base.Source``) whose far end may be lost and come back."""

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._listener: Listener | None = None
        self._connection: Connection | None = None
        self._paused = False
        self._away = False
        self._lost = asyncio.Event()
        self._wakers = Wakers()
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Future[None] | None = None

    @abc.abstractmethod
    async def _connect(self) -> Connection:
        """Make a connection that calls ``_deliver`` and ``_lost.set``.

        :raises SourceError: it cannot be made now.
        """

    async def open(self, listener: Listener) -> None:
        """Connect, and from then on connect again whenever the connection was lost.

        :raises SourceError: the first connection cannot be made.
        """
        self._listener = listener
        self._away = False
        self._begin(await self._reach())
        self._task = asyncio.create_task(self._keep(), name=type(self).__name__)

    async def _reach(self) -> Connection:
        try:
            return await self._connect()
        except OSError as exc:  # out of descriptors or memory: it may pass, as everything else
            raise SourceError(f"cannot open the console: {exc.strerror or exc}") from exc

    def _begin(self, connection: Connection) -> None:
        self._connection = connection
        if not self._paused:
            connection.resume()
        self._wakers.pass_on(connection.when_writable)

    def _deliver(self, data: bytes) -> None:
        if self._listener is not None:
            self._return()
            self._listener.received(data)

    def _return(self) -> None:
        if self._away and self._listener is not None:
            self._away = False
            self._listener.back()

    async def _keep(self) -> None:
        """Watch the connection for as long as the source is open."""
        while True:
            try:
                async with asyncio.timeout(STEADY):
                    await self._lost.wait()
            except TimeoutError:
                self._backoff.reset()
                self._return()
                await self._lost.wait()
            connection, self._connection = self._connection, None
            self._lost.clear()
            assert connection is not None
            await self._let_go(connection)
            if not self._away and self._listener is not None:
                self._away = True
                self._listener.gone(connection.reason)
            self._begin(await self._again())

    async def _let_go(self, connection: Connection) -> None:
        """Close a connection to its end, whoever is cancelled meanwhile: a process or a port must not stay behind."""
        self._closing = asyncio.ensure_future(connection.close())
        await asyncio.shield(self._closing)

    async def _again(self) -> Connection:
        while True:
            await asyncio.sleep(self._backoff.pause())
            try:
                return await self._reach()
            except SourceError:
                continue  # gone was said; it stays gone

    def pause(self) -> None:
        """Deliver no more until ``resume``."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Deliver again."""
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def write(self, data: bytes) -> int:
        """Send what goes at once; nothing while the far end is gone."""
        return self._connection.write(data) if self._connection is not None else 0

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once there is room."""
        if self._connection is not None:
            self._connection.when_writable(wake)
        else:
            self._wakers.add(wake)

    async def close(self) -> None:
        """Stop connecting and let go of the connection; its last bytes are delivered first."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._closing is not None:
            await asyncio.wait([self._closing])
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._let_go(connection)
        self._listener = None
        self._wakers.drop()
