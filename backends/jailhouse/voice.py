# SPDX-License-Identifier: Apache-2.0
"""What a cell's driver has to say, to people and to the container's events: kept until somebody attends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.base import Told
    from backends.ending import Ending

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
        self._unnoted: list[tuple[str, dict[str, object]]] = []
        self._noted: Callable[..., None] | None = None
        self._heard_lines = 0

    def attend(self, told: Told) -> None:
        """Say there what nobody has heard, and all that comes."""
        self._noted, self._attended = told.note, True
        for text in self._unsaid:
            told.say(text)
        for kind, data in self._unnoted:
            told.note(kind, **data)
        self._unsaid, self._unnoted = [], []

    def say(self, text: str) -> None:
        """Say a line to people."""
        if self._ending.told is not None:
            self._ending.told.say(text)
        elif not self._attended:
            self._unsaid.append(text)

    def note(self, kind: str, **data: object) -> None:
        """Write an event."""
        if self._noted is not None:
            self._noted(kind, **data)
        else:
            self._unnoted.append((kind, data))

    def heard(self, text: str) -> None:
        """The hypervisor said something about the cell; a guest can print what looks the same, so it is bounded."""
        self._heard_lines += 1
        if self._heard_lines <= HEARD_MAX:
            self.note("hypervisor", text=text)
