# SPDX-License-Identifier: Apache-2.0
"""A call without a client, for tests of verbs in this process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runphi_async import wire
from runphi_async.commands import cli

if TYPE_CHECKING:
    from runphi_async.container.registry import Supervisor


class FakeCall:
    """A call that remembers what it was told."""

    def __init__(self, *argv: str, cwd: str = "/cwd") -> None:
        self.argv = list(argv)
        self.restricted = False
        self.cwd = cwd
        self.frames: list[tuple[bytes, bytes]] = []

    def path(self, name: str) -> str:
        return os.path.normpath(os.path.join(self.cwd, name))

    async def send(self, kind: bytes, payload: bytes = b"", fds: object = ()) -> None:
        self.frames.append((kind, payload))

    async def out(self, text: str | bytes) -> None:
        await self.send(wire.OUT, text.encode() if isinstance(text, str) else text)

    async def error(self, text: str) -> None:
        await self.send(wire.ERR, text.encode("utf-8", "surrogateescape"))

    def said(self, kind: bytes) -> str:
        return b"".join(payload for k, payload in self.frames if k == kind).decode()

    @property
    def status(self) -> int:
        assert self.frames[-1][0] == wire.EXIT
        return int(self.frames[-1][1])


async def answer(supervisor: Supervisor, *argv: str, cwd: str = "/cwd") -> FakeCall:
    call = FakeCall(*argv, cwd=cwd)
    await cli.run(call, supervisor)  # type: ignore[arg-type]
    return call
