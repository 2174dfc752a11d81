# SPDX-License-Identifier: Apache-2.0
"""What there is of a guest before, or beside, its init process: driver, streams and bell.

There is one way to put it together. Creation hands over what the init process is going to hold, and a supervisor that
takes a guest over what it holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import anyio

from runphi_async.container.guestterminal import GuestTerminal
from runphi_async.container.initprocess import InitBell
from runphi_async.container.streams import Streams
from runphi_async.terminals.watching import Watching

if TYPE_CHECKING:
    from backends.base import Driver
    from runphi_async.container.recorded import Recorded
    from runphi_async.terminals.console import Held


class Assembly(NamedTuple):
    """The parts.

    :ivar watching: what the runtime itself reads on the console.
    :ivar ended: set when the guest is gone.
    """

    driver: Driver
    terminal: GuestTerminal
    streams: Streams
    watching: Watching
    bell: InitBell
    ended: anyio.Event

    async def close(self) -> None:
        """Let go of the streams and the bell; the driver is whoever's who made it."""
        self.bell.close()
        await self.streams.close()


async def assemble(container: Recorded, driver: Driver, held: Held) -> Assembly:
    """Open what belongs to a guest.

    :param held: what the init process keeps of the console, or will; owned.
    """
    ended = anyio.Event()
    terminal = GuestTerminal(container, driver, ended)
    streams = Streams(terminal, container.shared.config, held, driver.console())
    try:
        streams.open()
        watching = Watching(container, streams.console.hub, container.shared.config)
        bell = InitBell(container.directory)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await streams.close()
        raise
    return Assembly(driver, terminal, streams, watching, bell, ended)
