# SPDX-License-Identifier: Apache-2.0
"""The console of one container: the stream that also goes to the engine's stdio.

What must survive a supervisor (journal, both cursors, the output FIFO, the engine's stdio) is also held by the init
process: a ``Lifeline`` makes it, ``take_back`` has it from one that lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from consoles.streams import terminal
from consoles.streams.fifo import FifoSource
from consoles.streams.journal import Journal
from consoles.streams.sinks.stdio import StdioSink
from consoles.streams.stdin import StdinSource
from runphi_async.lifeline import stub
from runphi_async.terminals.sessions import Sessions
from runphi_async.terminals.stream import Logged, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consoles.sources.base import Source
    from runphi_async.aio.tasks import Tasks
    from runphi_async.config.schema import Console as Limits
    from runphi_async.partition.logplan import LogPlan
    from runphi_async.terminals.stream import Owner

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


class Held(NamedTuple):
    """What an init process holds of a console, as the supervisor's own descriptors.

    :ivar cursors: descriptions on the journal whose offsets are the positions of the engine's stdio and of the raw log.
    :ivar stdio: the engine's stdin and stdout.
    """

    journal: Journal
    cursors: tuple[int, int]
    stdio: tuple[int, int]

    def close(self) -> None:
        """Let go of all of it; whoever makes a `Console` of it leaves that to the console."""
        self.journal.close()
        for fd in (*self.cursors, *self.stdio):
            os.close(fd)


class Console(Stream):
    """The stream that is the guest's console, with the engine's stdio on it.

    :param logs: what is logged, and where.
    :param held: owned.
    :param source: where the guest's console is, unless it is the FIFO pair; a supervisor that takes over opens it
        again, and what a crash costs is said by the source.
    """

    def __init__(
        self, owner: Owner, limits: Limits, logs: Sequence[LogPlan], held: Held, source: Source | None = None
    ) -> None:
        #: whether the console is a source of its own, such as a serial port, and not the VMM's FIFO pair
        self.is_source = source is not None
        try:
            fifos = FifoSource.opened(owner.directory)
        except OSError:
            held.close()
            raise
        #: the FIFO of the guest's output, for the init process to hold
        self.output = fifos.output
        self._unused = fifos if source is not None else None
        super().__init__(
            source or fifos,
            held.journal,
            Logged(logs, owner.directory, owner.note, held.cursors[1]),
            Sessions(owner.note, owner.resize),
            limits=limits,
            changed=owner.console_changed,
            marks=True,
        )
        self._stdin_fd, out = held.stdio
        self._owner = owner
        self._stdin: StdinSource | None = None
        self.stdio = StdioSink(held.journal, held.cursors[0], out, self.hub.progress)
        self.hub.add_sink(self.stdio, first=True)

    def start(self, tasks: Tasks) -> None:
        """Begin to listen, before the guest's first instruction."""
        super().start(tasks)
        self._stdin = StdinSource(self._stdin_fd, self.input, self.typed, self.end_of_input)

    def end_of_input(self) -> None:
        """Nothing more will be typed: the engine's stdin has ended, or that of the client of ``run``."""
        self._owner.end_of_input(self.input.fed)

    async def opened(self) -> None:
        """Wait, within bounds, until a console that must be opened was tried to be."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OPEN_PATIENCE):
                await self._feed.tried.wait()

    @property
    def one_way(self) -> str:
        """Why the guest cannot be typed to, "" when it can."""
        return self._feed.one_way

    async def send_break(self) -> None:
        """Send a break to a console that is a serial line.

        :raises SourceError: it is none, or is gone.
        """
        await self._feed.send_break()

    @property
    def tty(self) -> int:
        """The descriptor of the engine's terminal (its size can be asked)."""
        return self.stdio.fileno()

    async def close(self) -> None:
        """Let go of the engine's stdio and of everything else; the log is completed first."""
        if self._stdin is not None:
            self._stdin.close()
        else:
            os.close(self._stdin_fd)
        self.input.close()
        await self._feed.finish()
        self.stdio.close()
        await super().close()
        if self._unused is not None:
            self._unused.shut()


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
        self._given = False

    def _ours(self) -> tuple[int, int]:
        flags = (os.O_RDWR, os.O_RDWR) if self.master >= 0 else (os.O_RDONLY, os.O_WRONLY)
        return reopen(self.stdio[0], flags[0]), reopen(self.stdio[1], flags[1])

    def held(self) -> Held:
        """Return the supervisor's own descriptors of what the stub will hold, the journal among them."""
        first, second = self.cursors
        self._given = True
        return Held(self.journal, (os.dup(first), os.dup(second)), self._ours())

    def close(self) -> None:
        """The stub has its copies: close the ones made for it (the caller's stdio stays the caller's)."""
        for fd in self.cursors:
            os.close(fd)
        for fd in (self._own, self.master):
            if fd >= 0:
                os.close(fd)
        self._own = self.master = -1
        if not self._given:
            self.journal.close()


def take_back(pidfd: int, tty: bool) -> Held:
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
        return Held(journal, (cursors[0], cursors[1]), (stdio[0], stdio[1]))


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
