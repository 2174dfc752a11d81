# SPDX-License-Identifier: Apache-2.0
"""`runphi reopen-logs`: another program has renamed log files; go on in new ones. SIGHUP does the same for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.commands.cli import find_named

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("id", metavar="NAME", nargs="?", help="a container; without it all")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Say that the files are to be opened anew; it happens at once, and beside the answer."""
    if given.id is None:
        supervisor.reopen_logs()
    else:
        find_named(supervisor, given.id, options).reopen_logs()
