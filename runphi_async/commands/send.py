# SPDX-License-Identifier: Apache-2.0
"""`runphi send`: type a file into a guest, as fast as it reads and no faster than told."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from consoles.streams.sinks.attach import AttachStatistics
from runphi_async import regular
from runphi_async.aio.waiting import either
from runphi_async.commands.cli import find_named
from runphi_async.config.section import Size
from runphi_async.errors import RunphiError, StateError, UsageError
from runphi_async.terminals.console import read_some, reopen
from runphi_async.terminals.people import Role, Wish
from runphi_async.terminals.sessions import who_is

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.terminals.sessions import Session
    from runphi_async.terminals.stream import Stream
    from runphi_async.wire.call import Call

#: The file is read and typed in pieces of this.
PIECE: Final = 1 << 12
#: With a rate, so many pieces a second, if they would be smaller: an even flow, not one burst a second.
PIECES: Final = 20
#: Seconds between two lines of progress, and between two signs of life for the client.
PROGRESS: Final = 0.5
ALIVE: Final = 60.0


class Feeder:
    """Stands where the sink of somebody stands who watches: a sender sees nothing, and must learn one thing only."""

    def __init__(self) -> None:
        self.sent = 0
        self.eager = False
        #: set when somebody else has become the writer
        self.demoted = anyio.Event()

    def statistics(self) -> AttachStatistics:
        """Return how much was sent."""
        return AttachStatistics(self.sent, 0, 0, 0)

    def notice(self, text: bytes) -> None:
        """Show a notice to nobody."""

    def role(self, name: bytes) -> None:
        """Learn the sender's role."""
        if name == Role.OBSERVER.encode():
            self.demoted.set()


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    role = parser.add_mutually_exclusive_group()
    role.add_argument("--take", action="store_true", help="take over from whoever may type")
    role.add_argument("--share", action="store_true", help="send although somebody else may type")
    parser.add_argument("--rate", metavar="BYTES", help='bytes a second at most, such as 960 or "8 KiB"')
    parser.add_argument("id", metavar="NAME")
    parser.add_argument("file", metavar="FILE", help="what to send; - is stdin")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Send all of the file, or say how much of it."""
    guest = find_named(supervisor, given.id, options)
    rate = _rate(given.rate)
    console = guest.console
    if console is None:
        raise StateError("container not running")
    source = await _open(call, given.file)
    try:
        people = console.people
        wish = Wish.TAKE if given.take else Wish.SHARE if given.share else Wish.PLAIN
        if wish is Wish.PLAIN and (others := people.typists()):
            raise StateError(f"cannot send to {given.id}: {others} may type", "--take takes over, --share sends beside")
        who = await who_is(call, f"sends {os.path.basename(given.file)}")
        loud = os.isatty(call.fds[2])
        feeder = Feeder()
        session = people.join(who, "--take", wish, feeder, quiet=True)
        try:
            await _send(call, Sending(guest.settled, console, session, feeder, source, rate), loud=loud)
        finally:
            people.leave(session)
    finally:
        os.close(source)


def _rate(text: str | None) -> int:
    if text is None:
        return 0
    try:
        rate = Size.parse(text)
    except ValueError as exc:
        raise UsageError(f"--rate: {exc}") from None
    if rate <= 0:
        raise UsageError("--rate wants at least one byte a second")
    return rate


async def _open(call: Call, name: str) -> int:
    if name == "-":
        return reopen(call.fds[0], os.O_RDONLY)
    path = call.path(name)
    try:
        return await anyio.to_thread.run_sync(regular.opened, path)
    except OSError as exc:
        hint = "give it as stdin and send -" if exc.errno == errno.EINVAL else None
        raise RunphiError(f"cannot send {path}: {exc.strerror}", hint) from exc


class Sending(NamedTuple):
    """A file on its way to a guest.

    :ivar ended: set when the guest has ended.
    :ivar source: the file; ``rate``: bytes a second at most, 0 for no limit.
    """

    ended: anyio.Event
    console: Stream
    session: Session
    feeder: Feeder
    source: int
    rate: int


async def _send(call: Call, sending: Sending, *, loud: bool) -> None:
    """Copy until the file ends; whatever ends it earlier is an error that says how far it came."""
    feeder = sending.feeder
    done = anyio.Event()
    failures: list[OSError] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_copy, sending, done, failures)
        tasks.start_soon(_report, call, feeder, os.fstat(sending.source).st_size, loud)
        await either(done, feeder.demoted, sending.ended, call.gone)
        tasks.cancel_scope.cancel()
    if loud:
        await call.error(f"\r{feeder.sent} bytes sent\x1b[K\n")
    if done.is_set() and not failures:
        return
    if failures:
        raise RunphiError(f"cannot read on after {feeder.sent} bytes: {failures[0].strerror}")
    if feeder.demoted.is_set():
        raise StateError(f"stopped after {feeder.sent} bytes: somebody else has taken over")
    raise StateError(f"stopped after {feeder.sent} bytes: the guest has ended")


async def _copy(sending: Sending, done: anyio.Event, failures: list[OSError]) -> None:
    _, console, session, feeder, source, rate = sending
    queue = console.input
    piece = max(1, min(PIECE, rate // PIECES)) if rate else PIECE
    begun = time.monotonic()
    try:
        while data := await read_some(source, piece):
            if not queue.has_room:
                room = anyio.Event()
                queue.when_room(room.set)
                await room.wait()
            if not session.types():
                return
            console.typed(data)
            feeder.sent += len(data)
            if rate:
                await anyio.sleep(max(0.0, begun + feeder.sent / rate - time.monotonic()))
    except OSError as exc:
        failures.append(exc)
    done.set()


async def _report(call: Call, feeder: Feeder, total: int, loud: bool) -> None:
    """Say how far it came; a client that hears nothing for long would believe that the supervisor hangs."""
    begun = time.monotonic()
    of = f" of {total}" if total else ""
    while True:
        await anyio.sleep(PROGRESS if loud else ALIVE)
        speed = feeder.sent / (time.monotonic() - begun)
        await call.error(f"\r{feeder.sent}{of} bytes, {speed:.0f} bytes/s\x1b[K" if loud else "")
