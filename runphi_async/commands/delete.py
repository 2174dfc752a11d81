# SPDX-License-Identifier: Apache-2.0
"""`runphi delete`: free all the container had. Always ends, also when the hypervisor is gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from runphi_async.commands.cli import find_or_pass
from runphi_async.container.document import document
from runphi_async.container.forgetting import forget
from runphi_async.container.hooks import run_hooks
from runphi_async.errors import HookError, NotFoundError, SpecError
from runphi_async.record.lifecycle import Event

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


log = logging.getLogger(__name__)


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--force", "-f", action="store_true", help="destroy the guest first if it lives")
    parser.add_argument("id", metavar="ID")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Delete the container."""
    try:
        guest: Container = find_or_pass(supervisor, given.id, options)
    except NotFoundError:
        if given.force:
            return  # engines force-delete what is gone already
        raise
    event = Event.FORCE_DELETE if given.force else Event.DELETE
    guest.lifecycle.check(event)
    if given.force:
        await guest.request(event)  # before the lock: a verb that hangs on this guest must not hold its deletion up
    async with guest.verb():
        if supervisor.guests.get(guest.record.name) is not guest:  # somebody else's delete was faster
            if given.force:
                return
            raise NotFoundError("container does not exist")
        await guest.request(event)
        state = document(guest.record).hook_bytes()
        try:
            await run_hooks((await guest.hooks()).poststop, state, kind="poststop", cwd=guest.record.bundle)
        except (HookError, SpecError) as exc:
            log.warning("%s: %s", guest.record.name, exc)
        await forget(guest)
        supervisor.drop(guest)
