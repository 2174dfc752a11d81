# SPDX-License-Identifier: Apache-2.0
"""`runphi logs`: what a container printed, from its raw log; also after it stopped, until it is deleted."""

from __future__ import annotations

import datetime
import os
import re
import time
from typing import TYPE_CHECKING

import anyio

from consoles.streams import logreader
from runphi_async import digits, wire
from runphi_async.aio.waiting import either
from runphi_async.commands.cli import find_named
from runphi_async.errors import RunphiError, UsageError
from runphi_async.terminals.consolelogs import raw_directory
from runphi_async.wire.console import AttachStart, pack_offset

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.partition.logplan import LogPlan
    from runphi_async.wire.call import Call


#: One frame carries at most this.
CHUNK = 1 << 18
#: Sequences other than colours: they can move the cursor, set the title, make the terminal answer.
TRICKS = re.compile(rb"\x1b(?=[^\[])|\x1b\[(?![0-9;]*m)(?=[^0-9;])|\x1b\[[0-9;]+[^0-9;m]")
HINT = b"the log holds control sequences; `runphi logs --safe` shows them as text"
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the guest ends")
    parser.add_argument("--tail", "-n", metavar="N", help="only the last N lines (all: everything)")
    parser.add_argument("--since", metavar="TIME", help="only what came since: 10m, 2h, or 2026-11-24T10:00:00Z")
    parser.add_argument("--safe", action="store_true", help="show control sequences as text instead of sending them")
    parser.add_argument("--channel", metavar="CHANNEL", help="the log of a named stream; runphi channels lists them")
    # A client that lost its supervisor goes on at this byte.
    parser.add_argument("--from", dest="start", type=digits.number, metavar="OFFSET", help="show from this byte on")
    parser.add_argument("id", metavar="NAME")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Print the log, and follow it if asked."""
    guest = find_named(supervisor, given.id, options)
    stream = guest.stream(given.channel)
    directory = _directory(guest.logs(given.channel))
    if stream is not None:
        await stream.logs.caught_up()
    start = await anyio.to_thread.run_sync(_start, directory, given)
    await call.send(wire.ATTACH, AttachStart(safe=given.safe).encode())
    suspicious = False
    await call.send(wire.CONSOLE_AT, pack_offset(start))
    while True:
        news = anyio.Event()
        ended = guest.settled.is_set()
        if stream is not None:
            stream.logs.watch(news.set)
        try:
            start, found = await _copy(call, directory, start)
            suspicious = suspicious or found
            if ended or not given.follow:
                if suspicious and not given.safe and call.fds and os.isatty(call.fds[1]):
                    await call.send(wire.NOTICE, HINT)
                return
            await either(news, guest.settled, call.gone)
        finally:
            if stream is not None:
                stream.logs.unwatch(news.set)
        if call.gone.is_set():
            return


def _directory(logs: Sequence[LogPlan]) -> str:
    directory = raw_directory(logs)
    if directory is not None:
        return directory
    if not logs:
        raise RunphiError(
            "cannot show logs: nothing is logged",
            "set log.enabled = true in the configuration, or drop the annotation org.runphi.log=none",
        )
    files = ", ".join(log.path for log in logs)
    raise RunphiError(f"cannot show logs: there is no raw log, only {files}", "add raw to org.runphi.log")


def _start(directory: str, given: Namespace) -> int:
    if given.start is not None:
        return max(0, int(given.start))
    first, _ = logreader.bounds(directory)
    if given.since is not None:
        first = max(first, logreader.since(directory, moment(given.since, time.time_ns())))
    if given.tail not in (None, "all"):
        lines = digits.whole(given.tail)
        if lines is None:
            raise UsageError(f"--tail wants a number of lines, not {given.tail!r:.80}")
        first = max(first, logreader.tail(directory, lines))
    return first


async def _copy(call: Call, directory: str, start: int) -> tuple[int, bool]:
    """Send the log from ``start`` on; return where it ends, and whether it could play tricks on a terminal."""
    suspicious = False
    while True:
        at, data = await anyio.to_thread.run_sync(logreader.read, directory, start, CHUNK)
        if not data:
            return start, suspicious
        suspicious = suspicious or TRICKS.search(data) is not None
        if at != start:
            await call.send(wire.SKIPPED, pack_offset(at))
        await call.send(wire.CONSOLE, data)
        start = at + len(data)


def moment(text: str, now_ns: int) -> int:
    """Return the time that ``text`` means, in nanoseconds since the epoch.

    :raises UsageError: it is neither a duration nor a time.
    """
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)([smhd]?)", text)
    if match is not None:
        seconds = float(match[1]) * _UNITS[match[2]]
        # A bare number that large is a time since the epoch, as docker takes it.
        since_epoch = not match[2] and seconds > 1e8
        return min(int(seconds * 1e9), digits.LARGEST) if since_epoch else max(0, now_ns - int(seconds * 1e9))
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp() * 1e9)
    except (ValueError, OverflowError):  # the year 1 is no time since the epoch
        problem = f"--since wants a duration or a time, not {text!r:.80}"
        raise UsageError(problem, "such as 10m or 2026-11-24T10:00:00Z") from None
