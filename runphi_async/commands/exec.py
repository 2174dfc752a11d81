# SPDX-License-Identifier: Apache-2.0
"""`runphi exec`: passed to the ordinary runtime for its containers; partitions cannot do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.commands.cli import find_or_pass
from runphi_async.errors import UnsupportedError

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options: enough of runc's to find the container's id."""
    parser.add_argument("--process", "-p", metavar="FILE")
    parser.add_argument("--detach", "-d", action="store_true")
    parser.add_argument("--pid-file", metavar="FILE")
    parser.add_argument("--console-socket", metavar="SOCKET")
    parser.add_argument("--tty", "-t", action="store_true")
    parser.add_argument("--cwd", metavar="DIR")
    parser.add_argument("--env", "-e", metavar="VAR", action="append")
    parser.add_argument("--user", "-u", metavar="UID")
    parser.add_argument("--additional-gids", "-g", metavar="GID", action="append")
    parser.add_argument("--preserve-fds", metavar="N")
    parser.add_argument("--cap", "-c", metavar="CAP", action="append")
    parser.add_argument("--no-new-privs", action="store_true")
    parser.add_argument("--process-label", metavar="LABEL")
    parser.add_argument("--apparmor", metavar="PROFILE")
    parser.add_argument("--cgroup", metavar="PATH", action="append")
    parser.add_argument("--ignore-paused", action="store_true")
    parser.add_argument("id", metavar="ID")
    parser.add_argument("command", nargs="...", metavar="COMMAND")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Say that the guest cannot, or leave it to the ordinary runtime."""
    find_or_pass(supervisor, given.id, options)
    raise UnsupportedError(
        "cannot run a further process in the container: not supported by this guest",
        "a partition has no host processes inside; use its console: runphi attach",
    )
