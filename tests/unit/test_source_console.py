# SPDX-License-Identifier: Apache-2.0
"""A driver whose console is a source passes the same suite as those with a FIFO pair."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from consoles.sources.base import SourceError
from runphi_async import stub
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.testing.backend import FakeBackend
from tests.unit.conformance import DriverConformance, Life
from tests.unit.consolekit import until
from tests.unit.sourcekit import send_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backends.base import Backend
    from consoles.sources.base import Source


class SourceLife(Life):
    """Does what ``runphi_async.console`` does with a source: opens it behind the stub, again after every adoption."""

    source: Source
    fresh = b""

    async def create(self, spec: GuestSpec) -> None:
        await super().create(spec)
        await self._open_source()

    async def start(self) -> None:
        await super().start()
        # The stub writes it down beside the guest, which may be at its prompt by then.
        await until(lambda: stub.read_pid(str(self.directory)) is not None)

    async def adopt(self) -> bool | None:
        self._connect()
        self.driver = self.backend.recall(self.memory, str(self.directory))
        await self._open_source()
        return await self.driver.adopt(self.told())

    async def _open_source(self) -> None:
        source = self.driver.console()
        assert source is not None
        self.source = source
        self.news = asyncio.Event()
        async with asyncio.timeout(20):
            while True:
                try:
                    await source.open(self)
                except SourceError:
                    await asyncio.sleep(0.01)
                else:
                    return

    def received(self, data: bytes) -> None:
        self.fresh += data
        self.news.set()

    def gone(self, reason: str) -> None:
        pytest.fail(f"the console is gone: {reason}")

    def back(self) -> None:
        pytest.fail("the console is back and was never gone")

    async def _read(self) -> bytes:
        while not self.fresh:
            self.news.clear()
            await self.news.wait()
        fresh, self.fresh = self.fresh, b""
        return fresh

    def type(self, text: bytes) -> None:
        assert self.source.write(text) == len(text)

    async def supervisor_dies(self) -> None:
        # The driver first: in between, nobody may be told of an end by the supervisor that dies.
        await super().supervisor_dies()
        await self.source.close()


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
