# SPDX-License-Identifier: Apache-2.0
"""`runphi create`: make a container and its guest, up to the first instruction."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runphi_async import digits
from runphi_async.commands.cli import PassThrough
from runphi_async.container.order import Order
from runphi_async.operations import create as operation

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options: runc's."""
    parser.add_argument("--bundle", "-b", metavar="DIR", default=".", help="bundle directory (default: here)")
    parser.add_argument("--pid-file", metavar="FILE", help="where to write the pid of the container's init")
    parser.add_argument("--console-socket", metavar="SOCKET", help="where to send the terminal's master")
    parser.add_argument("--no-pivot", action="store_true", help="accepted for compatibility")
    parser.add_argument("--no-new-keyring", action="store_true", help="accepted for compatibility")
    parser.add_argument(
        "--preserve-fds", metavar="N", type=digits.number, default=0, help="accepted; guests get no descriptors"
    )
    parser.add_argument("id", metavar="ID")


def order(call: Call, options: Globals, given: Namespace, *, attached: bool = False) -> Order:
    """Return what the command line asked for, with absolute paths."""
    return Order(
        id=given.id,
        root=options.root,
        bundle=os.path.realpath(call.path(given.bundle)),
        pid_file=call.path(given.pid_file) if given.pid_file else None,
        console_socket=given.console_socket,
        systemd_cgroup=options.systemd_cgroup,
        attached=attached,
    )


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Create the container, or leave it to the ordinary runtime."""
    wanted = order(call, options, given)
    if await operation.create(supervisor, call, wanted) is None:
        raise PassThrough
