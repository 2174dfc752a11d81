# SPDX-License-Identifier: Apache-2.0
"""`runphi ps`: the host processes of a container: its init stub, its VMM and their helpers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import msgspec

from runphi_async.commands.cli import find_or_pass

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--format", "-f", choices=("table", "json"), default="table")
    parser.add_argument("id", metavar="ID")
    parser.add_argument("ps_options", nargs="...", help="accepted for compatibility")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """List the pids of the container's cgroup."""
    guest = find_or_pass(supervisor, given.id, options)
    pids = await anyio.to_thread.run_sync(guest.cgroup.pids)
    if given.format == "json":
        await call.out(msgspec.json.encode(pids))
        return
    rows = await anyio.to_thread.run_sync(lambda: [_row(pid) for pid in pids])
    lines = [f"{'PID':>8} {'PPID':>8} {'TIME':>9}  COMMAND", *(row for row in rows if row)]
    await call.out("\n".join(lines) + "\n")


def _row(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = os.fsdecode(file.read().replace(b"\0", b" ").strip())
    except OSError:
        return None
    seconds = (int(fields[11]) + int(fields[12])) // os.sysconf("SC_CLK_TCK")
    return f"{pid:>8} {int(fields[1]):>8} {seconds // 60:>6}:{seconds % 60:02}  {command[:160]}"
