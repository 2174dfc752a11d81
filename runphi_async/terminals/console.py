# SPDX-License-Identifier: Apache-2.0
"""The console of one container: hub, engine stdio, log and input, put together for ``runphi_async.container.guest``.

What must survive a supervisor (journal, both cursors, the output FIFO, the engine's stdio) is also held by the init
stub: ``Console.create`` makes it, ``Console.adopt`` takes it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

import anyio
import anyio.abc

from consoles.errors import SourceError
from consoles.streams import terminal
from consoles.streams.feed import Feed
from consoles.streams.fifo import open_fifo
from consoles.streams.hub import Hub
from consoles.streams.input import InputQueue
from consoles.streams.journal import Journal
from consoles.streams.sinks.stdio import StdioSink
from consoles.streams.stdin import StdinSource
from runphi_async.lifeline import stub
from runphi_async.terminals.consolelogs import ConsoleLogs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consoles.sources.base import Source
    from consoles.streams.input import Input
    from consoles.streams.sinks.attach import AttachSink, Outlet
    from runphi_async.config.schema import Config
    from runphi_async.partition.logplan import LogPlan
    from runphi_async.terminals.consolelogs import Note

FIFOS: Final = ("con.in", "con.out")
#: What a pty master is called in the message to the engine; any name of 1 to 4095 bytes will do.
_MASTER_NAME: Final = b"/dev/ptmx"
#: Seconds that a guest's start waits for its console to be opened: its first bytes shall be seen. Longer than any
#: source waits for something itself.
OPEN_PATIENCE: Final = 10.0


def reopen(fd: int, flags: int) -> int:
    """Return a non-blocking descriptor on the same pipe, FIFO, terminal or device.

    A description of our own: O_NONBLOCK on a shared one would hit everybody else who holds it (systemd#41469).
    Files keep the shared offset, and sockets cannot be opened anew: they are duplicated.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.dup(fd)
    if stat.S_ISSOCK(mode):
        copy = os.dup(fd)
        os.set_blocking(copy, False)
        return copy
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


async def read_some(source: int, most: int) -> bytes:
    """Read from what `reopen` returned; waits until there is something, b"" at the end."""
    if stat.S_ISREG(os.fstat(source).st_mode):
        return await anyio.to_thread.run_sync(os.read, source, most)
    while True:
        try:
            return os.read(source, most)
        except BlockingIOError:
            await anyio.wait_readable(source)


class Console:
    """Everything between a guest's console and its readers.

    :param directory: the record directory.
    :param logs: what is logged, and where.
    :param note: writes an event.
    :param source: where the guest's console is, unless it is the FIFO pair; a supervisor that takes over opens it
        again, and what a crash costs is said by the source.
    :param changed: told that such a source is gone, and why, or is back (None).
    """

    def __init__(
        self,
        config: Config,
        directory: str,
        logs: Sequence[LogPlan],
        journal: Journal,
        cursors: tuple[int, int],
        stdio: tuple[int, int],
        note: Note,
        on_eof: Callable[[], None],
        source: Source | None = None,
        changed: Callable[[str | None], None] = lambda reason: None,
    ) -> None:
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.output = open_fifo("con.out", dir_fd)
            input_fd = open_fifo("con.in", dir_fd)
        finally:
            os.close(dir_fd)
        self._limits = config.console
        window, replay = config.console.window_bytes, config.console.replay_bytes
        self._feed: Feed | None = None
        self.input: Input
        if source is None:
            self.hub = Hub(journal, self.output, window=window, replay=replay)
            self.input = InputQueue(input_fd, self.hub.expect_echo)
        else:
            os.close(input_fd)
            self._feed = Feed(journal, source, window=window, replay=replay, changed=changed)
            self.hub, self.input = self._feed.hub, self._feed.input
        self._stdin_fd, out = stdio
        self._on_eof = on_eof
        self._stdin: StdinSource | None = None
        self.stdio = StdioSink(journal, cursors[0], out, self.hub.progress)
        self.hub.add_sink(self.stdio)
        # Less than the window: a guest must not wait for a disk that refuses.
        hold = config.console.window_bytes // 2
        self.logs = ConsoleLogs(journal, self.hub, logs, directory, cursors[1], hold, note)

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Begin to listen, before the guest's first instruction."""
        self.logs.start(tasks)
        self.hub.start()
        if self._feed is not None:
            tasks.start_soon(self._feed.run, name="console source")
        self._stdin = StdinSource(self._stdin_fd, self.input, self._on_eof)

    async def opened(self) -> None:
        """Wait, within bounds, until a console that must be opened was tried to be."""
        if self._feed is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OPEN_PATIENCE):
                    await self._feed.tried.wait()

    @property
    def one_way(self) -> str:
        """Why the guest cannot be typed to, "" when it can."""
        return self._feed.one_way if self._feed is not None else ""

    @property
    def is_source(self) -> bool:
        """Whether the console is a source of its own, such as a serial port, and not the VMM's FIFO pair."""
        return self._feed is not None

    async def send_break(self) -> None:
        """Send a break to a console that is a serial line.

        :raises SourceError: it is none, or is gone.
        """
        if self._feed is None:
            raise SourceError("cannot send a break: the console is no serial line")
        await self._feed.send_break()

    @property
    def tty(self) -> int:
        """The descriptor of the engine's terminal (its size can be asked)."""
        return self.stdio.fileno()

    def attach(self, outlet: Outlet, start: int | None, rows: int) -> AttachSink:
        """Add a person; see ``Hub.attach``."""
        limit, age = self._limits.attach_buffer_bytes, self._limits.attach_buffer_seconds
        return self.hub.attach(outlet, start=start, rows=rows, limit=limit, age=age)

    async def drain(self) -> bool:
        """The guest has ended: bring all it printed to its lossless readers, as far as they take it."""
        if self._feed is not None:
            await self._feed.close()  # it has read the rest by then
        return await self.hub.drain(self._limits.drain_seconds)

    async def close(self) -> None:
        """Let go of the engine's stdio and of everything else; the log is completed first."""
        if self._stdin is not None:
            self._stdin.close()
        else:
            os.close(self._stdin_fd)
        self.input.close()
        if self._feed is not None:
            await self._feed.close()
            os.close(self.output)
        self.stdio.close()
        await self.logs.close()
        self.hub.close()


class Lifeline:
    """The descriptors a stub is given for the console, and the supervisor's own ends of them.

    :param fds: the caller's stdin, stdout and stderr (which stay the caller's), or none of them.
    :param size: without ``fds``: make a pty of this size; None: there is no engine to talk to.
    :ivar stdio: what the stub gets as 0, 1 and 2.
    :ivar master: pty master for the engine, -1 without a terminal.
    """

    def __init__(self, name: str, fds: Sequence[int], size: terminal.Size | None = None) -> None:
        self.journal = Journal.create(name)
        # Two descriptions for the stub; ours are duplicates of them, so the offsets are one.
        self.cursors = (self.journal.cursor(), self.journal.cursor())
        self.master = -1
        self._own = -1
        if not fds and size is not None:
            self.master, self._own = terminal.open_pty(size)
        elif not fds:
            self._own = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.stdio = tuple(fds) or (self._own,) * 3

    def ours(self) -> tuple[int, int]:
        """Return (stdin, stdout) for the supervisor."""
        flags = (os.O_RDWR, os.O_RDWR) if self.master >= 0 else (os.O_RDONLY, os.O_WRONLY)
        return reopen(self.stdio[0], flags[0]), reopen(self.stdio[1], flags[1])

    def our_cursors(self) -> tuple[int, int]:
        """Return duplicates of the cursors for the sinks."""
        first, second = self.cursors
        return os.dup(first), os.dup(second)

    def close(self) -> None:
        """The stub has its copies: close the ones made for it (the caller's stdio stays the caller's)."""
        for fd in self.cursors:
            os.close(fd)
        for fd in (self._own, self.master):
            if fd >= 0:
                os.close(fd)
        self._own = self.master = -1


def take_back(pidfd: int, tty: bool) -> tuple[Journal, tuple[int, int], tuple[int, int]]:
    """Take journal, cursors and stdio back from a living stub.

    :raises OSError: the stub is gone.
    """
    with contextlib.ExitStack() as undo:
        cursors = []
        for number in (stub.Fd.STDIO_CURSOR, stub.Fd.LOG_CURSOR):
            cursors.append(stub.take(pidfd, number))
            undo.callback(os.close, cursors[-1])
        journal = Journal(os.open(f"/proc/self/fd/{cursors[0]}", os.O_RDWR | os.O_CLOEXEC))
        undo.callback(journal.close)
        stdio = []
        for number, flags in ((stub.Fd.STDIN, os.O_RDONLY), (stub.Fd.STDOUT, os.O_WRONLY)):
            taken = stub.take(pidfd, number)
            try:
                stdio.append(reopen(taken, os.O_RDWR if tty else flags))
                undo.callback(os.close, stdio[-1])
            except OSError:
                # The engine's end is gone for good (a pty without master): its bytes have nobody to go to.
                stdio.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
                undo.callback(os.close, stdio[-1])
            finally:
                os.close(taken)
        undo.pop_all()
        return journal, (cursors[0], cursors[1]), (stdio[0], stdio[1])


def send_master(path: str, cwd: str, master: int) -> None:
    """Hand a pty master to the engine: one message with one descriptor, then close. No answer comes.

    Blocks no longer than connecting to a listening unix socket does; called off the loop.
    """
    full = os.path.join(cwd, path)
    directory = os.open(os.path.dirname(full), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(full)}")
            socket.send_fds(sock, [_MASTER_NAME], [master])
    finally:
        os.close(directory)
