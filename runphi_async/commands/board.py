# SPDX-License-Identifier: Apache-2.0
"""`runphi board`: look at, check and make the files that say what a board can give to cells."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import anyio

from backends.jailhouse import codec, sysconfig
from backends.jailhouse.model import System
from runphi_async import regular
from runphi_async.board import boardcheck, loading, ranges
from runphi_async.board import iomem as iomems
from runphi_async.errors import CellError, ConfigError
from runphi_async.units import human

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.board.board import Board
    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call

#: more than any root configuration or /proc/iomem has
FILE_MAX: Final = 1 << 20


def arguments(parser: Parser) -> None:
    """Declare what the verb can do."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="list the shipped boards")
    check = actions.add_parser("check", help="say everything that is wrong with a board file")
    check.add_argument("file", metavar="FILE", help="a board file, or the name of a shipped board")
    check.add_argument("--iomem", metavar="FILE", help="/proc/iomem of the running root system, to compare with")
    derive = actions.add_parser("from-sysconfig", help="make a board file of a Jailhouse root configuration")
    derive.add_argument("--iomem", metavar="FILE", help="/proc/iomem of the running root system, for the free memory")
    derive.add_argument("file", metavar="FILE.cell", help="what you give to jailhouse enable")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> int:
    """Do what was asked; `check` ends with 1 when the board cannot be used."""
    if given.action == "list":
        await call.out(await anyio.to_thread.run_sync(_list))
        return 0
    iomem = call.path(given.iomem) if given.iomem else None
    if given.action == "check":
        text, fatal = await anyio.to_thread.run_sync(_check, _file(call, given.file), given.file, iomem)
        await call.out(text)
        return 1 if fatal else 0
    await call.out(await anyio.to_thread.run_sync(_derive, call.path(given.file), iomem))
    return 0


def _file(call: Call, name: str) -> str:
    """Return a file by the caller's working directory; the name of a shipped board stays one."""
    return call.path(name) if "/" in name or name.endswith(".toml") else name


def _list() -> str:
    """Return one line for each shipped board."""
    found = [loading.load(name) for name in loading.shipped()]
    width = max(len(board.name) for board in found)
    return "".join(f"{board.name:<{width}}   {board.title}\n" for board in found)


def _check(name: str, shown: str, iomem: str | None) -> tuple[str, bool]:
    """Return what to print, and whether the board cannot be used."""
    path = loading.path_of(name)
    try:
        board = loading.parse(regular.read(path, loading.FILE_MAX), shown)
    except FileNotFoundError:
        hint = f"shipped boards: {', '.join(loading.shipped())}"
        raise ConfigError(f"cannot read board {shown}: not found", hint) from None
    except OSError as exc:
        raise ConfigError(f"cannot read board {shown}: {exc.strerror}") from exc
    found = boardcheck.findings(board)
    if iomem is not None:
        found += iomems.findings(board, iomems.system_ram(_read(iomem).decode("ascii", "replace")))
    fatal = any(finding.fatal for finding in found)
    lines = [finding.text(shown) for finding in found]
    if not fatal:
        lines.append(f"{shown}: {_summary(board)}")
    return "\n".join(lines) + "\n", fatal


def _derive(path: str, iomem: str | None) -> str:
    """Return a board file made of a root configuration."""
    config = codec.decode(_read(path))
    if not isinstance(config, System):
        raise CellError(f"cannot make a board file of {path}: it is a cell", "name the file given to jailhouse enable")
    text = _read(iomem).decode("ascii", "replace") if iomem is not None else None
    return sysconfig.board_file(config, text, os.path.basename(path))


def _read(path: str) -> bytes:
    try:
        return regular.read(path, FILE_MAX)
    except OSError as exc:
        raise CellError(f"cannot read {path}: {exc.strerror}") from exc


def _summary(board: Board) -> str:
    """Return what the board offers to cells, in one sentence."""
    memory = human(sum(int(part.size) for part in board.memory))
    parts = [f"CPUs {ranges.listed(board.cpus.lent()) or 'none'}", memory, f"{len(board.uart)} UART"]
    parts += [f"{len(board.ivshmem)} shared memory devices"] if board.ivshmem else []
    parts += [f"{len(board.rpu)} remote processors"] if board.rpu else []
    parts += [f"{len(ranges.numbers(board.cache.colors))} cache colours"] if board.cache else []
    return f"{board.name} ({board.dialect}) offers {', '.join(parts)}"
