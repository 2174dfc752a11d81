# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of drivers on real QEMU guests: the demo inmate on x86_64 and on aarch64."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, ClassVar

import pytest

from backends.configured import load
from backends.qemu import runstate
from backends.qemu.backend import QemuBackend
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.testing.conformance import TellsPauses, WatchesByTask
from runphi_async.testing.life import Life, not_thought_of

if TYPE_CHECKING:
    from pathlib import Path

    from backends.base import Backend

pytestmark = pytest.mark.qemu


class QemuConformance(TellsPauses, WatchesByTask):
    image: ClassVar[str]

    async def pause_by_another(self, life: Life) -> None:
        with open(life.directory / "ev.in", "wb", buffering=0) as monitor:
            monitor.write(b'{"execute": "stop"}\n')

    async def break_watch(self, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runstate, "standing", not_thought_of)
        await self.pause_by_another(life)

    @pytest.fixture
    async def backend(self, tmp_path: Path) -> Backend:
        return QemuBackend(load(os.devnull), str(tmp_path))  # the accelerator is the environment's, if any

    @pytest.fixture
    def spec(self, tmp_path: Path, inmates_built: Path) -> GuestSpec:
        return GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs=str(tmp_path), inmate=str(inmates_built / self.image))


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86")
class TestX86(QemuConformance):
    image = "demo-x86_64.elf"


@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="needs qemu-system-arm")
class TestArm(QemuConformance):
    image = "demo-aarch64.elf"
