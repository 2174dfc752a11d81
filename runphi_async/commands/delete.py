# SPDX-License-Identifier: Apache-2.0
"""`runphi delete`: free all the container had. Always ends, also when the hypervisor is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.commands.cli import find_or_pass
from runphi_async.errors import NotFoundError
from runphi_async.operations import delete as operation

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--force", "-f", action="store_true", help="destroy the guest first if it lives")
    parser.add_argument("id", metavar="ID")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Delete the container."""
    try:
        guest = find_or_pass(supervisor, given.id, options)
    except NotFoundError:
        if given.force:
            return  # engines force-delete what is gone already
        raise
    await operation.delete(supervisor, guest, force=given.force)
