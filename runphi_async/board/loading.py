# SPDX-License-Identifier: Apache-2.0
"""Reading board files: those that come along, and those of the administrator.

:func:`load` refuses a file that cannot be used, with file, key and a hint.
"""

from __future__ import annotations

import os
import tomllib
from typing import Any, Final

import msgspec

from runphi_async import regular
from runphi_async.board.board import Board
from runphi_async.board.boardcheck import findings
from runphi_async.config.section import Size
from runphi_async.errors import ConfigError
from runphi_async.oci.spec import locate

#: the shipped files
BOARDS_DIR: Final = os.path.join(os.path.dirname(__file__), "boards")


#: the shipped file that explains the format and is no board
TEMPLATE: Final = "template"


#: largest board file
FILE_MAX: Final = 1 << 20


def shipped() -> list[str]:
    """Return the names of the shipped boards, sorted."""
    names = (name.removesuffix(".toml") for name in os.listdir(BOARDS_DIR) if name.endswith(".toml"))
    return sorted(name for name in names if name != TEMPLATE)


def path_of(name: str) -> str:
    """Return the file of a board: a name of a shipped one, or a path."""
    if "/" in name or name.endswith(".toml"):
        return name
    return os.path.join(BOARDS_DIR, f"{name}.toml")


def load(name: str) -> Board:
    """Read a board file (blocks).

    :raises ConfigError: it cannot be used; says the first thing that is wrong.
    """
    path = path_of(name)
    shown = f"board {name}" if path != name else name
    try:
        data = regular.read(path, FILE_MAX)
    except FileNotFoundError:
        known = ", ".join(shipped())
        raise ConfigError(f"cannot read {shown}: not found", f"give a path, or one of: {known}") from None
    except OSError as exc:
        raise ConfigError(f"cannot read {shown}: {exc.strerror}") from exc
    board = parse(data, path if shown == path else shown)
    for finding in findings(board):
        if finding.fatal:
            raise ConfigError(f"{shown}: {finding.key}: {finding.problem}", finding.hint or None)
    return board


def parse(data: bytes, name: str) -> Board:
    """Make a board of a file's bytes; its numbers are not compared with one another yet.

    :param name: what messages call the file.
    :raises ConfigError: it is no board file, and where.
    """
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as exc:  # int's own of too many digits, too
        raise ConfigError(f"{name}: not TOML: {exc}", "see https://toml.io") from exc
    return from_table(table, name)


def from_table(table: dict[str, Any], name: str) -> Board:
    """Make a board of a decoded TOML document."""
    try:
        return msgspec.convert(table, Board, dec_hook=_size)
    except msgspec.ValidationError as exc:
        place, problem = locate(exc)
        key = place.removeprefix("$").removeprefix(".") or "the file"
        raise ConfigError(f"{name}: {key}: {problem}", _hint(problem)) from exc


def _size(kind: type, value: Any) -> Any:
    if kind is Size:
        return Size.parse(value)
    raise NotImplementedError(kind)


def _hint(problem: str) -> str:
    if problem.startswith("object missing required field"):
        return "runphi_async/board/boards/template.toml explains every key"
    if problem.startswith("object contains unknown field"):
        return "docs/reference/boards.md lists the keys"
    if problem.startswith("invalid enum value"):
        return "docs/reference/boards.md lists the values"
    return 'write addresses as 0x70000000, sizes as "64 KiB", lists of numbers as "0-3,5"'
