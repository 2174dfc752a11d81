# SPDX-License-Identifier: Apache-2.0
"""A driver whose console is a source passes the same suite as those with a FIFO pair."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.testing.backend import FakeBackend
from runphi_async.testing.conformance import DriverConformance
from tests.unit.sourcekit import send_all
from tests.unit.sourcelife import SourceLife

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backends.base import Backend
    from runphi_async.testing.life import Life


class TestFakeWithASource(DriverConformance):
    @pytest.fixture
    async def backend(self) -> Backend:
        return FakeBackend()

    @pytest.fixture
    def spec(self, tmp_path: Path) -> GuestSpec:
        return GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs=str(tmp_path), cmdline="source-console")

    @pytest.fixture
    async def life(self, backend: Backend, spec: GuestSpec, tmp_path: Path) -> AsyncIterator[Life]:
        directory = tmp_path / "record"
        directory.mkdir()
        made = SourceLife(backend, directory)
        await made.create(spec)
        yield made
        await made.close()

    async def test_what_is_typed_beyond_its_room_waits(self, life: Life) -> None:
        assert isinstance(life, SourceLife)
        await life.start()
        await life.prompt()
        await life.driver.suspend()
        line = b"echo " + b"x" * 4000 + b"\n"
        sending = asyncio.ensure_future(send_all(life.source, line * 100))
        await asyncio.sleep(0.05)
        assert not sending.done()
        await life.driver.resume()
        await sending
        for _ in range(100):
            await life.expect(b"\n" + b"x" * 4000 + b"\r\n")


async def test_a_driver_without_a_source_has_the_fifo_pair(tmp_path: Path) -> None:
    spec = GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs=str(tmp_path))
    driver = FakeBackend().driver(await FakeBackend().plan(spec), str(tmp_path))
    assert driver.console() is None
    await driver.release()
