# SPDX-License-Identifier: Apache-2.0
"""The suite of all drivers on real Xen."""

from __future__ import annotations

import asyncio
import fcntl
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest

from backends.xen.backend import XenBackend
from runphi_async.config.schema import Config
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.testing.conformance import DriverConformance
from runphi_async.testing.life import PATIENCE, Life
from tests.xen.dom0.kit import INMATE

if TYPE_CHECKING:
    from pathlib import Path

    from backends.base import Backend
    from backends.xen.states import Domain

pytestmark = pytest.mark.timeout(900)


class TestRealXen(DriverConformance):
    killed = "destroyed from outside"

    @pytest.fixture
    async def backend(self) -> Backend:
        self.xen = XenBackend(Config())  # the one whose domains are looked at
        return self.xen

    @pytest.fixture
    def spec(self, tmp_path: Path) -> GuestSpec:
        return GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs=str(tmp_path), inmate=str(INMATE))

    async def guests(self) -> list[Domain]:
        return [domain for domain in await self.xen._xen().domains() if domain.domid]

    async def machine_made(self, life: Life) -> None:
        assert len(await self.guests()) == 1

    async def kill_machine(self, life: Life) -> None:
        for domain in await self.guests():
            await asyncio.to_thread(subprocess.run, ["xl", "destroy", str(domain.domid)], check=True)

    async def machine_ended(self, life: Life) -> None:
        async with asyncio.timeout(PATIENCE):
            while not all(domain.shutdown for domain in await self.guests()):
                await asyncio.sleep(0.05)

    async def taken(self, life: Life) -> None:
        async with asyncio.timeout(PATIENCE):
            while fcntl.ioctl(life.input, termios.FIONREAD, bytes(4)) != bytes(4):
                await asyncio.sleep(0.01)

    async def test_the_machine_is_the_stubs_child(self, life: Life) -> None:
        """It is nobody's: what it must do is end with its container."""
        life.kill()
        await life.end()
        assert await self.guests() == []
