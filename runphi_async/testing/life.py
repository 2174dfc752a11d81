# SPDX-License-Identifier: Apache-2.0
"""One guest between its driver and a real init process, as the runtime would have it: for tests of drivers.

A :class:`Life` does for the driver what the runtime does: record directory, console FIFOs, the init process, the
callbacks; and it can play a supervisor that dies and leaves all of it to the next.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING, Final, NoReturn

from backends.base import Evidence, Told, Verdict
from consoles.streams.fifo import open_fifo
from runphi_async.lifeline import stub
from runphi_async.lifeline.stub import Fd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import msgspec

    from backends.base import Backend, Driver
    from runphi_async.partition.spec import GuestSpec

#: Seconds a guest may take for an answer: software emulation on busy cores.
PATIENCE: Final = 40.0


async def until(condition: Callable[[], object], what: str) -> None:
    """Let the loop run until a condition holds; ``what`` says for what was waited."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {PATIENCE:.0f} s for {what}") from None


def not_thought_of(*given: object, **named: object) -> NoReturn:
    """Fail as only a mistake can."""
    raise RuntimeError("not thought of")


class Life:
    """One guest between a driver and its init stub."""

    def __init__(self, backend: Backend, directory: Path) -> None:
        self.backend = backend
        self.directory = directory
        self.driver: Driver
        self.memory: msgspec.Raw
        self.ended = asyncio.Event()
        self.ends = 0
        #: who paused and resumed it beside us
        self.others: list[tuple[str, str]] = []
        self.seen = b""
        self.killed_by: int | None = None
        self.booted = False
        self.stub_pid = 0
        for name in ("con.in", "con.out", "exit", "bell"):
            os.mkfifo(directory / name)
        # the stub keeps these while a supervisor is away
        self.exit_fd = os.open(directory / "exit", os.O_RDWR)
        self.held = self._open("con.out")
        self.connect()

    def _open(self, name: str) -> int:
        dir_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return open_fifo(name, dir_fd)
        finally:
            os.close(dir_fd)

    def connect(self) -> None:
        """Open what the runtime has of the console and the bell."""
        self.input, self.output, self.bell = self._open("con.in"), self._open("con.out"), self._open("bell")
        asyncio.get_running_loop().add_reader(self.bell, self._rang)

    def _rang(self) -> None:
        os.read(self.bell, 4096)
        if self.driver.abilities.hears_bell is not None:
            self.driver.abilities.hears_bell.rang()

    def _end(self) -> None:
        self.ends += 1
        self.ended.set()

    def told(self) -> Told:
        return Told(
            self._end,
            lambda printed: self.driver.end(),
            lambda text: None,
            paused=lambda by: self.others.append(("paused", by)),
            resumed=lambda by: self.others.append(("resumed", by)),
        )

    async def create(self, spec: GuestSpec) -> None:
        """Do what ``create`` does."""
        plan = await self.backend.plan(spec)
        assert plan.backend == self.backend.name
        plan = await self.backend.claim(spec, plan, self.directory.name)
        self.memory = self.backend.remember(plan)
        self.driver = self.backend.driver(plan, str(self.directory))
        await self.driver.create()
        kept = self.driver.inheritance()
        null = os.open("/dev/null", os.O_RDWR)
        held = dict.fromkeys(Fd, null) | {Fd.EXIT: self.exit_fd, Fd.CONSOLE: self.held, Fd.BELL: self.bell}
        with stub.arranged({**held, **kept.kept}, kept.extra) as fds:
            self._spawn(stub.command(self.driver.command, None, self.driver.again), fds)
        os.close(null)
        await self.driver.watch(self.told())
        if self.driver.command:
            await self.vmm()  # `create` does not return before: the child may be quicker than the stub's word about it

    def _spawn(self, argv: list[str], fds: list[int]) -> None:
        # All out of the way of the low numbers first, then into place.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)]
        shell = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(self.directory), *argv]
        self.stub_pid = os.posix_spawn("/bin/sh", shell, dict(os.environ), file_actions=actions, setsid=True)
        for fd in high:
            os.close(fd)

    async def start(self) -> None:
        """Do what ``start`` does."""
        self.booted = True
        await self.driver.start()

    async def supervisor_dies(self) -> None:
        """Leave everything to the next supervisor, which has nothing but the record and the stub."""
        asyncio.get_running_loop().remove_reader(self.bell)
        for fd in (self.input, self.output, self.bell):
            os.close(fd)
        await self.driver.release()

    async def adopt(self) -> bool | None:
        """Do what a next supervisor does."""
        self.connect()
        self.driver = self.backend.recall(self.memory, str(self.directory))
        return await self.driver.adopt(self.told())

    async def expect(self, text: bytes) -> bytes:
        """Wait until the console shows ``text``; return what it showed up to and with it."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.seen:
                self.seen += await self._read()
        end = self.seen.index(text) + len(text)
        shown, self.seen = self.seen[:end], self.seen[end:]
        return shown

    async def _read(self) -> bytes:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.output, ready.set)
        try:
            await ready.wait()
            return os.read(self.output, 65536)
        finally:
            loop.remove_reader(self.output)

    def type(self, text: bytes) -> None:
        os.write(self.input, text)

    async def prompt(self) -> bytes:
        return await self.expect(b"> ")

    async def end(self) -> Verdict:
        """Wait for the end and weigh it."""
        async with asyncio.timeout(PATIENCE):
            await self.ended.wait()
        return self.driver.settle(Evidence(self.killed_by, 0, self.booted))

    def kill(self, number: int = 9) -> None:
        self.killed_by = number
        self.driver.end()

    async def vmm(self) -> int:
        await until(lambda: stub.read_pid(str(self.directory)), "the stub's word about its child")
        return stub.read_pid(str(self.directory)) or 0

    async def close(self) -> None:
        if not self.ended.is_set():
            self.driver.end()
            async with asyncio.timeout(PATIENCE):
                await self.ended.wait()
        await self.supervisor_dies()
        os.write(self.exit_fd, b"7\n")
        _, status = await asyncio.to_thread(os.waitpid, self.stub_pid, 0)
        assert os.waitstatus_to_exitcode(status) in (7, -9)
        os.close(self.exit_fd)
        os.close(self.held)
        assert self.ends == 1, "the end must be said exactly once"
