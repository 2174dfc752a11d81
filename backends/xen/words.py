# SPDX-License-Identifier: Apache-2.0
"""The control lines of a Linux guest's init, through XenStore: it needs no device model, as a second console would.

Each line is a node with the next number as its name, ours below ``data/runphi/to-guest`` and the init's below
``data/runphi/to-host`` of the domain. The init removes ours as it takes them; its own stay until the domain is
destroyed, so a next supervisor reads them all again. ``data`` belongs to the guest: what is there is believed no more
than what a process says of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.xen.xenstore import XenStoreError
from runphi_async import digits

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.xen.xenstore import XenStore

TO_GUEST: Final = "data/runphi/to-guest"
TO_HOST: Final = "data/runphi/to-host"
EXIT_CODE: Final = "data/exit-code"
#: Nodes that are looked at: our init writes a handful, a guest may write thousands.
LINES_MAX: Final = 64
_DIGITS: Final = 6
#: far more lines than there will ever be
_NUMBER_MAX: Final = 10**_DIGITS - 1


class Words:
    """Both directions of one guest's control lines.

    :param home: the domain's path, ``/local/domain/N``.
    """

    def __init__(self, store: XenStore, home: str, on_line: Callable[[bytes], None]) -> None:
        self._store = store
        self._home = home
        self._on_line = on_line
        self._heard = -1
        self._told = 0

    async def prepare(self) -> None:
        """Find out with which number to go on: an earlier supervisor may have said something."""
        names = await self._names(TO_GUEST)
        self._told = max((number for number, _ in names), default=-1) + 1
        counter = await self._store.find(f"{self._home}/{TO_GUEST}-next")
        self._told = max(self._told, digits.whole(counter or b"", _NUMBER_MAX) or 0)

    async def tell(self, line: str) -> None:
        """Say a line to the init."""
        number, self._told = self._told, self._told + 1
        await self._store.write(f"{self._home}/{TO_GUEST}-next", b"%d" % self._told)
        await self._store.write(f"{self._home}/{TO_GUEST}/{number:0{_DIGITS}d}", line.encode())

    async def hear(self) -> None:
        """Hand over every line of the init that is new, in order."""
        for number, name in await self._names(TO_HOST):
            if number <= self._heard:
                continue
            line = await self._store.find(f"{self._home}/{TO_HOST}/{name}")
            self._heard = number
            if line is not None:
                self._on_line(line.rstrip(b"\n\0"))

    async def _names(self, below: str) -> list[tuple[int, str]]:
        """Return the nodes that are numbers, in their order; the guest may have made others."""
        try:
            names = await self._store.directory(f"{self._home}/{below}")
        except XenStoreError as exc:
            if exc.code != "ENOENT":
                raise
            return []
        numbered = ((digits.whole(name, _NUMBER_MAX), name) for name in names)
        return sorted((number, name) for number, name in numbered if number is not None)[:LINES_MAX]


async def exit_code(store: XenStore, home: str) -> int | None:
    """Return what a guest wrote as its exit code, None when it wrote none that makes sense."""
    value = await store.find(f"{home}/{EXIT_CODE}")
    number = digits.whole((value or b"").strip(b" \n\0"))
    return number & 0xFF if number is not None else None
