# SPDX-License-Identifier: Apache-2.0
"""Cells on remote processors, on the fake Omnivisor board: link, load, start, stop, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from backends.jailhouse import codec, firmware
from backends.jailhouse.backend import JailhouseBackend
from backends.jailhouse.model import Cell, Mem
from runphi_async.errors import BackendError, PlanError, RunphiError
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.testing.cellboard import TOOL, CellBoard
from runphi_async.testing.fake_jailhouse import inmates
from tests.system.cellkit import CellLife, CellPlace, board_here, guest, kill
from tests.system.place import until
from tests.unit.wishkit import annotated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CellBoard]:
    with board_here(tmp_path, monkeypatch, dialect="omnivisor") as made:
        yield made


def motor(board: CellBoard, **more: Any) -> GuestSpec:
    given: dict[str, Any] = {"id": "motor", "inmate": str(board.rcpu_image), "rpu": True, **more}
    return GuestSpec(kind=GuestKind.INMATE, rootfs=str(board.rcpu_image.parent), **given)


def links(board: CellBoard) -> list[str]:
    return [name for name in os.listdir(board.place.firmware.parent) if name.startswith("runphi-")]


def assigned(board: CellBoard, number: int) -> str:
    return (board.place.sysfs / "cells" / str(number) / "rcpus_assigned_list").read_text().strip()


@pytest.fixture
async def life(board: CellBoard, tmp_path: Path) -> AsyncIterator[CellLife]:
    directory = tmp_path / "record"
    directory.mkdir()
    made = CellLife(JailhouseBackend(board.config(), str(tmp_path)), directory)
    await made.create(motor(board))
    yield made
    await made.close()
    assert list(board.cells()) == []
    assert links(board) == []


async def test_it_runs_on_its_processor_and_has_a_console(board: CellBoard, life: CellLife) -> None:
    assert links(board) == [firmware.name_of(str(life.directory))]
    assert (assigned(board, 0), assigned(board, 1)) == ("1", "0")
    await life.start()
    assert b"runPHI demo inmate" in await life.prompt()
    life.type(b"echo turning\n")
    assert b"\nturning\r\n" in await life.prompt()
    life.kill(15)
    assert (await life.end()).code == 143
    assert list(board.cells()) == []  # only destruction stops a remote processor
    assert assigned(board, 0) == "0-1"


async def test_pause_switches_it_off_and_resume_begins_anew(board: CellBoard, life: CellLife) -> None:
    await life.start()
    await life.prompt()
    await life.driver.suspend()
    assert list(board.cells()) == []
    await life.supervisor_dies()
    life.connect()
    life.driver = life.backend.recall(life.memory, str(life.directory))
    assert await life.driver.adopt(life.told()) is True
    await life.driver.resume()
    assert list(board.cells()) == ["motor"]
    await life._open_source()  # the fake's serial port comes and goes with the cell
    assert b"runPHI demo inmate" in await life.prompt()


async def test_a_paused_one_can_be_killed(life: CellLife) -> None:
    await life.start()
    await life.driver.suspend()
    life.kill()
    assert (await life.end()).code == 137


async def test_a_running_one_is_adopted(life: CellLife) -> None:
    await life.start()
    await life.prompt()
    await life.supervisor_dies()
    assert await life.adopt() is True
    life.type(b"echo here\n")
    await life.expect(b"\nhere\r\n")


async def test_a_failed_create_leaves_nothing(board: CellBoard, tmp_path: Path) -> None:
    board.rcpu_image.write_bytes(inmates.rcpu_image(b"#!/bin/sh"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"on": "cell load", "errno": "EBUSY", "dmesg": "Failed to set firmware for rcpu 0"}, "has been loaded alread"),
        ({"on": "cell load", "errno": "EINVAL", "dmesg": "rcpu ID 0 not valid"}, "does not have that remote processor"),
        ({"on": "cell load", "errno": "EINVAL", "dmesg": "Unable to load rcpu image x"}, "remoteproc did not load"),
    ]
    for number, (rule, told) in enumerate(cases):
        board.inject({**rule, "times": 1})
        backend = JailhouseBackend(board.config(), str(tmp_path))
        backend._machine.tool._places = backend._machine.tool._places._replace(
            kernel_log=str(board.place.root / "dmesg")
        )
        directory = tmp_path / f"failed{number}"
        directory.mkdir()
        driver = backend.driver(
            await backend.claim(motor(board), await backend.plan(motor(board)), directory.name), str(directory)
        )
        with pytest.raises(BackendError, match=told):
            await driver.create()
        assert len(links(board)) == 1
        await driver.bury()
        assert (links(board), list(board.cells()), backend.ledger.held()) == ([], [], ())


async def test_the_next_supervisor_removes_what_was_being_made(board: CellBoard, tmp_path: Path) -> None:
    first = JailhouseBackend(board.config(), str(tmp_path))
    plan = await first.claim(motor(board), await first.plan(motor(board)), "motor")
    directory = tmp_path / "motor"
    directory.mkdir()
    await first.driver(plan, str(directory)).create()  # and then it died
    assert len(links(board)) == 1
    second = JailhouseBackend(board.config(), str(tmp_path))
    await second.recall(first.remember(plan), str(directory)).bury()
    assert (links(board), list(board.cells()), second.ledger.held()) == ([], [], ())


async def test_links_without_a_record_are_swept_with_the_next_claim(board: CellBoard, tmp_path: Path) -> None:
    folder = board.place.firmware.parent
    (folder / firmware.name_of(str(tmp_path / "lost"))).symlink_to("/nowhere")
    (folder / firmware.name_of("/other/run/dir/lost")).symlink_to("/nowhere")
    backend = JailhouseBackend(board.config(), str(tmp_path))
    await backend.claim(motor(board), await backend.plan(motor(board)), "motor")
    assert links(board) == [firmware.name_of("/other/run/dir/lost")]


async def test_two_processors_two_cells_and_no_third(board: CellBoard, tmp_path: Path) -> None:
    backend = JailhouseBackend(board.config(), str(tmp_path))
    drivers = []
    for number in range(2):
        spec = motor(board, id=f"m{number}", console_port=f"port{number + 1}")
        directory = tmp_path / f"m{number}"
        directory.mkdir()
        drivers.append(backend.driver(await backend.claim(spec, await backend.plan(spec), spec.id), str(directory)))
        await drivers[-1].create()
    assert len(links(board)) == 2
    assert [assigned(board, number) for number in (0, 1, 2)] == ["", "0", "1"]
    with pytest.raises(PlanError, match="none is free; 'm0' has 0, 'm1' has 1"):
        await backend.plan(motor(board, id="m3"))
    for driver in drivers:
        await driver.bury()
    assert links(board) == []


async def test_a_firmware_directory_that_cannot_be_written_is_said(board: CellBoard, tmp_path: Path) -> None:
    backend = JailhouseBackend(board.config(firmware=str(tmp_path / "no" / "where")), str(tmp_path))
    directory = tmp_path / "motor"
    directory.mkdir()
    driver = backend.driver(
        await backend.claim(motor(board), await backend.plan(motor(board)), "motor"), str(directory)
    )
    with pytest.raises(RunphiError, match=r"reads images below jailhouse\.firmware"):
        await driver.create()
    await driver.bury()
    assert list(board.cells()) == []


async def test_coloured_cells_share_a_range(board: CellBoard, tmp_path: Path) -> None:
    backend = JailhouseBackend(board.config(), str(tmp_path))
    drivers = []
    for number, colors in enumerate(("0-3", "4-7")):
        spec = guest(board, id=f"c{number}", **annotated(colors=colors, console_port=f"port{number + 1}"))
        directory = tmp_path / spec.id
        directory.mkdir()
        drivers.append(backend.driver(await backend.claim(spec, await backend.plan(spec), spec.id), str(directory)))
        await drivers[-1].create()
    made = [codec.decode((board.place.run / f"{number}.cell").read_bytes()) for number in (1, 2)]
    rams = [next(part for part in cell.memory if part.flags & Mem.COLORED) for cell in made if isinstance(cell, Cell)]
    assert [(ram.phys_start, ram.colors) for ram in rams] == [(0x70000000, 0x0F), (0x70000000, 0xF0)]
    for driver in drivers:
        await driver.bury()
    assert list(board.cells()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_whole_walk_with_a_supervisor_that_dies(board: CellBoard, tmp_path: Path) -> None:
    os.link(board.rcpu_image, tmp_path / "demo-x86_64.elf")
    place = CellPlace(board, {})
    try:
        cell = place.running_cell("motor", annotations={"org.runphi.rpu": "1"})
        assert links(board) == [firmware.name_of(str(cell.record))]
        os.kill(int((place.run_dir / "supervisor.pid").read_text()), signal.SIGKILL)
        until(lambda: place.call("list").returncode == 0, "a new supervisor")
        cell.type(b"echo on\n")
        cell.expect(b"\non\r\n> ")
        cell.must("pause")
        assert cell.state()["status"] == "paused"
        assert (list(board.cells()), place.held()) == ([], {"motor"})
        cell.must("resume")
        cell.expect(b"runPHI demo inmate, cell\r\n> ")
        kill(cell, "KILL")
        assert cell.wait() == 137
        assert (list(board.cells()), place.held(), links(board)) == ([], set(), [])
    finally:
        left = place.close()
    assert not left, "left over:\n" + "\n".join(left)


# Section: the tool's own grammar and answers, as its source has them


def run(board: CellBoard, *words: str) -> tuple[int, str, str]:
    done = subprocess.run([TOOL, *words], env=board.env, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


async def test_the_omnivisors_tool(board: CellBoard, tmp_path: Path) -> None:
    backend = JailhouseBackend(board.config(), str(tmp_path))
    plan = await backend.plan(motor(board))
    (tmp_path / "m.cell").write_bytes(plan.files["motor.cell"])
    (board.place.firmware.parent / "m.elf").write_bytes(board.rcpu_image.read_bytes())
    assert "[-r | --rcpu RCPU_IMAGE_NAME RCPU_MASK] ...\n   cell start" in run(board, "--help")[1]
    assert run(board, "cell", "create", str(tmp_path / "m.cell")) == (0, "", "")
    assert run(board, "cell", "load", "motor", "-r", "m.elf")[1].startswith("Usage: ")
    assert run(board, "cell", "load", "motor", "-r", "m.elf", "0", "x")[2].startswith("opening -r: No such file")
    load = "JAILHOUSE_CELL_LOAD: "
    assert run(board, "cell", "load", "motor", "-r", "m.elf", "1") == (1, "", f"{load}Invalid argument\n")
    assert run(board, "cell", "load", "motor", "-r", "n.elf", "0") == (1, "", f"{load}No such file or directory\n")
    assert run(board, "cell", "load", "motor", "--rcpu", "m.elf", "0") == (0, "", "")
    assert run(board, "cell", "load", "motor", "--rcpu", "m.elf", "0") == (1, "", f"{load}Device or resource busy\n")
    assert run(board, "cell", "start", "motor") == (0, "", "")
    header, root, cell = run(board, "cell", "list")[1].splitlines()
    assert "Assigned rCPUs          Failed CPUs" in header
    assert (root.split()[-1], cell.split()) == ("1", ["1", "motor", "running", "0"])
    board.run("cell", "shutdown", "motor")
    (tmp_path / "again.cell").write_bytes(plan.files["motor.cell"].replace(b"motor", b"engin"))
    answer = run(board, "cell", "create", str(tmp_path / "again.cell"))
    assert answer == (1, "", "JAILHOUSE_CELL_CREATE: Invalid argument\n")
    assert "rCPU 0 is already assigned to a different cell" in (board.place.root / "dmesg").read_text()
    board.run("cell", "destroy", "motor")
    assert run(board, "cell", "create", str(tmp_path / "again.cell")) == (0, "", "")
