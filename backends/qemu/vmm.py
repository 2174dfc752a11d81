# SPDX-License-Identifier: Apache-2.0
"""The VMM of one guest, be it the first or the second: its process, what is heard of it, and how it is ended.

QEMU is a child of the init stub. Commands go over a QMP socket that a new supervisor may connect to again; events
come over a second monitor on a FIFO, which keeps them while no supervisor runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final, Protocol

from backends.ending import Ending
from backends.guest import handed
from backends.guest.initchannel import InitChannel
from backends.qemu import again
from backends.qemu.boot import HANDED
from backends.qemu.monitor import Monitor
from backends.qemu.remains import Remains
from backends.qemu.wires import Wires
from runphi_async.aio.owned import OwnedTasks
from runphi_async.lifeline import stub
from runphi_async.lifeline.child import STATUS_PATIENCE, StubChild

if TYPE_CHECKING:
    from backends.base import Told
    from backends.qemu.heard import Heard
    from backends.qemu.plan import QemuPlan
    from runphi_async.host.processes import Process

#: The parent was told to start QEMU once more: after this many seconds it must be dead, or the machine is.
AGAIN_PATIENCE: Final = 10.0


class Caretaker(Protocol):
    """Who looks after the VMM, as the VMM knows it."""

    def heard(self, event: str) -> None:
        """QEMU has sent an event."""
        ...

    def look(self) -> None:
        """Something is new."""
        ...

    def restart(self, accel: str) -> None:
        """Another VMM takes the place of the first."""
        ...


class Vmm:
    """One guest's QEMU.

    :ivar second: the second VMM is up to the stub, or runs.
    :ivar watcher: who looks after it; set before anything is heard.
    """

    watcher: Caretaker

    def __init__(self, plan: QemuPlan, directory: str) -> None:
        self.plan = plan
        self.directory = directory
        self.name = os.path.basename(directory)
        self.ending = Ending()
        self.tasks = OwnedTasks(self._broke)
        self._dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.monitor = Monitor(self._dir_fd, self.tasks)
        self.wires = Wires(self._dir_fd, lambda event: self.watcher.heard(event), self._on_word)
        self.remains = Remains(directory)
        self.init = InitChannel(self.ending, self.tell)
        self.second = False
        self._child = StubChild(directory, self.first_or_last, self.over)
        self._changed = asyncio.Event()

    # Section: what is known of it

    @property
    def told(self) -> Told | None:
        """Who hears of the guest; None when its end was told."""
        return self.ending.told

    @property
    def heard(self) -> Heard:
        """What was heard of this VMM."""
        return self.wires.heard

    @property
    def ended(self) -> bool:
        """Whether it has ended and its status is known."""
        return self._child.ended

    @property
    def is_doomed(self) -> bool:
        """Whether the guest is to end."""
        return self._child.killed

    @property
    def is_over(self) -> bool:
        """Whether the end was told."""
        return self.told is None

    @property
    def is_monitored(self) -> bool:
        """Whether there is a QEMU that could answer."""
        return self._child.begun

    @property
    def has_spare(self) -> bool:
        """Whether a second VMM may still take its place."""
        return bool(self.plan.again) and not self.second

    def hold(self) -> Process | None:
        """Return its process, None where it is gone or not there yet."""
        return self._child.hold()

    async def ended_within(self, seconds: float) -> bool:
        """Wait a moment for the first VMM's end; False: it lives, or has been replaced already."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self.ended or self.second or self.told is None):
                    self._changed.clear()
                    await self._changed.wait()
        return self.ended and not self.second

    async def begun(self) -> bool:
        """Wait for the VMM that is up to the stub; False: the guest is over, or to be."""
        while stub.read_pid(self.directory) is None and self.told is not None:
            self._changed.clear()
            await self._changed.wait()
        return self.told is not None and not self.is_doomed and self.hold() is not None

    # Section: news

    def _on_word(self, word: str) -> None:
        if not word:
            self.remains.forget_clock()
            self.forget_handed()  # there is no second try from here on
            self.watcher.look()
        else:
            self.init.act(word, self.heard)

    def rang(self) -> None:
        """The stub says that QEMU's pid or status is written down."""
        self._changed.set()
        self._child.rang()

    def first_or_last(self) -> None:
        """QEMU has ended: the guest with it, unless it may be started once more."""
        self._changed.set()
        self.wires.poll()
        if self.has_spare and not self.is_doomed and self.told is not None:
            self.watcher.look()
        else:
            self.over()

    def _broke(self, task: str, exc: BaseException) -> None:
        """A task of ours has failed: nobody looks after the guest any more, so it ends."""
        self.fail(self.ending.broke(task, exc))
        if self.ended:
            self.over()

    # Section: what is done to it

    def tell(self, line: str) -> None:
        """Tell the guest's init a line; a second VMM is told it again, as long as this one's init may not have heard.

        :raises BackendError: it does not listen.
        """
        self.wires.tell(line, keep=self.has_spare)

    def forget_handed(self) -> None:
        """Nobody will load the image's files again."""
        handed.forget(self.directory, HANDED)

    def destroy(self) -> None:
        """Kill QEMU; one that the stub is just about to start is killed when the bell rings."""
        if not self.second:
            again.forget(self.directory)
        up_to_the_stub = self.second and not self.is_monitored  # which must not start what nobody would end
        self._child.kill(AGAIN_PATIENCE if up_to_the_stub else STATUS_PATIENCE)

    def fail(self, reason: str) -> None:
        """Destroy a guest that will never run (again), and remember why; one that is doomed ends for another reason."""
        if not self.is_doomed:
            self.remains.fail(reason)
        self.destroy()

    def over(self) -> None:
        """The guest has ended."""
        self._child.over()
        self.ending.once()
        self._changed.set()
        self.watcher.look()

    def renew(self) -> None:
        """A second VMM takes the place of the first: let go of that."""
        self._child.renew()
        self.watcher.restart(again.ACCEL)
        self.second = True

    async def new_monitor(self) -> None:
        """Connect to the second VMM from now on."""
        await self.monitor.close()
        self.monitor = Monitor(self._dir_fd, self.tasks)

    async def let_go(self) -> None:
        """Close everything; QEMU goes on."""
        await self.monitor.close()
        await self.tasks.close()
        self.wires.close()
        self._child.close()
        if self._dir_fd >= 0:
            os.close(self._dir_fd)
            self._dir_fd = -1
