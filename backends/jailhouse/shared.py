# SPDX-License-Identifier: Apache-2.0
"""The console of a cell in shared memory (ivshmem): which source reads it, and who has come to the device.

The root system reaches a device through ``/dev/uioN``, which is looked up by its PCI address each time the console is
opened: the driver may be bound later than the container is made. A board file may name it instead.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Final

from backends.jailhouse.plan import Source as Where
from consoles.errors import SourceError
from consoles.sharedmem import ivshmem
from consoles.sources.shmem import ShmemSource
from consoles.sources.virtioconsole import VirtioConsole
from runphi_async.events import ConsoleViolation, IvshmemState

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.jailhouse.plan import ConsoleChoice
    from consoles.sharedmem.ivshmem import DeviceBell, UioDevice
    from consoles.sources.base import Source
    from runphi_async.events import AnyEvent

log = logging.getLogger(__name__)

#: name of the byte ring, which the guest can read in its header
RING: Final = "console"
#: Seconds between two events about a guest that breaks the rules: it can do so thousands of times a second.
QUIET: Final = 60.0
#: file in the record with what a later supervisor must know of a virtio console
MEMORY: Final = "console.virtio"


def source(choice: ConsoleChoice, directory: str, note: Callable[[AnyEvent], None], *, fresh: bool) -> Source:
    """Return the source of a console in shared memory; the device is looked up when it is opened.

    :param directory: of the record.
    :param note: writes an event.
    :param fresh: the guest has not run yet: whatever is in the memory is an earlier guest's.
    """
    breaches = _Breaches(note)
    if choice.source is Where.VIRTIO:

        def reach() -> UioDevice:
            return ivshmem.UioDevice(path_of(choice))

        return VirtioConsole(reach, violation=breaches.tell, memory=os.path.join(directory, MEMORY))

    def place() -> str:
        return ivshmem.place_of(path_of(choice), "rw_section")

    def ring() -> DeviceBell:
        return ivshmem.bell(path_of(choice), choice.peer)

    return ShmemSource(place, RING, choice.size, violation=breaches.tell, open_bell=ring, fresh=fresh)


def path_of(choice: ConsoleChoice) -> str:
    """Return the root system's device (blocks).

    :raises SourceError: there is none.
    """
    return choice.tty or ivshmem.find(choice.pci)


class _Breaches:
    """Counts what a guest does wrong, and tells it now and then."""

    def __init__(self, note: Callable[[AnyEvent], None]) -> None:
        self._note = note
        self._count = 0
        self._told = -QUIET

    def tell(self, what: str) -> None:
        self._count += 1
        if time.monotonic() - self._told >= QUIET:
            self._told = time.monotonic()
            log.warning("a cell broke the rules of its console: %s", what)
            self._note(ConsoleViolation(what=what, count=self._count))


class Presence:
    """The cell's word in the device's state table, looked at whenever sysfs is.

    The hypervisor sets it to 0 when the cell is stopped or loaded; everything else is the guest's.
    """

    def __init__(self, choice: ConsoleChoice, note: Callable[[AnyEvent], None]) -> None:
        self._choice = choice
        self._note = note
        self._table: ivshmem.StateTable | None = None
        self._state = 0
        self._failed = choice.source not in (Where.IVSHMEM, Where.VIRTIO)

    def look(self) -> None:
        """Note a change since the last look. Reads one word; the first look opens the table."""
        if self._failed:
            return
        if self._table is None:
            try:
                self._table = ivshmem.StateTable(path_of(self._choice))
            except SourceError as exc:
                self._failed = True  # whoever opens the console says so too, and goes on trying
                log.info("nobody watches the state table: %s", exc)
                return
        state = self._table.state(self._choice.peer)
        if state != self._state:
            self._state = state
            self._note(IvshmemState(device=self._choice.name, peer=self._choice.peer, state=state))

    def close(self) -> None:
        """Let go of the table."""
        self._failed = True
        if self._table is not None:
            self._table.close()
            self._table = None
