# SPDX-License-Identifier: Apache-2.0
"""Xen as a backend: finds out what the machine has, plans, and makes drivers. Runs in dom0."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import msgspec

from backends.base import Capabilities, Finding, Level
from backends.xen import asking, generator, wishes
from backends.xen import examine as examining
from backends.xen import hypervisor as hypervisors
from backends.xen.driver import XenDriver
from backends.xen.gathering import gather
from backends.xen.plan import XenPlan, recall
from backends.xen.settings import Xen
from backends.xen.tools import Tools
from backends.xen.xenstore import PLACES, XenStore
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from runphi_async.config.schema import Config
    from runphi_async.partition.spec import GuestSpec, PartitionPlan


class XenBackend:
    """Xen on this machine; see ``backends.base.Backend``."""

    name = "xen"

    def __init__(self, config: Config) -> None:
        self._config = config.of(Xen)
        self._hypervisor: hypervisors.Hypervisor | None = None
        self._info: dict[str, str] = {}

    def _xen(self) -> hypervisors.Hypervisor:
        """Return the hypervisor; libxenctrl is opened when it is first needed."""
        if self._hypervisor is None:
            self._hypervisor = hypervisors.opened(self._config.xl, libxenctrl=self._config.libxenctrl)
        return self._hypervisor

    async def _connect(self) -> XenStore:
        return await XenStore.connect((self._config.xenstore,) if self._config.xenstore else PLACES)

    async def probe(self) -> Capabilities:
        """Return Xen's version and scheduler."""
        info = await self._facts()
        (await self._connect()).close()
        version = f"{info.get('xen_major', '?')}.{info.get('xen_minor', '?')}"
        kinds = ", ".join(["pv", *(["pvh", "hvm"] if asking.has_hvm(info) else [])])
        return Capabilities(f"Xen {version}, {info.get('xen_scheduler', '?')}: {kinds}", (os.uname().machine,))

    async def examine(self) -> list[Finding]:
        """Look for dom0, its tools and daemons, memory and cpupools."""
        if not examining.runs_xen() and not self._config.xenstore:
            return [Finding(Level.NOTE, self.name, "this machine does not run Xen")]
        xen = self._xen()
        try:
            able = await self.probe()
            memory = examining.judge_memory(await xen.free_memory())
            pools = examining.judge_pools(await xen.xl.must("list the cpupools", "cpupool-list"))
        except BackendError as exc:
            return [Finding(Level.WARNING, self.name, exc.msg, exc.hint or "")]
        daemon = await anyio.to_thread.run_sync(examining.find_daemon, "xenconsoled")
        files = (("kernel", self._config.kernel), ("RAM disk", self._config.initrd))
        missing = await anyio.to_thread.run_sync(examining.missing_files, files)
        consoles = examining.judge_consoles(daemon)
        missing += examining.judge_network()
        return [Finding(Level.OK, self.name, able.summary), consoles, memory, pools, *missing]

    async def _facts(self) -> dict[str, str]:
        """Ask ``xl info`` once; it needs dom0."""
        if not self._info:
            self._info = await asking.info(self._xen())
        return self._info

    async def plan(self, spec: GuestSpec) -> XenPlan:
        """Gather what the plan needs to know and decide."""
        asked = wishes.read(spec.own)
        told = await asking.ask(self._xen(), await self._facts(), asked.pool)
        config = self._config
        facts, pv_note = await anyio.to_thread.run_sync(gather, spec, asked, told, config.kernel, config.initrd)
        return generator.plan(spec, asked, facts, config, pv_note=pv_note)

    async def claim(self, spec: GuestSpec, plan: PartitionPlan, owner: str) -> PartitionPlan:
        """Return the plan: the hypervisor shares out what a domain needs."""
        return plan

    def driver(self, plan: PartitionPlan, directory: str) -> XenDriver:
        """Return the driver of a new guest."""
        assert isinstance(plan, XenPlan)
        return XenDriver(plan, directory, self._tools(), fresh=True)

    def remember(self, plan: PartitionPlan) -> msgspec.Raw:
        """Return what ``recall`` needs."""
        assert isinstance(plan, XenPlan)
        return msgspec.Raw(msgspec.json.encode(plan.kept()))

    def recall(self, plan: msgspec.Raw, directory: str) -> XenDriver:
        """Return the driver of an older guest."""
        return XenDriver(recall(plan), directory, self._tools(), fresh=False)

    def _tools(self) -> Tools:
        return Tools(self._xen(), self._connect, self._config.drain_quiet_seconds, self._config.stop_seconds)


def backend(config: Config, run_dir: str) -> XenBackend:
    """Return the backend; called by ``backends.detect``.

    :raises BackendError: Xen runs, but this is not the domain that may control it.
    """
    if os.path.isdir("/proc/xen") and not hypervisors.is_dom0() and not config.of(Xen).xenstore:
        raise BackendError("cannot use Xen: this is not dom0", "run the supervisor in dom0")
    return XenBackend(config)
