# SPDX-License-Identifier: Apache-2.0
"""A board with those who have its CPUs and memory: the ledger's word, and beside it cells that others made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.jailhouse.sysfs import View
from runphi_async.board import claims, drawing, loading
from runphi_async.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.board.claims import Held


def which(wanted: str, configured: str) -> str:
    """Return the board that is meant.

    :raises ConfigError: none is.
    """
    if not (wanted or configured):
        known = ", ".join(loading.shipped())
        raise ConfigError("cannot draw a board: none is configured", f"set jailhouse.board, or give --board: {known}")
    return wanted or configured


def draw(name: str, held: Sequence[Held] = (), view: View | None = None, *, svg: bool) -> str:
    """Draw the board ``name`` (blocks): as text, with notes where ledger and hypervisor disagree, or as a picture."""
    view = view or View()
    board, seen = loading.load(name), view.guests()
    everything = (*held, *claims.strangers(held, seen))
    if svg:
        return drawing.svg(board, everything)
    odd = claims.check(held, seen) if view.module else []
    notes = [f"  note: {note.owner or 'nobody'}: {note.problem}" for note in odd]
    return "\n".join([drawing.text(board, everything), *notes]) + ("\n" if notes else "")
