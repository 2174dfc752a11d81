# SPDX-License-Identifier: Apache-2.0
"""`runphi state`: print the OCI state document, from our own record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.commands.cli import find_or_pass
from runphi_async.container.document import document

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("id", metavar="ID")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Print the state; no hypervisor is asked, so it answers at once whatever the guest does."""
    await call.out(document(find_or_pass(supervisor, given.id, options).record).to_bytes())
