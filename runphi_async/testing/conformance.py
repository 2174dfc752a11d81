# SPDX-License-Identifier: Apache-2.0
"""What every driver must do: one suite for the fake and the real ones, and for those of other people.

A test module inherits :class:`DriverConformance`, and :class:`WatchesByTask` and :class:`TellsPauses` where they fit,
and says in ``backend`` and ``spec`` what to drive; it wants pytest with pytest-asyncio in its automatic mode. The guest
is the demo inmate or plays it: a banner, a prompt and its commands.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, ClassVar

import pytest

from runphi_async.host.processes import Process
from runphi_async.lifeline import stub
from runphi_async.testing.life import PATIENCE, Life, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backends.base import Backend
    from runphi_async.partition.spec import GuestSpec


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
        life.driver.end()
        await life.end()
        life.driver.end()

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

    async def test_a_guest_that_stops_when_asked_ends(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        asked = life.driver.abilities.stops
        if asked is not None and await asked.stop():
            assert (await life.end()).code == 0
        else:  # whoever has no ear is destroyed by the runtime
            life.kill(15)
            assert (await life.end()).code == 143

    async def test_a_break_hurts_nobody(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        breaks = life.driver.abilities.breaks
        if breaks is not None:
            await breaks.send_break()
        life.type(b"echo alive\n")
        await life.expect(b"\nalive\r\n")

    async def test_the_bell_is_for_drivers_with_a_command(self, life: Life) -> None:
        assert (life.driver.abilities.hears_bell is not None) == bool(life.driver.command)

    async def test_a_next_supervisor_finds_the_same_abilities(self, life: Life) -> None:
        def able() -> set[str]:
            return {name for name, who in life.driver.abilities._asdict().items() if who is not None}

        await life.start()
        await life.prompt()
        before = able()
        await life.supervisor_dies()
        await life.adopt()
        assert able() == before

    async def test_a_guest_that_was_never_made_can_be_buried(
        self, backend: Backend, spec: GuestSpec, tmp_path: Path
    ) -> None:
        """As when an earlier step of its creation fails: nothing is there, and that is no trouble."""
        directory = tmp_path / "unmade"
        directory.mkdir()
        plan = await backend.claim(spec, await backend.plan(spec), directory.name)
        await backend.driver(plan, str(directory)).bury()
        assert await backend.plan(spec), "whatever it claimed is free again"

    async def test_an_end_that_an_earlier_supervisor_settled_can_be_buried(self, life: Life) -> None:
        """It may have died before it came to release what the guest had."""
        await life.start()
        life.kill()
        await life.end()
        await life.driver.release()
        for _ in range(2):
            await life.backend.recall(life.memory, str(life.directory)).bury()

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

    @pytest.mark.parametrize("seconds", [0.0, 0.002, 0.01, 0.05])
    async def test_a_supervisor_that_ends_while_the_guest_does(self, life: Life, seconds: float) -> None:
        """Wherever in taking the end down it stops, the next one finds all that tells how it was."""
        await life.start()
        await life.prompt()
        life.type(b"echo last words\n")
        life.type(b"exit 7\n")
        await self.taken(life)
        await asyncio.sleep(seconds)
        if not life.ended.is_set():
            await life.supervisor_dies()
            await self.machine_ended(life)
            await life.adopt()
        await life.expect(b"\nlast words\r\n")
        assert (await life.end()).code == self.codes[b"exit 7"]

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
