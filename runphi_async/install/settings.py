# SPDX-License-Identifier: Apache-2.0
"""The configuration file that is written where there is none; a file that somebody wrote or changed stays as it is."""

from __future__ import annotations

import json
import os
import tomllib
from typing import TYPE_CHECKING

from runphi_async.errors import RunphiError
from runphi_async.install.root import CONFIG

if TYPE_CHECKING:
    from runphi_async.install.root import Root

_HEAD = """# runPHI's configuration. All keys are in docs/reference/configuration.md.
# Written by runphi-configure, which leaves the file alone once you have changed it.
"""


def text(backend: str, board: str) -> str:
    """Return the file for a backend."""
    lines = [_HEAD, f"backend = {json.dumps(backend)}"]
    if board:
        lines += ["", "[jailhouse]", f"board = {json.dumps(board)}"]
    elif backend == "jailhouse":
        lines += [
            "",
            "[jailhouse]",
            "# the board, which every cell needs: a file, or one that runphi board list names",
        ]
        lines += ['#board = "…"']
    return "\n".join(lines) + "\n"


def differences(root: Root, backend: str, board: str) -> list[str]:
    """Return what somebody must write into a file of their own so that it says what was asked."""
    try:
        with open(root(CONFIG), "rb") as file:
            table = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as exc:
        raise RunphiError(f"cannot read {root(CONFIG)}: {exc}", "mend it, or move it away") from exc
    missing = []
    if table.get("backend", "qemu") != backend:
        missing.append(f"backend = {json.dumps(backend)}")
    if board and table.get("jailhouse", {}).get("board", "") != board:
        missing.append(f"jailhouse.board = {json.dumps(board)}")
    return missing


def check_board(board: str) -> None:
    """Refuse a board file that is not there; a name is looked up when the supervisor starts."""
    if os.sep in board and not os.path.isfile(board):
        raise RunphiError(f"cannot use board file {board}: it is not there")
