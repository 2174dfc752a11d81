# SPDX-License-Identifier: Apache-2.0
"""QEMU as a backend: plans with an accelerator that was proven, and makes drivers."""

from __future__ import annotations

import logging
import os
import shutil
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from backends.base import Capabilities, Finding, Level
from backends.guest import nics
from backends.qemu import accel, gathering, generator, virtiofsd
from backends.qemu.comm import QMP_FD
from backends.qemu.driver import QemuDriver
from backends.qemu.plan import QemuPlan, recall
from backends.qemu.settings import Qemu
from runphi_async.errors import BackendError
from runphi_async.host import nic
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from runphi_async.config.schema import Config
    from runphi_async.partition.spec import GuestSpec, PartitionPlan

log = logging.getLogger(__name__)
#: Where daemons look for programs when the starter's PATH says nothing useful.
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class QemuBackend:
    """QEMU on this machine; see ``backends.base.Backend``."""

    name = "qemu"

    def __init__(self, config: Config, run_dir: str) -> None:
        self._config = config.of(Qemu)

    def _binaries(self) -> dict[str, str]:
        names = {"x86_64": self._config.x86_64, "aarch64": self._config.aarch64}
        found = {arch: shutil.which(name, path=_PATH) for arch, name in names.items()}
        return {arch: path for arch, path in found.items() if path is not None}

    def _prober(self) -> str:
        """Return the QEMU for guests of the host's own architecture, "" when there is none: only those can have KVM."""
        return self._binaries().get(os.uname().machine, "")

    async def probe(self) -> Capabilities:
        """Return the guest architectures and the proven accelerator."""
        binaries = self._binaries()
        if not binaries:
            raise BackendError(
                "cannot find QEMU", "apt-get install qemu-system-x86 qemu-system-arm, or set qemu.x86_64"
            )
        found = await self._accelerator(binaries, linux=False)
        return Capabilities(f"QEMU with {found.name}: {found.reason}", tuple(sorted(binaries)))

    async def examine(self) -> list[Finding]:
        """Look for QEMU, its accelerator, and what Linux guests need."""
        try:
            able = await self.probe()
        except BackendError as exc:
            return [Finding(Level.WARNING, self.name, exc.msg, exc.hint or "")]
        found = [Finding(Level.OK, self.name, f"{able.summary}; runs {', '.join(able.arches)} guests")]
        if await anyio.to_thread.run_sync(self._has_kernel):
            found.append(await self._examine_linux())
        found += await anyio.to_thread.run_sync(self._missing)
        return found

    async def _examine_linux(self) -> Finding:
        try:
            linux = await self._accelerator(self._binaries(), linux=True)
        except BackendError as exc:
            return Finding(Level.WARNING, self.name, f"Linux guests: {exc.msg}", exc.hint or "")
        return Finding(Level.OK, self.name, f"Linux guests with {linux.name}: {linux.reason}")

    async def look_ahead(self) -> None:
        """Prove the accelerator before the first guest asks."""
        try:
            if await anyio.to_thread.run_sync(self._binaries):
                await self.accelerators()
        except BackendError as exc:
            log.warning("%s", exc)  # who makes a guest is told

    async def accelerators(self) -> dict[str, accel.Accel]:
        """Return what bare-metal and Linux guests run on.

        :raises BackendError: KVM is demanded and was not proven.
        """
        binaries = self._binaries()
        found = {"bare-metal": await self._accelerator(binaries, linux=False)}
        if await anyio.to_thread.run_sync(self._has_kernel):
            found["Linux"] = await self._accelerator(binaries, linux=True)
        return found

    def _has_kernel(self) -> bool:
        return os.access(self._config.kernel, os.R_OK) and os.access(self._config.initrd, os.R_OK)

    def _missing(self) -> list[Finding]:
        binaries = self._binaries()
        config = self._config
        absent = [
            Finding(Level.NOTE, self.name, f"no QEMU for {arch} guests", f"apt-get install {package}")
            for arch, package in (("x86_64", "qemu-system-x86"), ("aarch64", "qemu-system-arm"))
            if arch not in binaries
        ]
        for path, what, mend in (
            (config.kernel, "kernel", "run bin/prepare-guest, or set qemu.kernel"),
            (config.initrd, "initial ramdisk", "run bin/prepare-guest, or set qemu.initrd"),
        ):
            if not os.access(path, os.R_OK):
                text = f"cannot run Linux guests (LINUX=1): no {what} at {path}"
                absent.append(Finding(Level.WARNING, self.name, text, mend))
        if virtiofsd.find(config.virtiofsd) is None:
            text = f"cannot run Linux guests (LINUX=1): no file server {config.virtiofsd}"
            absent.append(Finding(Level.WARNING, self.name, text, virtiofsd.hint()))
        obstacle = nic.obstacle()
        if obstacle:
            absent.append(Finding(Level.WARNING, self.name, f"cannot give guests a network: {obstacle}", nics.HINT))
        return absent

    async def _accelerator(self, binaries: dict[str, str], *, linux: bool) -> accel.Accel:
        """Return what guests of the host's own architecture run on; the proof is made when there is none yet.

        A bare-metal guest waits for the probe, less than a second where the machine is not busy; a Linux guest also
        for the start of its kernel, and as long as that takes in software at most.
        """
        question = accel.Question(binaries.get(os.uname().machine, ""))
        if linux and await anyio.to_thread.run_sync(self._has_kernel):
            question = msgspec.structs.replace(question, kernel=self._config.kernel, initrd=self._config.initrd)
        return await accel.find(self._config.accel, question)

    async def plan(self, spec: GuestSpec) -> QemuPlan:
        """Gather what the plan needs to know and decide."""
        binaries = self._binaries()
        found = await self._accelerator(binaries, linux=spec.kind is not GuestKind.INMATE)
        facts = await anyio.to_thread.run_sync(
            lambda: gathering.gather(
                spec,
                accel=found.name,
                binaries=binaries,
                kernel=self._config.kernel,
                initrd_path=self._config.initrd,
                qmp_fd=QMP_FD,
                accel_reason=found.reason,
            )
        )
        made = generator.plan(spec, facts, self._config)
        # where KVM was demanded, software in its place would be a broken promise
        return generator.with_second_try(made, spec, facts, self._config) if self._config.accel == "auto" else made

    async def _blame(self, reason: str) -> None:
        """KVM failed a guest that ran in software: no guest gets it again on this boot."""
        await anyio.to_thread.run_sync(accel.distrust, self._prober(), reason)
        log.warning("KVM is not used again on this boot: %s", reason)

    async def claim(self, spec: GuestSpec, plan: PartitionPlan, owner: str) -> PartitionPlan:
        """Return the plan: the host kernel shares out what QEMU needs."""
        return plan

    def driver(self, plan: PartitionPlan, directory: str) -> QemuDriver:
        """Return the driver of a new guest."""
        assert isinstance(plan, QemuPlan)
        return QemuDriver(plan, directory, self._config, self._blame)

    def remember(self, plan: PartitionPlan) -> msgspec.Raw:
        """Return what ``recall`` needs."""
        assert isinstance(plan, QemuPlan)
        return msgspec.Raw(msgspec.json.encode(plan.kept()))

    def recall(self, plan: msgspec.Raw, directory: str) -> QemuDriver:
        """Return the driver of an older guest."""
        return QemuDriver(recall(plan), directory, self._config, self._blame)


def backend(config: Config, run_dir: str) -> QemuBackend:
    """Return the backend; called by ``backends.detect``."""
    return QemuBackend(config, run_dir)
