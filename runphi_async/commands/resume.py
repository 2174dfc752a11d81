# SPDX-License-Identifier: Apache-2.0
"""`runphi resume`: a paused guest goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.commands.cli import find_or_pass
from runphi_async.operations.standstill import resume

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("id", metavar="ID")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Resume the guest."""
    await resume(find_or_pass(supervisor, given.id, options))
