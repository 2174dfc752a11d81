# SPDX-License-Identifier: Apache-2.0
"""How far a cell has come, and how it ended: pure decisions about what sysfs shows.

Jailhouse knows no exit status. A guest can say in its communication region that it is done or has failed; a guest that
halts without a word runs for ever. Only the init of our Linux guests tells an exit code, on the console (``marks.py``).
"shut down" means made, loaded, stopped or done, so what we did last decides.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from backends.base import Evidence, Verdict
from backends.ending import FAILED
from backends.jailhouse import sysfs
from runphi_async.board import ranges

if TYPE_CHECKING:
    from backends.jailhouse.marks import Said
    from backends.jailhouse.sysfs import View


class Phase(StrEnum):
    """How far we have come with a cell; kept in its record, as sysfs cannot tell."""

    #: nothing was done yet
    NONE = "none"
    #: it is being made and loaded: it may exist
    MAKING = "making"
    LOADED = "loaded"
    #: told to run; it may do so already
    STARTING = "starting"
    STARTED = "started"
    #: stopped by ``pause``, its memory is void
    PAUSED = "paused"
    #: destroyed by ``pause``: a remote processor is stopped by nothing else
    AWAY = "away"


class Cause(StrEnum):
    """Why a cell's container ended."""

    #: the guest said that it is done
    DONE = "done"
    #: the guest said that it has failed
    FAILED = "failed"
    #: the guest wrote a state that does not exist
    INVALID = "invalid"
    #: the hypervisor parked its CPUs
    PARKED = "parked"
    #: we stopped it, as we were asked to
    KILLED = "killed"
    #: somebody else stopped it
    STOPPED = "stopped"
    #: somebody else destroyed it
    VANISHED = "vanished"
    #: somebody disabled the hypervisor, which destroys all cells
    DISABLED = "disabled"
    #: the hypervisor does not answer
    SILENT = "silent"
    #: our own watch over it has failed
    BROKEN = "broken"


#: exit codes, in the numbers that the other backends use (docs/reference/exit-codes.md)
CODE_FAILED: Final = 1
CODE_CRASHED: Final = 134
CODE_KILLED: Final = 137
_VERDICTS: Final = {
    Cause.DONE: Verdict(0, "the guest ended by itself"),
    Cause.FAILED: Verdict(CODE_FAILED, "the guest says that it has failed"),
    Cause.INVALID: Verdict(CODE_FAILED, "the guest wrote a cell state that does not exist"),
    Cause.STOPPED: Verdict(CODE_KILLED, "somebody else shut the cell down"),
    Cause.VANISHED: Verdict(CODE_KILLED, "somebody else destroyed the cell"),
    Cause.DISABLED: Verdict(CODE_KILLED, "the hypervisor was disabled, which destroys all cells"),
    Cause.SILENT: Verdict(CODE_KILLED, "the hypervisor does not answer: the board hangs and must be reset"),
    Cause.BROKEN: Verdict(FAILED, "the runtime could not look after the cell any more"),
}


def judge(phase: Phase, name: str, view: View | None, *, asked: bool) -> Cause | None:
    """Return why a cell's container has ended, None while it goes on.

    :param view: what sysfs shows; None: it does not answer.
    :param asked: we are stopping the cell right now, so a stop, or its destruction, is ours.
    """
    if view is None:
        return Cause.SILENT
    if phase is Phase.AWAY:
        return None
    cell = view.find(name)
    if cell is None and view.enabled and asked:
        return None  # whoever stops it learns that it is gone, or has destroyed it
    if cell is None:
        return Cause.VANISHED if view.enabled else Cause.DISABLED
    if phase is not Phase.STARTED or cell.runs:
        return None
    match cell.state:
        case sysfs.SHUT_DOWN if asked:
            return None
        case sysfs.SHUT_DOWN:
            return Cause.STOPPED if sysfs.stopped_from_outside(view.console, name) else Cause.DONE
        case sysfs.FAILED:
            return Cause.PARKED if cell.failed else Cause.FAILED
        case _:
            return Cause.INVALID


def said(word: Said) -> Verdict:
    """Say how a container ended whose init told; that counts more than what sysfs shows."""
    return Verdict(word.code, f"cannot run the process: {word.error}" if word.error else f"exited with {word.code}")


def verdict(cause: Cause | None, failed: tuple[int, ...], evidence: Evidence) -> Verdict:
    """Say how a container ended.

    :param failed: CPUs that were parked.
    """
    match cause:
        case Cause.PARKED:
            cpus = f"CPU{'s' if len(failed) > 1 else ''} {ranges.listed(failed)}"
            return Verdict(CODE_CRASHED, f"the guest broke out of its cell: the hypervisor stopped {cpus}")
        case Cause.KILLED | None:
            number = evidence.killed_by or 9
            return Verdict(128 + number, f"killed by signal {number}")
        case _:
            return _VERDICTS[cause]
