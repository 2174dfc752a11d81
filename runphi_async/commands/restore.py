# SPDX-License-Identifier: Apache-2.0
"""`runphi restore`: passed to the ordinary runtime for its containers; partitions cannot do it."""

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
    parser.add_argument("--image-path", metavar="DIR")
    parser.add_argument("--work-path", metavar="DIR")
    parser.add_argument("--parent-path", metavar="DIR")
    parser.add_argument("--tcp-established", action="store_true")
    parser.add_argument("--ext-unix-sk", action="store_true")
    parser.add_argument("--shell-job", action="store_true")
    parser.add_argument("--file-locks", action="store_true")
    parser.add_argument("--lazy-pages", action="store_true")
    parser.add_argument("--auto-dedup", action="store_true")
    parser.add_argument("--empty-ns", metavar="NS", action="append")
    parser.add_argument("--status-fd", metavar="FD")
    parser.add_argument("--page-server", metavar="ADDRESS")
    parser.add_argument("--manage-cgroups-mode", metavar="MODE")
    parser.add_argument("--bundle", "-b", metavar="DIR")
    parser.add_argument("--detach", "-d", action="store_true")
    parser.add_argument("--pid-file", metavar="FILE")
    parser.add_argument("--console-socket", metavar="SOCKET")
    parser.add_argument("--no-pivot", action="store_true")
    parser.add_argument("--no-subreaper", action="store_true")
    parser.add_argument("id", metavar="ID")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Say that the guest cannot, or leave it to the ordinary runtime."""
    find_or_pass(supervisor, given.id, options)
    raise UnsupportedError(
        "cannot restore a container: not supported by this guest",
        "create it anew from its bundle",
    )
