# SPDX-License-Identifier: Apache-2.0
"""Xen as a backend: finds out what the machine has, plans, and makes drivers. Runs in dom0."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from backends.base import Capabilities, Finding, Level
from backends.guest import elf, nics, rootfs
from backends.xen import examine as examining
from backends.xen import hypervisor as hypervisors
from backends.xen import net as xen_net
from backends.xen import notes
from backends.xen import plan as planning
from backends.xen.driver import Memory, Tools, XenDriver
from backends.xen.hypervisor import Hypervisor
from backends.xen.machine import HostFacts, Pool, wish
from backends.xen.states import parse_pools
from backends.xen.xenstore import PLACES, XenStore
from backends.xen.xl import Xl
from consoles.errors import SourceError
from consoles.sharedmem import vchan
from runphi_async import regular
from runphi_async.errors import BackendError, PlanError
from runphi_async.partition import boot, mounts
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from backends.xen.plan import XenPlan
    from runphi_async.config.schema import Config
    from runphi_async.partition.spec import GuestSpec, PartitionPlan

_decoder = msgspec.json.Decoder(Memory)
#: What libxl runs as device model when the configuration of a domain names none. Source: Debian's xen-utils.
DEVICE_MODELS: Final = ("/usr/libexec/xen-qemu-system-i386", "/usr/lib/xen-*/bin/qemu-system-i386")
#: Where xl itself lies, and not the script that Debian puts before it.
XL_PROGRAMS: Final = ("/usr/lib/xen-*/bin/xl", "/usr/sbin/xl", "/usr/local/sbin/xl")
_INFO: Final = re.compile(r"^(\w+)\s*: ?(.*)$", re.MULTILINE)


#: Largest file of which a guest gets a copy: hosts, hostname, resolv.conf.
_COPY_MAX: Final = 1 << 20


class XenBackend:
    """Xen on this machine; see ``backends.base.Backend``."""

    name = "xen"

    def __init__(self, config: Config) -> None:
        self._config = config.xen
        self._hypervisor: Hypervisor | None = None
        self._info: dict[str, str] = {}

    def _xen(self) -> Hypervisor:
        """Return the hypervisor; libxenctrl is opened when it is first needed."""
        if self._hypervisor is None:
            xc = hypervisors.find_xc() if self._config.libxenctrl else None
            self._hypervisor = Hypervisor(Xl(self._config.xl), xc)
        return self._hypervisor

    async def _connect(self) -> XenStore:
        return await XenStore.connect((self._config.xenstore,) if self._config.xenstore else PLACES)

    async def probe(self) -> Capabilities:
        """Return Xen's version and scheduler."""
        info = await self._facts()
        (await self._connect()).close()
        version = f"{info.get('xen_major', '?')}.{info.get('xen_minor', '?')}"
        kinds = ", ".join(["pv", *(["pvh", "hvm"] if self._has_hvm() else [])])
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
        obstacle = xen_net.obstacle()
        if obstacle:
            missing.append(Finding(Level.WARNING, self.name, f"cannot give guests a network: {obstacle}", nics.HINT))
        return [Finding(Level.OK, self.name, able.summary), consoles, memory, pools, *missing]

    async def _facts(self) -> dict[str, str]:
        """Ask ``xl info`` once; it needs dom0."""
        if not self._info:
            text = await self._xen().xl.must("ask Xen what it is", "info")
            self._info = dict(_INFO.findall(text))
        return self._info

    def _has_hvm(self) -> bool:
        return "hvm" in self._info.get("virt_caps", "").split() or "hvm-" in self._info.get("xen_caps", "")

    async def plan(self, spec: GuestSpec) -> XenPlan:
        """Gather what the plan needs to know and decide."""
        info = await self._facts()
        free = await self._xen().free_memory()
        pools = await self._pools(spec)
        facts, pv_note = await anyio.to_thread.run_sync(self._gather, spec, info, free, pools)
        return planning.plan(spec, facts, self._config, pv_note=pv_note)

    async def _pools(self, spec: GuestSpec) -> tuple[Pool, ...]:
        """Return the cpupools, if the container asks for one: that costs two processes."""
        if wish(spec, "pool") is None:
            return ()
        xl = self._xen().xl
        table = await xl.must("list the cpupools", "cpupool-list")
        return parse_pools(table, await xl.must("list the CPUs of the cpupools", "cpupool-list", "-c"))

    def _gather(
        self, spec: GuestSpec, info: dict[str, str], free: int, pools: tuple[Pool, ...]
    ) -> tuple[HostFacts, bool]:
        image = boot.boot_image(spec, self._config.kernel)
        linux = spec.kind is GuestKind.LINUX
        facts = HostFacts(
            arch=os.uname().machine,
            cpus=tuple(range(int(info.get("nr_cpus", "1")))),
            free_memory=free,
            pools=pools,
            scheduler=info.get("xen_scheduler", ""),
            hvm=self._has_hvm(),
            device_model=next(iter(sorted(path for pattern in DEVICE_MODELS for path in glob.glob(pattern))), None),
            image=elf.inspect(image),
            static_shm=wish(spec, "static-shm") is not None and _knows("static_shm"),
            no_vchan=_no_vchan() if any(channel.vchan for channel in spec.channels) else "",
            page_size=os.sysconf("SC_PAGE_SIZE"),
            initrd=_initrd(self._config.initrd) if linux else None,
            rootfs_bytes=_measure(spec.rootfs) if linux else 0,
            copies=_copies(spec) if linux else {},
            links=nics.look(spec.netns),
            no_vifs=xen_net.obstacle(),
        )
        return facts, notes.is_pv_kernel(image)

    async def claim(self, spec: GuestSpec, plan: PartitionPlan, owner: str) -> PartitionPlan:
        """Return the plan: the hypervisor shares out what a domain needs."""
        return plan

    def driver(self, plan: PartitionPlan, directory: str) -> XenDriver:
        """Return the driver of a new guest."""
        assert isinstance(plan, planning.XenPlan)
        return XenDriver(self._memory(plan), directory, self._tools(), plan)

    def remember(self, plan: PartitionPlan) -> msgspec.Raw:
        """Return what ``recall`` needs."""
        assert isinstance(plan, planning.XenPlan)
        return msgspec.Raw(msgspec.json.encode(self._memory(plan)))

    def recall(self, plan: msgspec.Raw, directory: str) -> XenDriver:
        """Return the driver of an older guest."""
        return XenDriver(_decoder.decode(plan), directory, self._tools())

    def _memory(self, plan: XenPlan) -> Memory:
        on_disk = plan.rootfs_by == planning.DISK
        return Memory(kind=plan.kind, disk_dir=self._config.image_dir if on_disk else None, net=bool(plan.macs))

    def _tools(self) -> Tools:
        return Tools(self._xen(), self._connect, self._config.drain_quiet_seconds)


def _knows(key: str) -> bool:
    """Whether xl has a key: it takes those it does not know without a word, so its programs are read (blocks)."""
    paths = [path for pattern in XL_PROGRAMS for path in glob.glob(pattern)]
    return any(key.encode() in Path(path).read_bytes() for path in paths)


def _no_vchan() -> str:
    """Why libxenvchan cannot be had, "" when it can (blocks)."""
    try:
        vchan.load()
    except SourceError as exc:
        return str(exc)
    return ""


def _initrd(path: str) -> bytes | None:
    """Return our init's RAM disk, None when there is none (blocks)."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read()
    return None


def _copies(spec: GuestSpec) -> dict[str, bytes]:
    """Read the files that the guest gets copies of (blocks)."""
    found = {}
    for mount in filter(mounts.is_copied, spec.mounts):
        try:
            found[mount.source] = regular.read(mount.source, _COPY_MAX)
        except OSError as exc:
            raise PlanError(f"cannot mount {mount.source} at {mount.destination}: {exc.strerror}") from exc
    return found


def _measure(path: str) -> int:
    try:
        return rootfs.measure(path)
    except OSError as exc:
        raise PlanError(f"cannot read the root filesystem: {exc.filename}: {exc.strerror}") from exc


def backend(config: Config, run_dir: str) -> XenBackend:
    """Return the backend; called by ``backends.detect``.

    :raises BackendError: Xen runs, but this is not the domain that may control it.
    """
    if os.path.isdir("/proc/xen") and not hypervisors.is_dom0() and not config.xen.xenstore:
        raise BackendError("cannot use Xen: this is not dom0", "run the supervisor in dom0")
    return XenBackend(config)
