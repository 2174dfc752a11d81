# SPDX-License-Identifier: Apache-2.0
"""The driver of cells on the fake board: the suite of all drivers, and what only cells have."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from backends.jailhouse import ending
from backends.jailhouse.backend import JailhouseBackend
from backends.jailhouse.progress import PHASE
from runphi_async.errors import BackendError, RunphiError, UnsupportedError
from runphi_async.testing.conformance import WatchesByTask
from runphi_async.testing.life import PATIENCE, Life, not_thought_of
from tests.system.cellkit import CellLife, board_here, guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from backends.base import Backend
    from runphi_async.partition.spec import GuestSpec
    from runphi_async.testing.cellboard import CellBoard

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CellBoard]:
    with board_here(tmp_path, monkeypatch) as made:
        yield made


class TestCell(WatchesByTask):
    board: CellBoard
    codes: ClassVar[dict[bytes, int]] = {b"exit 0": 0, b"exit 7": 1, b"crash": 134}

    killed = "somebody else destroyed the cell"

    async def machine_made(self, life: Life) -> None:
        """It is, as soon as ``create`` has returned."""

    async def kill_machine(self, life: Life) -> None:
        self.board.run("cell", "destroy", "--name", "c1")

    async def break_watch(self, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ending, "judge", not_thought_of)

    async def machine_ended(self, life: Life) -> None:
        state = self.board.place.sysfs / "cells" / "1" / "state"
        async with asyncio.timeout(PATIENCE):
            while state.read_text() == "running\n":
                await asyncio.sleep(0.01)

    @pytest.fixture
    async def life(self, backend: Backend, spec: GuestSpec, tmp_path: Path) -> AsyncIterator[Life]:
        directory = tmp_path / "record"
        directory.mkdir()
        made = CellLife(backend, directory)
        await made.create(spec)
        yield made
        await made.close()

    @pytest.fixture
    async def backend(self, board: CellBoard, tmp_path: Path) -> Backend:
        self.board = board
        return JailhouseBackend(board.config(), str(tmp_path))

    @pytest.fixture
    def spec(self, board: CellBoard, tmp_path: Path) -> GuestSpec:
        return guest(board)

    async def test_console_bytes_both_ways(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        life.type(b"echo hello  world\n")
        assert b"\nhello  world\r\n" in await life.prompt()
        life.type(b"spam 100\n")  # a serial port waits for nobody: no more than its FIFO holds
        lines = (await life.prompt()).split(b"\r\n")
        assert lines[1:-1] == [b"line %07d" % number for number in range(1, 101)]

    @pytest.mark.parametrize("typed", [b"exit 0", b"exit 7", b"crash"])
    async def test_verdicts(self, life: Life, typed: bytes) -> None:
        await super().test_verdicts(life, typed)

    async def test_suspend_and_resume(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        await life.driver.suspend()
        await life.driver.resume()  # from its beginning: Jailhouse keeps no state
        assert b"runPHI demo inmate, " in await life.prompt()
        life.type(b"echo later\n")
        await life.expect(b"\nlater\r\n")
        assert not life.ended.is_set()

    async def test_adoption_of_a_running_guest(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        await life.supervisor_dies()
        assert await life.adopt() is True
        life.type(b"echo here\n")
        await life.expect(b"\nhere\r\n")
        life.type(b"exit 4\n")
        assert (await life.end()).code == 1

    async def test_adoption_of_a_suspended_guest(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        await life.driver.suspend()
        await life.supervisor_dies()
        assert await life.adopt() is True
        await life.driver.resume()
        assert b"runPHI demo inmate, " in await life.prompt()

    @pytest.mark.parametrize("typed", [b"exit 5", b"crash"])
    async def test_an_end_while_nobody_watched(self, life: Life, typed: bytes) -> None:
        await life.start()
        await life.prompt()
        life.type(typed + b"\n")
        await life.supervisor_dies()
        await self.machine_ended(life)
        assert await life.adopt() is None
        assert (await life.end()).code == {b"exit 5": 1, **self.codes}[typed]

    async def test_adoption_before_start(self, life: Life) -> None:
        await life.supervisor_dies()
        assert await life.adopt() is False
        await life.start()
        await life.prompt()
        life.type(b"exit 3\n")
        assert (await life.end()).code == 1

    async def test_the_machine_is_the_stubs_child(self, life: Life) -> None:
        """There is no machine: the stub has no child, and the cell outlives it until it is destroyed."""
        await life.start()
        with open(f"/proc/{life.stub_pid}/task/{life.stub_pid}/children") as file:
            assert file.read() == ""

    # Section: what only cells have

    async def test_the_board_is_free_again(self, life: Life, backend: JailhouseBackend) -> None:
        await life.start()
        await life.prompt()
        assert list(self.board.cells()) == ["c1"]
        assert {held.owner.name for held in backend.ledger.held()} == {"record"}
        life.type(b"exit 0\n")
        await life.end()
        await life.driver.release()
        assert list(self.board.cells()) == []
        assert backend.ledger.held() == ()

    async def test_a_stop_from_outside(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        self.board.run("cell", "shutdown", "--name", "c1")
        assert await life.end() == (137, "somebody else shut the cell down")

    @pytest.mark.parametrize(
        ("poke", "verdict"),
        [
            (("--state", "3"), (1, "the guest says that it has failed")),
            (("--state", "99"), (1, "the guest wrote a cell state that does not exist")),
            (("--park", "1"), (134, "the guest broke out of its cell: the hypervisor stopped CPU 1")),
            (("--vanish",), (137, "somebody else destroyed the cell")),
        ],
    )
    async def test_faults(self, life: Life, poke: tuple[str, ...], verdict: tuple[int, str]) -> None:
        await life.start()
        await life.prompt()
        await asyncio.to_thread(self.board.poke, "c1", *poke)
        assert await life.end() == verdict

    async def test_the_hypervisor_is_disabled(self, life: Life) -> None:
        await life.start()
        await life.prompt()
        self.board.run("disable")
        assert await life.end() == (137, "the hypervisor was disabled, which destroys all cells")

    async def test_a_guest_that_refuses_is_asked_again(self, life: Life) -> None:
        await life.start()
        self.board.inject({"on": "cell shutdown", "errno": "EPERM", "times": 2})
        life.kill(15)
        assert (await life.end()).code == 143

    async def test_a_hung_tool_ends_the_container_and_keeps_the_claim(
        self, life: Life, backend: JailhouseBackend
    ) -> None:
        await life.start()
        backend._machine.tool._deadline = 0.5
        self.board.inject({"on": "cell shutdown", "hang": "process"}, {"on": "cell destroy", "hang": "process"})
        life.kill()
        assert await life.end() == (137, "the hypervisor does not answer: the board hangs and must be reset")
        await life.driver.release()
        assert {held.owner.name for held in backend.ledger.held()} == {"record"}

    async def test_pause_is_refused_unless_it_is_wanted(self, board: CellBoard, tmp_path: Path) -> None:
        directory = tmp_path / "record"
        directory.mkdir()
        life = CellLife(JailhouseBackend(board.config(pause="refuse"), str(tmp_path)), directory)
        await life.create(guest(board))
        await life.start()
        with pytest.raises(UnsupportedError, match='set pause = "shutdown"'):
            await life.driver.suspend()
        await life.prompt()
        await life.close()


async def failed(place: CellBoard, tmp_path: Path, spec: GuestSpec | None = None, **settings: Any) -> RunphiError:
    """Make a cell that cannot be made; return why. Nothing may be left of it."""
    backend = JailhouseBackend(place.config(**settings), str(tmp_path))
    spec = spec or guest(place)
    directory = tmp_path / "failed"
    directory.mkdir(exist_ok=True)
    try:
        plan = await backend.claim(spec, await backend.plan(spec), "failed")
        driver = backend.driver(plan, str(directory))
        try:
            await driver.create()
        finally:
            await driver.bury()
    except RunphiError as exc:
        assert backend.ledger.held() == ()
        return exc
    raise AssertionError("the cell was made")


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"on": "cell create", "errno": "EBUSY"}, "a CPU of it belongs to another cell or is not the root cell's"),
        ({"on": "cell create", "errno": "EPERM"}, "another cell is locked and allows no changes"),
        ({"on": "cell create", "errno": "ENOMEM"}, "the hypervisor has no memory left for it"),
        (
            {"on": "cell create", "status": 0},
            "there is no such cell in sysfs; is the configuration for",
        ),
        ({"on": "cell load", "errno": "EINVAL"}, "an image does not fit into a LOADABLE region"),
        ({"on": "cell load", "errno": "EPERM"}, "the cell refuses to shut down"),
    ],
)
async def test_what_fails_leaves_nothing(board: CellBoard, tmp_path: Path, rule: dict[str, Any], told: str) -> None:
    board.inject(rule)
    assert told in str(await failed(board, tmp_path))
    assert list(board.cells()) == []


async def test_a_hang_is_said_in_words(board: CellBoard, tmp_path: Path) -> None:
    board.inject({"on": "cell create", "hang": "process", "times": 1})
    exc = await failed(board, tmp_path, deadline_seconds=4)
    assert "did not come back within 4 s; the board must be reset" in str(exc)


async def test_a_cell_of_somebody_else_is_left_alone(board: CellBoard, tmp_path: Path) -> None:
    backend = JailhouseBackend(board.config(), str(tmp_path))
    plan = await backend.claim(guest(board), await backend.plan(guest(board)), "c1")
    directory = tmp_path / "c1"
    directory.mkdir()
    (tmp_path / "theirs.cell").write_bytes(plan.files["c1.cell"])
    board.run("cell", "create", str(tmp_path / "theirs.cell"))
    driver = backend.driver(plan, str(directory))
    with pytest.raises(BackendError, match="a cell of that name exists, made by somebody else"):
        await driver.create()
    await driver.bury()
    assert list(board.cells()) == ["c1"]
    assert backend.ledger.held() == ()


async def test_cells_of_others_keep_their_cpus(board: CellBoard, tmp_path: Path) -> None:
    backend = JailhouseBackend(board.config(), str(tmp_path))
    first = await backend.plan(guest(board, id="theirs"))
    (tmp_path / "theirs.cell").write_bytes(first.files["theirs.cell"])
    board.run("cell", "create", str(tmp_path / "theirs.cell"))
    assert first.pins == (1,)
    assert (await backend.plan(guest(board))).pins == (2,)


async def test_the_module_is_not_loaded(board: CellBoard, tmp_path: Path) -> None:
    board.run("disable")
    assert "Jailhouse is not enabled; enable it with" in str(await failed(board, tmp_path))
    exc = await failed(board, tmp_path, sysfs=str(tmp_path / "nothing"))
    assert "Jailhouse's kernel module is not loaded; load it with modprobe jailhouse" in str(exc)


async def test_the_board_file_of_another_board(board: CellBoard, tmp_path: Path) -> None:
    exc = await failed(board, tmp_path, board="kria-kv260")
    assert "the root cell here is 'qemu-arm64', and the board file is for" in str(exc)


async def test_memory_that_is_not_the_root_cells_is_refused_before_it_hangs_the_board(
    board: CellBoard, tmp_path: Path
) -> None:
    text = board.file.read_text().replace("0x3fa10000", "0x3fb10000").replace("0xfa10000", "0x10000")
    board.file.write_text(text.replace("start = 0x70000000", "start = 0x7fa30000"))
    exc = await failed(board, tmp_path, guest(board, memory_limit=0x10000))
    assert "loading an image hangs the board; use memory of the root cell" in str(exc)
    assert list(board.cells()) == []


async def test_what_a_dead_supervisor_left_is_freed(board: CellBoard, tmp_path: Path) -> None:
    first = JailhouseBackend(board.config(), str(tmp_path))
    await first.claim(guest(board), await first.plan(guest(board)), "c1")  # and then it died
    second = JailhouseBackend(board.config(), str(tmp_path))
    plan = await second.claim(guest(board, id="c2"), await second.plan(guest(board, id="c2")), "c2")
    assert plan.pins in ((1,), (2,))
    assert {held.owner.name for held in second.ledger.held()} == {"c2"}


async def test_a_cell_that_was_being_made_is_removed(board: CellBoard, tmp_path: Path) -> None:
    first = JailhouseBackend(board.config(), str(tmp_path))
    plan = await first.claim(guest(board), await first.plan(guest(board)), "c1")
    directory = tmp_path / "c1"
    directory.mkdir()
    await first.driver(plan, str(directory)).create()
    assert (directory / PHASE).read_text() == "loaded\n"
    second = JailhouseBackend(board.config(), str(tmp_path))
    await second.recall(first.remember(plan), str(directory)).bury()
    assert list(board.cells()) == []
    assert second.ledger.held() == ()


async def test_eight_cells_at_once_have_eight_places(board: CellBoard, tmp_path: Path) -> None:
    backend = JailhouseBackend(board.config(), str(tmp_path))
    specs = [guest(board, id=f"c{n}", console_port=f"port{n}") for n in range(1, 9)]
    plans = [await backend.plan(spec) for spec in specs]  # all of them plan the same place
    assert len({plan.pins for plan in plans}) == 1
    made = await asyncio.gather(*(backend.claim(spec, plan, spec.id) for spec, plan in zip(specs, plans, strict=True)))
    assert sorted(plan.pins for plan in made) == [(cpu,) for cpu in range(1, 9)]
    assert len({region.phys for plan in made for region in plan.cell.regions if region.what.startswith("RAM")}) == 8
