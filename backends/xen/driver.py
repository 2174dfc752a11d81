# SPDX-License-Identifier: Apache-2.0
"""The life of one Xen domain: made paused, watched through XenStore, and how it ended.

A domain is nobody's child: it outlives every supervisor, and what a supervisor must know of it beside the plan is
written down in the record (``known``) before it is needed. ``watch`` follows it to its end, and destroys it then.
"""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING

from anyio import to_thread

from backends.base import Abilities, Evidence, Inheritance, Told, Verdict
from backends.ending import Ending
from backends.guest.initchannel import InitChannel
from backends.xen import known as knowledge
from backends.xen.exitcode import End, verdict
from backends.xen.files import Files
from backends.xen.plan import CONFIG
from backends.xen.poweroff import PowerOff
from backends.xen.tty import KeptInput
from backends.xen.vifs import Vifs
from backends.xen.watch import DomainWatch
from runphi_async.errors import BackendError
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from backends.xen.plan import XenPlan
    from backends.xen.tools import Tools

log = logging.getLogger(__name__)


class XenDriver:
    """Drives one domain; see ``backends.base.Driver``.

    :param fresh: the domain is new; else its record says what an earlier supervisor knew.
    """

    def __init__(self, plan: XenPlan, directory: str, tools: Tools, *, fresh: bool) -> None:
        self.command: tuple[str, ...] = ()
        self.again: tuple[str, ...] = ()
        self.overhead_bytes = 0
        self._plan = plan
        self._directory = directory
        self._tools = tools
        self._known = knowledge.KnownDomain() if fresh else knowledge.load(directory)
        self._files = Files(directory, plan.disk_dir)
        self._vifs = Vifs(directory) if plan.macs else None
        self._ending = Ending()
        self._watch = DomainWatch(tools, directory, self._known, self._ending)
        self._init = InitChannel(self._ending, self._watch.lines.put_nowait)
        self._has_init = plan.kind is GuestKind.LINUX
        self._poweroff = PowerOff(tools, self._known, self._watch)
        self._kept = KeptInput(directory)

    @property
    def abilities(self) -> Abilities:
        """A Linux guest has our init, and any may listen in XenStore; a PV console has no breaks."""
        able = Abilities(stops=self._poweroff, patience=self._tools.patience)
        return able._replace(signals=self._init, resizes=self._init, takes_eof=self._init) if self._has_init else able

    # Section: making it

    async def create(self) -> None:
        """Make the domain, paused; when that fails or is cancelled, `bury` leaves nothing of it."""
        plan, known, hypervisor = self._plan, self._known, self._tools.hypervisor
        store = await self._watch.connect()
        known.uuid = str(uuid.uuid4())
        known.save(self._directory)
        if self._vifs is not None:
            await to_thread.run_sync(self._vifs.join, plan.netns or "")
        await self._files.write(plan, known.uuid)
        await hypervisor.xl.create(CONFIG, self._directory)
        domain = await hypervisor.find(known.uuid)
        if domain is None or domain.dying or not domain.paused:
            raise BackendError("cannot create the domain: xl says it is made, and Xen knows of none that waits")
        known.domid = domain.domid
        known.save(self._directory)
        self._files.link_channels(plan.channels, known.domid)
        self._files.forget(known.uuid)
        if self._vifs is not None:
            await self._vifs.plug(store, known.domid, plan.macs)

    def inheritance(self) -> Inheritance:
        """Return the console's input FIFO, which keeps what was typed while no supervisor runs."""
        return self._kept.inheritance()

    @property
    def network(self) -> str:
        """Path of the namespace that the domain's cards are in."""
        return self._vifs.network if self._vifs is not None else ""

    def console(self) -> None:
        """Return nothing: the bridge makes the console the FIFO pair, which loses nothing with a supervisor."""

    def helpers(self) -> list[int]:
        """Return nothing: a domain's memory and time are Xen's."""
        return []

    # Section: watching it

    async def watch(self, told: Told) -> None:
        """Open the console before the guest runs, and begin to watch."""
        self._kept.close()
        self._ending.attend(told)
        await self._attend()

    async def _attend(self) -> None:
        await self._watch.attend(self._init if self._has_init else None)

    async def adopt(self, told: Told) -> bool | None:
        """Find the domain again and go on where the last supervisor was."""
        self._ending.attend(told)  # first: whatever fails from here on, `end` has somebody to tell
        await self._watch.connect()
        known = self._known
        domain = await self._tools.hypervisor.find(known.uuid)
        if domain is None or domain.dying:
            self._watch.live()
            return None
        known.domid = domain.domid
        if self._vifs is not None:
            # where the namespace was made for the container, the init process is in it
            await to_thread.run_sync(self._vifs.take_up, told.init or None)
        if domain.ran:
            known.started = True
        self._init.replaying = True  # what the init said so far was acted on by our predecessor
        await self._attend()
        await self._watch.hear()
        self._init.replaying = False
        if known.end is not None:  # our predecessor wrote its end down: what is left is its console, and to destroy it
            self._watch.destroy()
        return None if domain.shutdown or known.end is not None else known.started

    # Section: driving it

    async def start(self) -> None:
        """Connect the guest to the container's interfaces and let it run."""
        if self._vifs is not None:
            lines = await to_thread.run_sync(self._vifs.connect)
            if self._has_init:
                for line in (*lines, "net-done"):
                    self._watch.lines.put_nowait(line)
        self._known.started = True  # before it can end
        await self._tools.hypervisor.unpause(self._known.domid, self._known.uuid)
        self._known.save(self._directory)

    async def suspend(self) -> None:
        """Pause the domain."""
        await self._tools.hypervisor.pause(self._known.domid, self._known.uuid)

    async def resume(self) -> None:
        """Let the domain go on."""
        await self._tools.hypervisor.unpause(self._known.domid, self._known.uuid)

    def end(self) -> None:
        """Destroy the domain; its own task does it and says when it is gone."""
        self._watch.destroy()

    # Section: its end

    def settle(self, evidence: Evidence) -> Verdict:
        """Weigh the domain's end, its own words and what was done to it."""
        return verdict(self._known.end or End(failure=self._ending.failure or None), evidence)

    async def release(self) -> None:
        """Let go of xenstored and the console."""
        self._ending.forget()
        await self._watch.close()
        self._kept.close()
        if self._vifs is not None:
            await to_thread.run_sync(_remove, self._vifs)
        self._watch.disconnect()

    async def bury(self) -> None:
        """Destroy the domain, and forget the files of its making."""
        await self._watch.tasks.close()
        await self._clean_up()
        await self.release()

    async def _clean_up(self) -> None:
        if not self._known.uuid:  # its making had not begun
            return
        try:
            await self._tools.hypervisor.destroy(self._known.uuid)
        except BackendError as exc:
            log.error("%s: %s", self._directory, exc)
        self._files.forget(self._known.uuid)


def _remove(vifs: Vifs) -> None:
    vifs.take_up(None)
    vifs.remove()
