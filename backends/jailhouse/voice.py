# SPDX-License-Identifier: Apache-2.0
"""What a cell's driver has to say, to people and to the container's events: kept until somebody attends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runphi_async.board import ranges
from runphi_async.events import CpusBack, CpusFailed, CpusLeft, HypervisorLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backends.base import Told
    from backends.ending import Ending
    from runphi_async.events import AnyEvent

#: Lines of the hypervisor about one cell that become events, at most.
HEARD_MAX: Final = 1000


class Voice:
    """The voice of one driver.

    :param ending: who attends; lines for people end with the guest, events do not.
    """

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._attended = False
        self._unsaid: list[str] = []
        self._unnoted: list[AnyEvent] = []
        self._noted: Callable[[AnyEvent], None] | None = None
        self._heard_lines = 0

    def attend(self, told: Told) -> None:
        """Say there what nobody has heard, and all that comes."""
        self._noted, self._attended = told.note, True
        for text in self._unsaid:
            told.say(text)
        for event in self._unnoted:
            told.note(event)
        self._unsaid, self._unnoted = [], []

    def say(self, text: str) -> None:
        """Say a line to people."""
        if self._ending.told is not None:
            self._ending.told.say(text)
        elif not self._attended:
            self._unsaid.append(text)

    def note(self, event: AnyEvent) -> None:
        """Write an event."""
        if self._noted is not None:
            self._noted(event)
        else:
            self._unnoted.append(event)

    def cpus_left(self, cpus: Iterable[int], root: Iterable[int]) -> None:
        """CPUs are the cell's now; the root system has the others."""
        self.note(CpusLeft(cpus=ranges.listed(cpus), root=ranges.listed(root)))

    def cpus_back(self, cpus: Iterable[int], offline: Iterable[int]) -> None:
        """They are the root system's again."""
        self.note(CpusBack(cpus=ranges.listed(cpus), offline=ranges.listed(offline)))

    def cpus_failed(self, cpus: Iterable[int], state: str) -> None:
        """The hypervisor parked CPUs of the cell."""
        self.note(CpusFailed(cpus=ranges.listed(cpus), state=state))

    def heard(self, text: str) -> None:
        """The hypervisor said something about the cell; a guest can print what looks the same, so it is bounded."""
        self._heard_lines += 1
        if self._heard_lines <= HEARD_MAX:
            self.note(HypervisorLine(text=text))
