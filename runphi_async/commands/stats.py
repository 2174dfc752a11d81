# SPDX-License-Identifier: Apache-2.0
"""`runphi stats`: the numbers of a container: boot, console, people, rules and what its cgroup uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from runphi_async.commands.cli import find_named
from runphi_async.errors import CgroupError

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--format", "-f", choices=("table", "json"), default="table")
    parser.add_argument("id", metavar="NAME")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Print the numbers of now."""
    guest = find_named(supervisor, given.id, options)
    numbers = await _numbers(guest)
    if given.format == "json":
        await call.out(msgspec.json.encode(numbers) + b"\n")
    else:
        await call.out("".join(f"{name:<24} {value}\n" for name, value in _flat(numbers, "")))


async def _numbers(guest: Container) -> dict[str, Any]:
    record = guest.record
    numbers: dict[str, Any] = {
        "id": record.id,
        "status": record.status.shown.value,
        "boot": {f"{name}-ms": value for name, value in record.boot.items()},
        "people": _people(guest),
        "rules": {},
    }
    running = guest.running
    if running is not None:
        numbers["rules"] = {line.name: line.matches for line in running.watching.lines()}
        numbers["console"] = running.streams.console.hub.statistics()._asdict()
        numbers["console"]["rules-missed"] = running.watching.missed
    try:
        stats = await anyio.to_thread.run_sync(lambda: guest.cgroup.stats())
    except (CgroupError, OSError):  # it has ended
        return numbers
    numbers["cpu"] = {"total-ns": stats.cpu_total, "kernel-ns": stats.cpu_kernel, "user-ns": stats.cpu_user}
    numbers["memory"] = {"usage": stats.memory_usage, "limit": stats.memory_limit}
    numbers["pids"] = stats.pids
    return numbers


def _people(guest: Container) -> dict[str, int]:
    rows = guest.console.people.rows() if guest.console is not None else []
    return {
        "attached": len(rows),
        "may-type": sum(row.role != "observer" for row in rows),
        "skipped": sum(row.skipped for row in rows),
        "largest-lag": max((row.lag for row in rows), default=0),
    }


def _flat(numbers: dict[str, Any], prefix: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in numbers.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, "-" if value is None else value))
    return found
