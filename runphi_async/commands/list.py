# SPDX-License-Identifier: Apache-2.0
"""`runphi list`: the containers of a root, ours and those of the ordinary runtime."""

from __future__ import annotations

import asyncio
import pwd
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING

import anyio
import msgspec

from runphi_async.commands.cli import PassThrough
from runphi_async.commands.tables import table
from runphi_async.container.document import document
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


#: Seconds that the ordinary runtime may take to list its own.
PATIENCE = 20.0
#: Seconds that a supervisor that has just started may take to find out how its containers are; then they are shown as
#: their records have them.
ADOPTION_PATIENCE = 2.0


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--format", "-f", choices=("table", "json"), default="table")
    parser.add_argument("--quiet", "-q", action="store_true", help="ids only")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """List the containers of --root; without --root all of ours."""
    with anyio.move_on_after(ADOPTION_PATIENCE):
        await supervisor.recovered.wait()
    ours = [g for g in supervisor.guests.values() if not options.root_given or g.record.root == options.root]
    if not ours and supervisor.config.real_runc() is not None and not call.restricted:
        raise PassThrough
    # root asks no other runtime on behalf of somebody who is not root
    rows = [_ours(guest) for guest in ours] + ([] if call.restricted else await _others(supervisor, options.root))
    rows.sort(key=lambda row: str(row["id"]))
    if given.quiet:
        await call.out("".join(f"{row['id']}\n" for row in rows))
    elif given.format == "json":
        await call.out(msgspec.json.encode(rows or None) + b"\n")
    else:
        await call.out(_table(rows))


def _ours(guest: Container) -> dict[str, object]:
    row: dict[str, object] = msgspec.to_builtins(document(guest.record))
    try:
        row["owner"] = pwd.getpwuid(0).pw_name
    except KeyError:
        row["owner"] = "#0"
    return row


async def _others(supervisor: Supervisor, root: str) -> list[dict[str, object]]:
    runc = supervisor.config.real_runc()
    if runc is None:
        return []
    process = await asyncio.create_subprocess_exec(
        runc, "--root", root, "list", "--format", "json", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, _ = await process.communicate()
        return msgspec.json.decode(out, type=list[dict[str, object]] | None) or []
    except (TimeoutError, msgspec.MsgspecError) as exc:
        raise BackendError(f"cannot list the containers of {runc}: no usable answer") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _table(rows: list[dict[str, object]]) -> str:
    columns = ("id", "pid", "status", "bundle", "created", "owner")
    cells = [[name.upper() for name in columns], *([str(row.get(name, "")) for name in columns] for row in rows)]
    return table(cells, gap="   ")
