# SPDX-License-Identifier: Apache-2.0
"""`runphi timeline`: what hypervisor, guests and runtime said, merged by time."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Final

import anyio

from runphi_async.aio.waiting import either
from runphi_async.commands.cli import find_named
from runphi_async.commands.logs import moment
from runphi_async.operations.timeline import Timeline, as_json, as_text

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.operations.timeline import Item
    from runphi_async.wire.call import Call

#: Items that are read and sent in one step.
STEP: Final = 512
#: Seconds an item waits for older ones: a log is written 20 ms behind its guest, more on a busy disk.
SETTLE: Final = 0.25


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what comes")
    parser.add_argument("--since", metavar="TIME", help="only what came since: 10m, 2h, or 2026-11-24T10:00:00Z")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="form of the lines")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these containers (and the hypervisor)")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Print the timeline, and follow it if asked."""
    named = [find_named(supervisor, name, options) for name in given.names]
    show = as_json if given.format == "json" else as_text
    timeline = Timeline(moment(given.since, time.time_ns()) if given.since is not None else 0)
    if supervisor.hypervisor is not None:
        timeline.add_hypervisor(supervisor.hypervisor)
    for guest in named:
        timeline.add_guest(guest, supervisor.events)
    while True:
        news = anyio.Event()
        if not named:
            for guest in supervisor.guests.values():
                timeline.add_guest(guest, supervisor.events)
        with _watching(supervisor, timeline.guests, news.set):
            gone = _finish(timeline, supervisor, follow=given.follow)
            until = time.time_ns() - int(SETTLE * 1e9) if given.follow else 1 << 63
            await _print(call, timeline.turn(until), show)
            for guest in gone:
                timeline.drop(guest)
            if not given.follow or (named and not timeline.guests and not timeline.waits):
                return
            with anyio.move_on_after(SETTLE if timeline.waits else None):
                await either(news, call.gone)
        if call.gone.is_set():
            return


def _finish(timeline: Timeline, supervisor: Supervisor, *, follow: bool) -> list[Container]:
    """Finish the consoles that will bring no more; return the containers that are deleted by now."""
    for guest in timeline.guests:
        if guest.settled.is_set() or not follow:
            timeline.finish(guest)
    return [guest for guest in timeline.guests if supervisor.guests.get(guest.record.name) is not guest]


@contextlib.contextmanager
def _watching(supervisor: Supervisor, guests: list[Container], wake: Callable[[], None]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(supervisor.events.watching(wake))
        if supervisor.hypervisor is not None:
            supervisor.hypervisor.watch(wake)
            stack.callback(supervisor.hypervisor.unwatch, wake)
        for guest in guests:
            if guest.console is not None:
                guest.console.logs.watch(wake)
                stack.callback(guest.console.logs.unwatch, wake)
        yield


async def _print(call: Call, items: Iterator[Item], show: Callable[[Item], str]) -> None:
    while lines := await anyio.to_thread.run_sync(lambda: [show(item) for item in itertools.islice(items, STEP)]):
        await call.out("".join(lines))
