# SPDX-License-Identifier: Apache-2.0
"""The life of a guest whose console is a source, for the suite of all drivers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from consoles.errors import SourceError
from runphi_async.lifeline import stub
from runphi_async.testing.life import Life
from tests.unit.consolekit import until

if TYPE_CHECKING:
    from consoles.sources.base import Source
    from runphi_async.partition.spec import GuestSpec


class SourceLife(Life):
    """Does what ``runphi_async.terminals.console`` does with a source: opens it behind the stub, again after every
    adoption."""

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
        self.connect()
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
