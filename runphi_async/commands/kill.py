# SPDX-License-Identifier: Apache-2.0
"""`runphi kill`: a signal for the container; what it means is in `runphi_async.oci.signals`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.commands.cli import find_or_pass
from runphi_async.oci.signals import parse
from runphi_async.operations import kill as operation

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--all", "-a", action="store_true", help="accepted: a partition is one whole; ended is fine")
    parser.add_argument("id", metavar="ID")
    parser.add_argument("signal", metavar="SIGNAL", nargs="?", default="SIGTERM", help="number or name")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Deliver the signal."""
    number = parse(given.signal)
    await operation.kill(find_or_pass(supervisor, given.id, options), number, whole=given.all)
