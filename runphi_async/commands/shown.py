# SPDX-License-Identifier: Apache-2.0
"""A stream of a container on a connection: what ``attach`` shows, and ``run`` as well.

What comes of the frames that the person sends is decided in ``runphi_async.operations.attach``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import anyio

from runphi_async import digits, wire
from runphi_async.aio.waiting import either
from runphi_async.commands import tables
from runphi_async.oci import signals
from runphi_async.operations.attach import Attendee, AttendingOwner
from runphi_async.terminals import replay
from runphi_async.terminals.people import Role, Wish
from runphi_async.terminals.sessions import read_size, who_is
from runphi_async.wire.outgoing import ClientGone, Outlet

if TYPE_CHECKING:
    from runphi_async.container.container import Container
    from runphi_async.terminals.stream import Stream
    from runphi_async.wire.call import Call

#: Seconds that the last output of an ended guest may take to reach a client.
LAST_BYTES = 5.0


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
    kind_of = AttendingOwner if order.wish is Wish.OWN else Attendee
    attendee = kind_of(guest, stream, session, escape=order.escape, console=order.channel is None, listed=tables.people)
    try:
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                await _listen(call, stream, attendee)
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


async def _listen(call: Call, stream: Stream, attendee: Attendee) -> None:
    """Pass on what the person types, as fast as the guest takes it, until the person leaves."""
    queue = stream.input
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
        await _pass_on(attendee, kind, payload)


async def _pass_on(attendee: Attendee, kind: bytes, payload: bytes) -> None:
    if kind == wire.INPUT:
        attendee.typed(payload)
    elif kind == wire.RESIZE:
        attendee.resized(payload)
    elif kind == wire.ASK:
        await attendee.key(payload)
    elif not isinstance(attendee, AttendingOwner):
        return
    elif kind == wire.INPUT_EOF:
        attendee.end_of_input()
    elif kind == wire.SIGNAL and (number := digits.whole(payload, signals.LAST)) is not None:
        await attendee.signal(number)
