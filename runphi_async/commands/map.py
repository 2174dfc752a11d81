# SPDX-License-Identifier: Apache-2.0
"""`runphi map`: draw a board's CPUs and memory with their owners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from backends import detect
from backends.base import Draws
from runphi_async.errors import RunphiError
from runphi_async.host.files import write_atomically

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--board", metavar="BOARD", help="another board, drawn empty (default: the configured one)")
    parser.add_argument("--svg", metavar="FILE", help="write an SVG picture to FILE; - prints it")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Draw the board."""
    backend = await detect.of_verb("map", supervisor.detection)
    assert isinstance(backend, Draws)
    board = call.path(given.board) if given.board and "/" in given.board else given.board or ""
    picture = await backend.draw(board, svg=given.svg is not None)
    if given.svg in (None, "-"):
        await call.out(picture)
        return
    target = call.path(given.svg)
    try:
        await anyio.to_thread.run_sync(write_atomically, target, picture.encode(), 0o644)
    except OSError as exc:
        raise RunphiError(f"cannot write {target}: {exc.strerror}") from exc
