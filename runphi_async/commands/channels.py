# SPDX-License-Identifier: Apache-2.0
"""`runphi channels`: the named streams of a container, with their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runphi_async.commands.cli import find_named
from runphi_async.commands.tables import table
from runphi_async.terminals import channels

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call

_COLUMNS = ("name", "source", "guest", "received", "typed", "waiting_up", "waiting_down", "violations", "clients")


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--format", "-f", choices=("table", "json"), default="table")
    parser.add_argument("id", metavar="NAME")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """List them; of an ended guest only names and sources are known."""
    guest = find_named(supervisor, given.id, options)
    rows: list[dict[str, object]] = [{"name": name} for name in channels.names(guest.record)]
    if guest.running is not None:
        rows = [stream.statistics() for stream in guest.running.streams.channels.values()]
    if given.format == "json":
        await call.out(msgspec.json.encode(rows) + b"\n")
    else:
        await call.out(_table(rows))


def _table(rows: list[dict[str, object]]) -> str:
    cells = [[name.upper().replace("_", "-") for name in _COLUMNS]]
    cells += [[str(row.get(name, "-")) for name in _COLUMNS] for row in rows]
    return table(cells)
