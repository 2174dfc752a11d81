# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of drivers on real QEMU guests: the demo inmate on x86_64 and on aarch64."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from backends.qemu.backend import QemuBackend
from runphi_async.config import Config
from runphi_async.partition.spec import GuestKind, GuestSpec
from tests.unit.conformance import Life, TellsPauses

if TYPE_CHECKING:
    from backends.base import Backend

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="session")
def built_inmates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inmates")
    done = subprocess.run([ROOT / "bin" / "build-inmates", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


class QemuConformance(TellsPauses):
    image: ClassVar[str]

    async def pause_by_another(self, life: Life) -> None:
        with open(life.directory / "ev.in", "wb", buffering=0) as monitor:
            monitor.write(b'{"execute": "stop"}\n')

    @pytest.fixture
    async def backend(self, tmp_path: Path) -> Backend:
        return QemuBackend(Config(), str(tmp_path))

    @pytest.fixture
    def spec(self, tmp_path: Path, built_inmates: Path) -> GuestSpec:
        return GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs=str(tmp_path), inmate=str(built_inmates / self.image))


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86")
class TestX86(QemuConformance):
    image = "demo-x86_64.elf"


@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="needs qemu-system-arm")
class TestArm(QemuConformance):
    image = "demo-aarch64.elf"
