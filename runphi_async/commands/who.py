# SPDX-License-Identifier: Apache-2.0
"""`runphi who`: the people on a container's console, and how well they keep up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.guest import Guest
    from runphi_async.container.registry import Supervisor
    from runphi_async.terminals.sessions import Row
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--format", "-f", choices=("table", "json"), default="table")
    parser.add_argument("--channel", metavar="CHANNEL", help="those on a named stream instead of the console")
    parser.add_argument("id", metavar="NAME")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """List who is attached now."""
    guest = supervisor.by_name(given.id, options.root if options.root_given else None)
    rows = guest.people_on(given.channel).rows() if _known(guest, given.channel) else []
    if given.format == "json":
        await call.out(msgspec.json.encode([row._asdict() for row in rows]) + b"\n")
    else:
        await call.out(table(rows))


def _known(guest: Guest, channel: str | None) -> bool:
    """Whether there is such a stream now; a name that there is not makes the guest say what there is."""
    return channel is None or guest.stream(channel) is not None


def table(rows: Sequence[Row]) -> str:
    """Return the list for people."""
    cells = [("ROLE", "USER", "PID", "TTY", "SINCE", "SENT", "SKIPPED", "LAG", "WORDS"), *map(_cells, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in cells)


def _cells(row: Row) -> tuple[str, ...]:
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(row.since))
    numbers = (str(number) for number in (row.sent, row.skipped, row.lag))
    return (row.role, row.user, str(row.pid), row.tty or "-", since, *numbers, row.words)
