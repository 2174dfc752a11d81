# SPDX-License-Identifier: Apache-2.0
"""`runphi run`: create and start a container; without -d wait for it, show its console, and delete it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from runphi_async import wire
from runphi_async.aio.waiting import either
from runphi_async.commands import attach, create, detachkeys
from runphi_async.commands.cli import PassThrough
from runphi_async.container.bundle import is_wanted, read_bundle
from runphi_async.container.creation import Creation
from runphi_async.container.forgetting import forget
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
    asked = await anyio.to_thread.run_sync(read_bundle, wanted.bundle, supervisor.config.annotations.of_images)
    if not is_wanted(asked, supervisor.config):
        raise PassThrough
    guest = await Creation(supervisor, call, wanted, asked).run()
    try:
        if guest.record.terminal and attached:
            return await _with_terminal(call, supervisor, guest)
        async with guest.verb():
            await guest.start()
        if given.detach:
            return 0
        await either(guest.settled, call.gone)
        return guest.record.exit_code or 0
    finally:
        if not given.detach:
            with anyio.CancelScope(shield=True):
                await guest.end()
                if not given.keep:
                    async with guest.verb():
                        await forget(guest)
                        supervisor.drop(guest)


async def _with_terminal(call: Call, supervisor: Supervisor, guest: Container) -> int:
    keys = detachkeys.parse(supervisor.config.console.detach_keys)
    shown = AttachStart(terminal=True, stdin=True, forward=True, detach=keys)
    await call.send(wire.ATTACH, shown.encode())
    async with guest.verb():
        await guest.start()
    return await attach.show(call, guest, attach.Order(Wish.OWN, start=0, is_terminal=True))
