# SPDX-License-Identifier: Apache-2.0
"""`runphi run`: create and start a container; without -d wait for it, show its console, and delete it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from runphi_async import wire
from runphi_async.aio.waiting import either
from runphi_async.commands import create, detachkeys, shown
from runphi_async.commands.cli import PassThrough
from runphi_async.operations import create as making
from runphi_async.operations.delete import delete
from runphi_async.operations.start import start
from runphi_async.terminals.people import Wish
from runphi_async.wire.console import AttachStart

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options: runc's."""
    parser.add_argument("--detach", "-d", action="store_true", help="do not wait for the container")
    parser.add_argument("--keep", action="store_true", help="do not delete the container at its end")
    parser.add_argument("--no-subreaper", action="store_true", help="accepted for compatibility")
    create.arguments(parser)


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> int:
    """Run the container; the status is the guest's exit code."""
    attached = not given.detach and not given.console_socket
    wanted = create.order(call, options, given, attached=attached)
    guest = await making.create(supervisor, call, wanted)
    if guest is None:
        raise PassThrough
    try:
        if guest.record.terminal and attached:
            return await _with_terminal(call, supervisor, guest)
        await start(guest)
        if given.detach:
            return 0
        await either(guest.settled, call.gone)
        return guest.record.exit_code or 0
    finally:
        if not given.detach:
            with anyio.CancelScope(shield=True):
                if given.keep:
                    await guest.end()
                else:
                    await delete(supervisor, guest, force=True)


async def _with_terminal(call: Call, supervisor: Supervisor, guest: Container) -> int:
    keys = detachkeys.parse(supervisor.config.console.detach_keys)
    begun = AttachStart(terminal=True, stdin=True, forward=True, detach=keys)
    await call.send(wire.ATTACH, begun.encode())
    await start(guest)
    return await shown.show(call, guest, shown.Order(Wish.OWN, start=0, is_terminal=True))
