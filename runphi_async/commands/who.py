# SPDX-License-Identifier: Apache-2.0
"""`runphi who`: the people on a container's console, and how well they keep up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runphi_async.commands import tables
from runphi_async.commands.cli import find_named

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--format", "-f", choices=("table", "json"), default="table")
    parser.add_argument("--channel", metavar="CHANNEL", help="those on a named stream instead of the console")
    parser.add_argument("id", metavar="NAME")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """List who is attached now."""
    stream = find_named(supervisor, given.id, options).stream(given.channel)
    rows = stream.people.rows() if stream is not None else []
    if given.format == "json":
        await call.out(msgspec.json.encode([row._asdict() for row in rows]) + b"\n")
    else:
        await call.out(tables.people(rows))
