# SPDX-License-Identifier: Apache-2.0
"""`runphi events`: what happened to a container, one JSON object a line; or its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec

from runphi_async.aio.waiting import either
from runphi_async.commands.cli import PassThrough, find_named
from runphi_async.errors import NotFoundError

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--stats", action="store_true", help="print the numbers of now, once")
    parser.add_argument("--interval", metavar="TIME", help="accepted for compatibility: events come as they happen")
    parser.add_argument("--no-follow", action="store_true", help="print what happened so far and end")
    parser.add_argument("id", metavar="ID")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Print events until the container is deleted, or its statistics."""
    try:
        guest = find_named(supervisor, given.id, options)
    except NotFoundError:
        if supervisor.config.real_runc() is None:
            raise
        raise PassThrough from None
    if given.stats:
        await call.out(await _stats(guest))
        return
    events, directory, offset = supervisor.events, guest.directory, 0
    while True:
        news = anyio.Event()
        with events.following(directory, news.set):
            data = events.read(directory, offset)
            offset += len(data)
            await call.out(data)
            if given.no_follow or supervisor.guests.get(guest.record.name) is not guest:
                return
            await either(news, call.gone)
        if call.gone.is_set():
            return


async def _stats(guest: Container) -> bytes:
    """The numbers in the form of runc's `events --stats`, with the console's beside them."""
    stats = await anyio.to_thread.run_sync(lambda: guest.cgroup.stats())
    console = guest.console.hub.statistics() if guest.console is not None else None
    data = {
        "cpu": {
            "usage": {
                "total": stats.cpu_total,
                "kernel": stats.cpu_kernel,
                "user": stats.cpu_user,
            }
        },
        "memory": {"usage": {"usage": stats.memory_usage, "limit": stats.memory_limit}},
        "pids": {"current": stats.pids},
        "console": console._asdict() if console is not None else None,
        "logs": [log._asdict() for log in guest.console.logs.statistics()] if guest.console is not None else [],
    }
    return msgspec.json.encode({"type": "stats", "id": guest.record.id, "data": data}) + b"\n"
