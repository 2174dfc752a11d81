# SPDX-License-Identifier: Apache-2.0
"""The fake backend passes the suite of the real ones, and what it has beyond that."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from backends import detect
from backends.detect import Detection
from runphi_async.config.schema import Config
from runphi_async.errors import BackendError, PlanError
from runphi_async.lifeline import stub
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.testing.backend import FakeBackend, FakeDriver
from runphi_async.testing.conformance import TellsPauses
from runphi_async.testing.life import Life

if TYPE_CHECKING:
    from pathlib import Path

    from backends.base import Backend


class TestFake(TellsPauses):
    async def pause_by_another(self, life: Life) -> None:
        life.type(b"freeze\n")

    @pytest.fixture
    async def backend(self) -> Backend:
        return FakeBackend()

    @pytest.fixture
    def spec(self, tmp_path: Path) -> GuestSpec:
        return GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs=str(tmp_path))

    async def test_it_can_be_asked_to_stop(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        asked = life.driver.abilities.stops
        assert asked is not None
        assert await asked.stop()
        assert (await life.end()).code == 0

    async def test_it_remembers_what_it_was_told(self, life: Life) -> None:
        assert isinstance(life.driver, FakeDriver)
        life.driver.resize(24, 80)
        life.driver.end_of_input(12)
        assert (life.driver.sizes, life.driver.inputs) == ([(24, 80)], [12])


async def made(tmp_path: Path, cmdline: str) -> Life:
    life = Life(FakeBackend(), tmp_path)
    await life.create(GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs="/", cmdline=cmdline))
    return life


async def test_a_machine_that_fails_before_its_start(tmp_path: Path) -> None:
    life = await made(tmp_path, "fail-create")
    assert (await life.end()).code == 125
    assert "cannot be created" in (tmp_path / "vmm.log").read_text()
    await life.close()


async def test_a_machine_that_fails_to_start(tmp_path: Path) -> None:
    life = await made(tmp_path, "fail-start")
    with pytest.raises(BackendError, match="it has ended"):
        await life.start()
    assert (await life.end()).code == 125
    await life.close()


@pytest.mark.parametrize("value", [None, "", "0", "yes"])
async def test_nobody_gets_it_without_the_variable(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(detect.TESTING_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(detect.TESTING_VARIABLE, value)
    with pytest.raises(PlanError, match="unknown backend 'fake'") as caught:
        await detect.backend("fake", Detection(Config(), "/run", {}))
    assert caught.value.hint == "this version has: jailhouse, qemu, xen"


async def test_the_variable_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(detect.TESTING_VARIABLE, "1")
    detection = Detection(Config(), "/run", {})
    found = await detect.backend("fake", detection)
    assert isinstance(found, FakeBackend)
    assert await detect.backend("fake", detection) is found
    with pytest.raises(PlanError, match="unknown backend 'bhyve'"):
        await detect.backend("bhyve", detection)


async def test_a_machine_that_is_over_before_its_start_is_seen_has_started(tmp_path: Path) -> None:
    """It may say that it has started, do its work and end, all before the loop comes back to any of it."""
    life = await made(tmp_path, "")
    life.type(b"exit 9\n")
    starting = asyncio.ensure_future(life.start())
    await asyncio.sleep(0)
    while stub.read_status(str(tmp_path)) is None:  # the loop must not run meanwhile: it would read the events
        time.sleep(0.01)
    assert isinstance(life.driver, FakeDriver)
    life.driver.rang()
    await starting
    assert (await life.end()).code == 9
    await life.close()
