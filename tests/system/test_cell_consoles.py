# SPDX-License-Identifier: Apache-2.0
"""Cells whose console is shared memory, on the fake board: a virtio console and a byte ring."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backends.jailhouse.backend import JailhouseBackend
from consoles.errors import SourceError
from consoles.sharedmem.regions import open_region
from runphi_async.events import IvshmemState
from runphi_async.partition.channels import Channel
from runphi_async.testing.shmempeer import Peer
from tests.system.cellkit import CellLife, board_here, guest
from tests.unit.consolekit import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from backends.base import Backend, Told
    from runphi_async.events import AnyEvent
    from runphi_async.partition.spec import GuestSpec
    from runphi_async.testing.cellboard import CellBoard

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CellBoard]:
    with board_here(tmp_path, monkeypatch) as made:
        yield made


def on(place: CellBoard, console: str) -> GuestSpec:
    return guest(place, console_port=console)


class Noted(CellLife):
    """A life whose events are kept."""

    def __init__(self, backend: Backend, directory: Path) -> None:
        super().__init__(backend, directory)
        self.notes: list[AnyEvent] = []
        self.said: list[str] = []

    def told(self) -> Told:
        return super().told()._replace(say=self.said.append, note=self.notes.append)

    def states(self) -> list[tuple[int, int]]:
        return [(event.peer, event.state) for event in self.notes if isinstance(event, IvshmemState)]


@pytest.fixture(params=["con1", "shm0"])
async def life(board: CellBoard, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Noted]:
    """A cell on a virtio console, and one on a byte ring."""
    directory = tmp_path / "record"
    directory.mkdir()
    made = Noted(JailhouseBackend(board.config(), str(tmp_path)), directory)
    await made.create(on(board, request.param))
    yield made
    await made.close()


async def test_nothing_is_lost_however_much_there_is(life: Noted) -> None:
    await life.start()
    assert b"runPHI demo inmate" in await life.prompt()
    life.type(b"echo hello  world\n")
    assert b"\nhello  world\r\n" in await life.prompt()
    life.type(b"spam 3000\n")
    lines = (await life.prompt()).split(b"\r\n")
    assert lines[1:-1] == [b"line %07d" % number for number in range(1, 3001)]
    life.type(b"exit 3\n")
    assert (await life.end()).code == 1


async def test_the_next_supervisor_goes_on(life: Noted) -> None:
    await life.start()
    await life.prompt()
    life.type(b"spam 500\n")
    await life.expect(b"line 0000003")
    await life.supervisor_dies()
    assert await life.adopt() is True
    shown = await life.expect(b"line 0000500\r\n")
    numbers = [int(line.removeprefix(b"line ")) for line in shown.split(b"\r\n")[1:-1]]
    assert numbers == list(range(numbers[0], 501))
    await life.prompt()
    life.type(b"exit 0\n")
    assert (await life.end()).code == 0


async def test_a_supervisor_that_comes_before_the_start(life: Noted) -> None:
    await life.supervisor_dies()
    assert await life.adopt() is False
    await life.start()
    await life.prompt()
    life.kill(15)
    assert (await life.end()).code == 143


async def test_a_guest_that_is_loaded_again_finds_its_console(life: Noted) -> None:
    await life.start()
    await life.prompt()
    await life.driver.suspend()
    await life.supervisor_dies()
    assert await life.adopt() is True
    await life.driver.resume()
    assert b"runPHI demo inmate" in await life.prompt()
    life.type(b"echo again\n")
    await life.expect(b"\nagain\r\n")


async def test_the_cells_word_in_the_state_table_is_an_event(life: Noted) -> None:
    await life.start()
    await life.prompt()
    await until(lambda: life.states() == [(1, 1)], "its word")
    await life.driver.suspend()
    await until(lambda: life.states() == [(1, 1), (1, 0)], "the hypervisor's word")


async def test_what_an_earlier_guest_left_in_the_memory_is_not_shown(
    board: CellBoard,
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        directory = tmp_path / name
        directory.mkdir()
        life = Noted(JailhouseBackend(board.config(), str(tmp_path)), directory)
        await life.create(on(board, "shm0"))
        await life.start()
        shown = await life.prompt()
        assert shown.count(b"runPHI demo inmate") == 1
        life.type(b"echo %s\n" % name.encode())
        assert name.encode() in await life.prompt()
        await life.close()


async def test_a_channel_of_the_host_may_be_the_console(
    board: CellBoard,
    tmp_path: Path,
) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(16384))
    spec = guest(board, channels=(Channel("wire", 16384, str(memory)),), console="wire")
    backend = JailhouseBackend(board.config(), str(tmp_path))
    directory = tmp_path / "record"
    directory.mkdir()
    life = Noted(backend, directory)
    await life.create(spec)
    peer = Peer(open_region(str(memory)))
    peer.open()
    peer.write(b"by wire\n")
    await life.expect(b"by wire\n")
    life.type(b"typed")
    assert peer.read() == b"typed"  # it is in the ring as soon as it is taken
    await life.close()


async def test_a_device_that_is_not_there_is_tried_again(board: CellBoard, tmp_path: Path) -> None:
    text = board.file.read_text()
    board.file.write_text(text.replace(f'uio = "{board.place.devices}/uio0"\n', ""))
    backend = JailhouseBackend(board.config(), str(tmp_path))
    plan = await backend.claim(on(board, "shm0"), await backend.plan(on(board, "shm0")), "c1")
    directory = tmp_path / "c1"
    directory.mkdir()
    driver = backend.driver(plan, str(directory))
    await driver.create()
    source = driver.console()
    assert source is not None
    with pytest.raises(SourceError, match=r"the uio device of PCI device 0001:00:00\.0: bind it to uio_ivshmem"):
        await asyncio.wait_for(source.open(CellLife(backend, directory)), 30)
    await driver.bury()
