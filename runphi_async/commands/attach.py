# SPDX-License-Identifier: Apache-2.0
"""`runphi attach`: join the console of a container; one person types, any number watches."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from consoles.streams import terminal
from runphi_async import digits, wire
from runphi_async.aio.waiting import either
from runphi_async.commands import detachkeys, tables
from runphi_async.commands.cli import find_named
from runphi_async.errors import RunphiError, StateError, UsageError
from runphi_async.oci import signals
from runphi_async.terminals import replay
from runphi_async.terminals.people import Role, Wish
from runphi_async.terminals.sessions import Session, read_size, who_is
from runphi_async.wire.console import AttachStart
from runphi_async.wire.outgoing import ClientGone, Outlet

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.terminals.stream import Stream
    from runphi_async.wire.call import Call

log = logging.getLogger(__name__)

#: Roles that a client may have had under an earlier supervisor; the client of `run` cannot come back.
BACK: Final = [Role.WRITER.value, Role.SHARER.value, Role.OBSERVER.value]
#: Seconds that the last output of an ended guest may take to reach a client.
LAST_BYTES = 5.0
#: What the keys behind the escape key do; some of them are the client's business (client/attach.py).
HELP: Final = (
    ("?", "this help"),
    (". or d", "leave"),
    ("t", "take over: be the only one who types"),
    ("+", "type beside the others"),
    ("o", "only watch"),
    ("w", "who is here"),
    ("b", "send a serial break"),
    ("s", "send a file, or stop sending it"),
    ("z", "suspend this client"),
)


class Order(NamedTuple):
    """How somebody attaches.

    :ivar wish: the role asked for; a ``Role`` is that of a client whose supervisor died.
    :ivar how: how this client can take over, for notices.
    :ivar stream: what is shown, ``channel`` or (None) the console; ``log_dir``: where its raw log lies.
    :ivar start: offset to go on at; None: as ``replay`` says (None: the last screenful).
    """

    wish: Wish | Role = Wish.PLAIN
    how: str = ""
    words: str = ""
    quiet: bool = False
    is_terminal: bool = False
    start: int | None = None
    replay: str | None = None
    escape: str = ""
    channel: str | None = None
    stream: Stream | None = None
    log_dir: str = ""


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    role = parser.add_mutually_exclusive_group()
    role.add_argument("--observe", "--no-stdin", action="store_true", help="only watch")
    role.add_argument("--take", action="store_true", help="be the only one who types")
    role.add_argument("--share", action="store_true", help="type beside the others")
    parser.add_argument("--replay", metavar="WHAT", help="the past to show: none, screen, a number of lines, or all")
    parser.add_argument("--quiet", "-q", action="store_true", help="no notices of others who come, go or take over")
    parser.add_argument("--words", metavar="TEXT", default="", help="what others see beside your name")
    parser.add_argument("--detach-keys", metavar="KEYS", help="leave by these keys, such as ctrl-p,ctrl-q")
    parser.add_argument("--escape-key", metavar="KEY", help="key in front of commands, such as ctrl-]; '' for none")
    parser.add_argument("--channel", metavar="CHANNEL", help="a named stream; runphi channels lists them")
    # A client that lost its supervisor goes on at this byte, in this role.
    parser.add_argument("--from", dest="start", type=digits.number, metavar="OFFSET", help="show from this byte on")
    parser.add_argument("--back", metavar="ROLE", choices=BACK, help="come back as ROLE")
    parser.add_argument("id", metavar="NAME")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> int:
    """Show the console until the guest ends or the person leaves; the status is the guest's."""
    guest = find_named(supervisor, given.id, options)
    limits = supervisor.config.console
    keys = detachkeys.parse(limits.detach_keys if given.detach_keys is None else given.detach_keys)
    name = limits.escape_key if given.escape_key is None else given.escape_key
    escape = detachkeys.parse_one(name)
    replay.check(given.replay)
    stream = guest.stream(given.channel)
    if given.start is not None and given.start < 0:
        raise UsageError("--from wants a byte offset")
    if guest.settled.is_set() or stream is None:
        if given.start is not None:  # it ended while its client looked for a supervisor
            return guest.record.exit_code or 0
        raise StateError("container not running", f"runphi logs {given.id} shows what it printed")
    is_terminal = _is_terminal(call)
    # An observer's terminal is read as well: the escape key is how an observer leaves.
    reads = is_terminal or not given.observe
    shown = AttachStart(terminal=is_terminal, stdin=reads, people=True, escape=escape, detach=keys)
    await call.send(wire.ATTACH, shown.encode())
    order = Order(
        wish=_wish(given),
        how=f"{name} t" if is_terminal and escape else "--take",
        words=given.words,
        quiet=given.quiet,
        is_terminal=is_terminal,
        start=given.start,
        replay=given.replay,
        escape=name if is_terminal and escape else "",
        channel=given.channel,
        stream=stream,
        log_dir=next((log.directory for log in guest.logs(given.channel) if log.kind == "raw"), ""),
    )
    if is_terminal and given.start is None:
        # Before the first byte of the guest: the mark it carries is what tells ours from the guest's.
        await call.send(wire.NOTICE, _welcome(given.id, order.escape).encode())
    return await show(call, guest, order)


def _wish(given: Namespace) -> Wish | Role:
    if given.back is not None:
        return Role(given.back)
    wishes = ((given.observe, Wish.OBSERVE), (given.take, Wish.TAKE), (given.share, Wish.SHARE))
    return next((wish for asked, wish in wishes if asked), Wish.PLAIN)


def _welcome(name: str, escape: str) -> str:
    keys = f"{escape} ? lists the keys; " if escape else ""
    return f"console of {name}; {keys}only lines marked as this one are runphi's"


def _is_terminal(call: Call) -> bool:
    try:
        terminal.get_size(call.fds[0])
    except OSError:
        return False
    return True


async def show(call: Call, guest: Container, order: Order) -> int:
    """Feed a client until the guest ends (its exit code) or the client leaves (0)."""
    size = None
    if order.is_terminal:  # the first size travels with the attachment: the replay needs it
        kind, payload = await call.frame()
        size = read_size(payload) if kind == wire.RESIZE else None
    who = await who_is(call, order.words)
    call.close_fds()
    stream, start = order.stream or guest.console, order.start
    if stream is None:  # it ended meanwhile
        return guest.record.exit_code or 0
    if start is None and order.replay is not None and not guest.settled.is_set():
        start = await replay.begin(call, stream.hub, order.log_dir, order.replay, size)
    if guest.settled.is_set():
        return guest.record.exit_code or 0
    rows = size.rows if size is not None else 0
    sink = stream.attach(Outlet(call.outgoing), start, rows)
    session = stream.people.join(who, order.how, order.wish, sink, quiet=order.quiet, size=size)
    try:
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                await _listen(call, guest, stream, session, order)
                tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            await guest.settled.wait()
            tasks.cancel_scope.cancel()
        if not guest.settled.is_set():
            return 0
        with anyio.move_on_after(LAST_BYTES):
            await sink.drained()
        return guest.record.exit_code or 0
    finally:
        stream.people.leave(session)
        stream.hub.detach(sink)


async def _listen(call: Call, guest: Container, stream: Stream, session: Session, order: Order) -> None:
    """Pass on what the person types, as fast as the guest takes it, until the person leaves."""
    people, queue = stream.people, stream.input
    while True:
        if not queue.has_room:
            room = anyio.Event()
            queue.when_room(room.set)
            await either(room, call.gone)
            if not room.is_set():  # hung up, and the guest takes no more
                return
        try:
            kind, payload = await call.frame()
        except ClientGone:  # hung up: the same as leaving
            return
        if kind == wire.DETACH:
            return
        if kind == wire.INPUT:
            if session.types():
                stream.typed(payload)
        elif kind == wire.RESIZE:
            size = read_size(payload)
            if size is not None:
                people.resized(session, size)
        elif kind == wire.ASK:
            await _answer(guest, stream, session, order, payload)
        elif order.wish is Wish.OWN:
            await _owner_says(guest, kind, payload)


async def _owner_says(guest: Container, kind: bytes, payload: bytes) -> None:
    """The client of `run` stands for an engine: its signals and its end of input are the container's."""
    if kind == wire.INPUT_EOF and guest.record.attached:
        console = guest.console
        if console is not None:
            console.end_of_input()
    elif kind == wire.SIGNAL and (number := digits.whole(payload, signals.LAST)) is not None:
        try:
            async with guest.verb():
                await guest.signal(number)
        except RunphiError as exc:
            log.info("%s: %s", guest.record.name, exc)


async def _answer(guest: Container, stream: Stream, session: Session, order: Order, key: bytes) -> None:
    """Do what the key behind the escape key says."""
    people = stream.people
    match key:
        case b"t":
            people.take(session)
        case b"+":
            people.share(session)
        case b"o":
            people.observe(session)
        case b"w":
            session.say(tables.people(people.rows()).rstrip("\n"))
        case b"b":
            await _break(guest, session, order)
        case _:
            session.say("\n".join(f"{order.escape} {keys:<7} {text}" for keys, text in (*HELP, _twice(order))))


def _twice(order: Order) -> tuple[str, str]:
    return (order.escape, f"send {order.escape} itself")


async def _break(guest: Container, session: Session, order: Order) -> None:
    if not session.types():
        return
    if order.channel is not None:
        session.say("a channel has no break")
        return
    try:
        sent = guest.running is not None and await guest.running.send_break()
    except RunphiError as exc:
        session.say(str(exc))
        return
    session.say("break sent" if sent else "this guest's console has no break")
