# SPDX-License-Identifier: Apache-2.0
"""What a console source must offer: FIFOs, ptys, sockets, serial ports, follow commands, shared memory.

A FIFO may be moved into the journal by the kernel as well (``consoles.streams.hub.Spliced``). All other sources are
read by us and appended to the journal in one step; each says in its own docstring what a crash in between costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable


class Listener(Protocol):
    """Who is told what a source brings; every method is called on the loop and returns at once."""

    def received(self, data: bytes) -> None:
        """Take bytes that the far end wrote."""
        ...

    def gone(self, reason: str) -> None:
        """The far end cannot be reached any more; a source that can reconnect goes on trying by itself."""
        ...

    def back(self) -> None:
        """The far end is there again after ``gone``."""
        ...


class Source(Protocol):
    """One far end of a console, both directions."""

    async def open(self, listener: Listener) -> None:
        """Reach the far end and begin to call ``listener``.

        :raises SourceError: it cannot be opened at all, such as a path that is no such device.
        """
        ...

    def pause(self) -> None:
        """Call ``received`` no more until ``resume``: the far end waits, or loses as its docstring says."""
        ...

    def resume(self) -> None:
        """Go on after ``pause``."""
        ...

    def write(self, data: bytes) -> int:
        """Send as much of ``data`` as the far end takes at once; return how many bytes that was (0: it is full)."""
        ...

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once as soon as ``write`` would take bytes again."""
        ...

    async def close(self) -> None:
        """Let go of the far end, within bounded time whatever state it is in."""
        ...


@runtime_checkable
class OneWay(Protocol):
    """A source that takes no input: ``write`` throws away what it is given."""

    #: why, in words for people
    one_way: str


@runtime_checkable
class Breaks(Protocol):
    """A source that is a line on which a break can be sent."""

    async def send_break(self, seconds: float) -> None:
        """Hold the line at zero for so long.

        :raises SourceError: it cannot.
        """
        ...
