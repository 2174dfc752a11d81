# SPDX-License-Identifier: Apache-2.0
"""`runphi map`: draw a board's CPUs and memory with their owners."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio

from backends import detect
from backends.jailhouse.backend import JailhouseBackend
from backends.jailhouse.sysfs import View
from runphi_async.board import drawing, loading
from runphi_async.board.claims import check, strangers
from runphi_async.board.ledger import FILE, Ledger
from runphi_async.errors import ConfigError, RunphiError
from runphi_async.host.files import boot_id, write_atomically

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
    configured = supervisor.config.jailhouse.board
    name = given.board or configured
    if not name:
        known = ", ".join(loading.shipped())
        raise ConfigError("cannot draw a board: none is configured", f"set jailhouse.board, or give --board: {known}")
    path = call.path(name) if given.board and "/" in name else name
    run_dir = None if given.board and given.board != configured else supervisor.store.run_dir
    view = await _view(supervisor) if run_dir is not None else View()
    picture = await anyio.to_thread.run_sync(_draw, path, run_dir, given.svg is not None, view)
    if given.svg in (None, "-"):
        await call.out(picture)
        return
    target = call.path(given.svg)
    try:
        await anyio.to_thread.run_sync(write_atomically, target, picture.encode(), 0o644)
    except OSError as exc:
        raise RunphiError(f"cannot write {target}: {exc.strerror}") from exc


async def _view(supervisor: Supervisor) -> View:
    backend = await detect.backend("jailhouse", supervisor.detection)
    assert isinstance(backend, JailhouseBackend)
    return await backend.look()


def _draw(name: str, run_dir: str | None, as_svg: bool, view: View) -> str:
    board = loading.load(name)
    held = Ledger(os.path.join(run_dir, FILE), boot_id()).held() if run_dir is not None else ()
    seen = view.guests()
    everything = (*held, *strangers(held, seen))
    if as_svg:
        return drawing.svg(board, everything)
    odd = check(held, seen) if view.module else []
    notes = [f"  note: {note.owner or 'nobody'}: {note.problem}" for note in odd]
    return "\n".join([drawing.text(board, everything), *notes]) + ("\n" if notes else "")
