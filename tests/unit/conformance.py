# SPDX-License-Identifier: Apache-2.0
"""What every driver must do: one suite for the fake (test_fake_backend.py) and the real ones (tests/system).

A subclass says in ``backend`` and ``spec`` what to drive. The guest is the demo inmate or plays it: a banner, a prompt
and its commands. A :class:`Life` does for the driver what the runtime does: record directory, console FIFOs, the real
init stub, the callbacks; and it can play a supervisor that dies and leaves all of it to the next.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn

import pytest

from backends.base import Evidence, Told, Verdict
from consoles.streams.fifo import open_fifo
from runphi_async.host.processes import Process
from runphi_async.lifeline import stub
from runphi_async.lifeline.stub import Fd
from tests.unit.consolekit import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import msgspec

    from backends.base import Backend, Driver
    from runphi_async.partition.spec import GuestSpec

#: Seconds a guest may take for an answer: software emulation on busy cores.
PATIENCE: Final = 40.0


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
        self._connect()

    def _open(self, name: str) -> int:
        dir_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return open_fifo(name, dir_fd)
        finally:
            os.close(dir_fd)

    def _connect(self) -> None:
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
            lambda printed: self.driver.destroy(),
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
        await self.driver.prepare()
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
        self._connect()
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
        self.driver.destroy()

    async def vmm(self) -> int:
        await until(lambda: stub.read_pid(str(self.directory)), "the stub's word about its child")
        return stub.read_pid(str(self.directory)) or 0

    async def close(self) -> None:
        if not self.ended.is_set():
            self.driver.destroy()
            async with asyncio.timeout(PATIENCE):
                await self.ended.wait()
        await self.supervisor_dies()
        os.write(self.exit_fd, b"7\n")
        _, status = await asyncio.to_thread(os.waitpid, self.stub_pid, 0)
        assert os.waitstatus_to_exitcode(status) in (7, -9)
        os.close(self.exit_fd)
        os.close(self.held)
        assert self.ends == 1, "the end must be said exactly once"


class DriverConformance:
    """Inherit, and say in two fixtures what to drive."""

    #: exit codes of the guest's ends, by what is typed
    codes: ClassVar[dict[bytes, int]] = {b"exit 0": 0, b"exit 7": 7, b"crash": 134, b"reset": 133}

    #: what the reason says of a machine that somebody killed
    killed: ClassVar[str] = "9"

    # The machine is a process, the stub's child; a backend whose machine is none overrides these.

    async def machine_made(self, life: Life) -> None:
        """Wait until there is a machine."""
        async with asyncio.timeout(PATIENCE):
            while stub.read_pid(str(life.directory)) is None:
                await asyncio.sleep(0.01)

    async def kill_machine(self, life: Life) -> None:
        """Be somebody else who ends it."""
        os.kill(await life.vmm(), signal.SIGKILL)

    async def machine_ended(self, life: Life) -> None:
        """Wait until the machine has ended, while no supervisor watches."""
        async with asyncio.timeout(PATIENCE):
            while stub.read_status(str(life.directory)) is None:
                await asyncio.sleep(0.01)

    async def taken(self, life: Life) -> None:
        """Wait until what was typed has left the FIFO, where the driver carries it on."""

    @pytest.fixture
    async def backend(self) -> Backend:
        raise NotImplementedError

    @pytest.fixture
    def spec(self, tmp_path: Path) -> GuestSpec:
        raise NotImplementedError

    @pytest.fixture
    async def life(self, backend: Backend, spec: GuestSpec, tmp_path: Path) -> AsyncIterator[Life]:
        directory = tmp_path / "record"
        directory.mkdir()
        made = Life(backend, directory)
        await made.create(spec)
        yield made
        await made.close()

    async def test_probe_names_what_it_runs(self, backend: Backend, spec: GuestSpec) -> None:
        found = await backend.probe()
        assert found.summary
        assert (await backend.plan(spec)).arch in found.arches

    async def test_planning_twice_gives_the_same(self, backend: Backend, spec: GuestSpec) -> None:
        assert await backend.plan(spec) == await backend.plan(spec)

    async def test_nothing_is_printed_before_start(self, life: Life) -> None:
        await self.machine_made(life)
        with pytest.raises(BlockingIOError):
            os.read(life.output, 100)
        await life.start()
        assert b"runPHI demo inmate, " in await life.prompt()
        assert not life.ended.is_set()

    async def test_console_bytes_both_ways(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        life.type(b"echo hello  world\n")
        assert b"\nhello  world\r\n" in await life.prompt()
        life.type(b"spam 2000\n")
        lines = (await life.prompt()).split(b"\r\n")
        assert lines[1:-1] == [b"line %07d" % number for number in range(1, 2001)]

    @pytest.mark.parametrize("typed", [b"exit 0", b"exit 7", b"crash", b"reset"])
    async def test_verdicts(self, life: Life, typed: bytes) -> None:
        await life.start()
        await life.prompt()
        life.type(typed + b"\n")
        verdict = await life.end()
        assert verdict.code == self.codes[typed]
        assert verdict.reason

    async def test_destroy_while_it_runs(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        life.kill(9)
        assert (await life.end()).code == 137

    async def test_destroy_says_which_signal_asked(self, life: Life) -> None:
        await life.start()
        life.kill(15)
        assert (await life.end()).code == 143

    async def test_destroy_before_start(self, life: Life) -> None:
        life.kill()  # at once: its machine may not even be executed yet
        assert (await life.end()).code == 137

    async def test_destroy_of_a_hanging_guest(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        life.type(b"hang\n")
        await life.expect(b"hanging\r\n")
        life.kill()
        assert (await life.end()).code == 137

    async def test_destroy_twice_is_one_end(self, life: Life) -> None:
        await life.start()
        life.kill()
        life.driver.destroy()
        await life.end()
        life.driver.destroy()

    async def test_a_machine_killed_by_somebody_is_never_success(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        await self.kill_machine(life)
        verdict = await life.end()
        assert verdict.code == 137
        assert self.killed in verdict.reason

    async def test_a_machine_killed_before_start_is_never_success(self, life: Life) -> None:
        await self.machine_made(life)
        await self.kill_machine(life)
        assert (await life.end()).code == 137

    async def test_a_dead_stub_still_means_an_end(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        os.kill(life.stub_pid, signal.SIGKILL)
        life.kill()
        assert (await life.end()).code == 137

    async def test_suspend_and_resume(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        await life.driver.suspend()
        life.type(b"echo later\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await life.expect(b"later")
        await life.driver.resume()
        await life.expect(b"\nlater\r\n")

    async def test_our_own_pauses_are_nobody_elses(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        for _ in range(5):
            await life.driver.suspend()
            await life.driver.resume()
        life.type(b"echo on\n")
        await life.expect(b"\non\r\n")
        assert life.others == []
        signals = life.driver.abilities.signals
        assert signals is None or signals.unheard() is None

    async def test_destroy_while_suspended(self, life: Life) -> None:
        await life.start()
        await life.driver.suspend()
        life.kill()
        assert (await life.end()).code == 137

    async def test_signals_resize_and_end_of_input_hurt_nobody(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        able = life.driver.abilities
        if able.resizes is not None:
            able.resizes.resize(50, 132)
        if able.takes_eof is not None:
            able.takes_eof.end_of_input(0)
        if able.signals is not None:
            await able.signals.deliver(1)
        life.type(b"echo alive\n")
        await life.expect(b"\nalive\r\n")

    async def test_adoption_before_start(self, life: Life) -> None:
        await self.machine_made(life)
        await life.supervisor_dies()
        assert await life.adopt() is False
        await life.start()
        await life.prompt()
        life.type(b"exit 3\n")
        assert (await life.end()).code == 3

    async def test_adoption_of_a_running_guest(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        life.type(b"spam 3000\n")
        await self.taken(life)
        await life.supervisor_dies()
        assert await life.adopt() is True
        shown = await life.expect(b"line 0003000\r\n> ")
        assert shown.count(b"line ") == 3000
        life.type(b"exit 4\n")
        assert (await life.end()).code == 4

    async def test_adoption_of_a_suspended_guest(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        await life.driver.suspend()
        await life.supervisor_dies()
        assert await life.adopt() is True
        await life.driver.resume()
        life.type(b"echo on\n")
        await life.expect(b"\non\r\n")

    @pytest.mark.parametrize("typed", [b"exit 5", b"crash", b"reset"])
    async def test_an_end_while_nobody_watched(self, life: Life, typed: bytes) -> None:
        await life.start()
        await life.prompt()
        life.type(typed + b"\n")
        await self.taken(life)
        await life.supervisor_dies()
        await self.machine_ended(life)
        await life.adopt()
        assert (await life.end()).code == {b"exit 5": 5, **self.codes}[typed]

    async def test_release_leaves_no_descriptor(self, backend: Backend, spec: GuestSpec, tmp_path: Path) -> None:
        def descriptors() -> int:
            return len(os.listdir("/proc/self/fd"))

        before = 0
        for number in range(3):  # the first one may load and open things for good
            directory = tmp_path / f"record{number}"
            directory.mkdir()
            life = Life(backend, directory)
            await life.create(spec)
            await life.start()
            life.kill()
            await life.end()
            await life.close()
            if number == 1:
                before = descriptors()
        # What belongs to nobody any more may be closed a moment later; what leaks never is.
        await until(lambda: descriptors() <= before, "the descriptors of a guest that is gone")

    async def test_the_machine_is_the_stubs_child(self, life: Life) -> None:
        await life.start()
        with open(f"/proc/{await life.vmm()}/stat") as file:
            assert int(file.read().rpartition(")")[2].split()[1]) == life.stub_pid
        held = Process(await life.vmm())
        life.kill()
        await life.end()
        assert not held.send(0)
        held.close()


class WatchesByTask(DriverConformance):
    """What a driver does whose own task looks after its machine: when that fails, nobody would."""

    async def break_watch(self, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make what the task does next fail in a way that nobody has thought of."""
        raise NotImplementedError

    async def test_a_watch_that_fails_ends_the_guest(self, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
        await life.start()
        await life.prompt()
        await self.break_watch(life, monkeypatch)
        verdict = await life.end()
        assert verdict.code == 125
        assert "internal error in the watch over" in verdict.reason
        assert "not thought of" in verdict.reason


class TellsPauses(DriverConformance):
    """What a driver does whose hypervisor tells of a pause by somebody else."""

    async def pause_by_another(self, life: Life) -> None:
        """Be somebody else who pauses the guest."""
        raise NotImplementedError

    async def test_a_pause_by_somebody_else_is_told_and_undone_by_us(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        await self.pause_by_another(life)
        await until(lambda: bool(life.others), "word of it")
        ((what, by),) = life.others
        assert what == "paused"
        assert by
        await life.driver.resume()
        life.type(b"echo on\n")
        await life.expect(b"\non\r\n")
        assert [what for what, _ in life.others].count("paused") == 1

    async def test_a_guest_paused_by_somebody_else_can_be_destroyed(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        await self.pause_by_another(life)
        await until(lambda: bool(life.others), "word of it")
        life.kill()
        assert (await life.end()).code == 137
