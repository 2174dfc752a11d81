# SPDX-License-Identifier: Apache-2.0
"""`runphi console rules`: the patterns looked for on a container's console, and how often each has matched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runphi_async.commands.cli import find_named
from runphi_async.commands.tables import table

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's words and options."""
    words = parser.add_subparsers(dest="word", required=True, metavar="WORD")
    rules = words.add_parser("rules", help="list the patterns looked for on the console")
    rules.add_argument("--format", "-f", choices=("table", "json"), default="table")
    rules.add_argument("id", metavar="NAME")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """List the rules; a guest that has ended has none any more, its events tell what they saw."""
    guest = find_named(supervisor, given.id, options)
    lines = guest.running.watching.lines() if guest.running is not None else []
    if given.format == "json":
        await call.out(msgspec.json.encode([line._asdict() for line in lines]) + b"\n")
        return
    cells = [("RULE", "MATCHES", "PATTERN")]
    cells += [(line.name, f"{'≥' if line.at_least else ''}{line.matches}", line.pattern) for line in lines]
    await call.out(table(cells))
