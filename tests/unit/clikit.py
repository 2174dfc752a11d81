# SPDX-License-Identifier: Apache-2.0
"""A real call with its client at the other end of a socket pair, for tests of verbs in this process."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from runphi_async import wire
from runphi_async.commands import cli
from runphi_async.container.registry import Supervisor
from runphi_async.host.clock import SYSTEM
from runphi_async.wire.call import Call
from tests.unit.consolekit import until
from tests.unit.wirekit import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from pathlib import Path

    from runphi_async.config.schema import Config
    from runphi_async.host.clock import Timekeeper


class Answer:
    """What a verb said."""

    def __init__(self) -> None:
        self.frames: list[tuple[bytes, bytes]] = []

    def said(self, kind: bytes) -> str:
        """All that was said in frames of this kind."""
        return self.payload(kind).decode()

    def payload(self, kind: bytes) -> bytes:
        """The same, as it came."""
        return b"".join(payload for k, payload in self.frames if k == kind)

    @property
    def status(self) -> int:
        """The exit status, which is the last word."""
        assert self.frames[-1][0] == wire.EXIT
        return int(self.frames[-1][1])


class Client(Peer):
    """Asks, and takes the answer as it comes, unless it is told to dawdle.

    :param fds: its stdin, stdout and stderr; they stay the caller's.
    """

    def __init__(self, argv: Sequence[str], cwd: str, fds: Sequence[int]) -> None:
        super().__init__()
        self.call = Call(self.ours)
        self.answer = Answer()
        self.loop = asyncio.get_running_loop()
        #: the verb at work, for tests that look at it meanwhile
        self.verb: asyncio.Future[None] = self.loop.create_future()
        request = wire.request(os.fsencode(cwd), [], [os.fsencode(word) for word in argv])
        socket.send_fds(self.theirs, [request], fds)
        self.go_on()

    def go_on(self) -> None:
        """Read from now on."""
        self.loop.add_reader(self.theirs, self.read)

    def dawdle(self) -> None:
        """Read nothing any more."""
        self.loop.remove_reader(self.theirs)

    def read(self) -> None:
        """Take what is there."""
        self.answer.frames += self.frames()

    def say(self, kind: bytes, payload: bytes = b"") -> None:
        """Send a frame."""
        self.theirs.sendall(wire.frame(kind, payload))

    async def heard(self, kind: bytes, text: bytes = b"") -> None:
        """Wait until a frame of this kind, or this text in frames of it, has come."""
        await until(lambda: any(k == kind for k, _ in self.answer.frames) and text in self.answer.payload(kind))

    def leave(self) -> None:
        """Hang up."""
        if self.theirs.fileno() >= 0:
            self.dawdle()
            self.theirs.close()

    def close(self) -> None:
        self.leave()
        self.call.close()


@asynccontextmanager
async def client(*argv: str, cwd: str = "/cwd", fds: Sequence[int] = ()) -> AsyncIterator[Client]:
    """Give somebody who asks; ``fds``: /dev/null, if not given."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        made = Client(argv, cwd, fds or (null,) * 3)
    finally:
        os.close(null)
    try:
        await made.call.receive()
        made.call.listen()
        yield made
    finally:
        made.close()


class Childless:
    """The nursery of a supervisor in which no container is made."""

    async def start(self, func: Callable[..., Coroutine[Any, Any, Any]], *args: Any, name: object = None) -> Any:
        raise AssertionError(f"{name} would live")


def supervisor(config: Config, run_dir: str | Path, clock: Timekeeper = SYSTEM) -> Supervisor:
    """Return a supervisor that answers, and makes no containers."""
    return Supervisor(config, str(run_dir), Childless(), clock)


async def answer(supervisor: Supervisor, *argv: str, cwd: str = "/cwd") -> Answer:
    """Have a command line carried out."""
    async with client(*argv, cwd=cwd) as one:
        await cli.run(one.call, supervisor)
        one.read()
        return one.answer
