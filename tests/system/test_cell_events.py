# SPDX-License-Identifier: Apache-2.0
"""What happens to a cell besides its output: events, words on its console, and whose the hypervisor's lines are."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from runphi_async.testing.cellboard import TOOL, CellBoard
from runphi_async.testing.fake_jailhouse import machine
from runphi_async.testing.fake_jailhouse.ring import Ring
from tests.system.cellkit import CellPlace, board_in, kill, places
from tests.system.place import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.place import Container

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(180),
]
BANNER = b"runPHI demo inmate, cell\r\n> "


@pytest.fixture
def board(tmp_path: Path) -> Iterator[CellBoard]:
    with board_in(tmp_path) as made:
        yield made


@pytest.fixture
def place(board: CellBoard) -> Iterator[CellPlace]:
    with places(CellPlace, board) as make:
        yield make()


@pytest.fixture
def followed(board: CellBoard) -> Iterator[CellPlace]:
    """A place where the supervisor follows the hypervisor's console."""
    with places(CellPlace, board) as make:
        yield make(f'\n[hypervisor]\nconsole = "exec:{TOOL} console -f"\n')


def events(place: CellPlace, name: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in place.events(name) if event["event"] == kind]


def virtual(place: CellPlace, name: str) -> Container:
    cell = place.cell(name, annotations={"org.runphi.console-port": "virtual"})
    assert cell.created == 0, cell.error
    cell.must("start")
    cell.expect(BANNER)
    return cell


def test_cpus_that_leave_fail_and_come_back(place: CellPlace) -> None:
    cell = place.running_cell("two", annotations={"org.runphi.vcpus": "2"})
    (left,) = events(place, "two", "cpus-left")
    assert (left["cpus"], left["root"]) == ("1-2", "0,3-9")
    place.board.poke("two", "--park", "1")
    cell.expect(b"the hypervisor stopped CPU 1 of the cell; others go on")
    (failed,) = events(place, "two", "cpus-failed")
    assert (failed["cpus"], failed["state"]) == ("1", "running")
    kill(cell, "KILL")
    assert cell.wait() == 137
    (back,) = events(place, "two", "cpus-back")
    assert (back["cpus"], back["offline"]) == ("1-2", "")


def test_a_cpu_that_was_offline_before_stays_so_and_that_is_said(place: CellPlace) -> None:
    machine.online(place.board.place, 1, up=False)
    cell = place.running_cell("dark")
    cell.type(b"exit 0\n")
    assert cell.wait() == 0
    (back,) = events(place, "dark", "cpus-back")
    assert (back["cpus"], back["offline"]) == ("1", "1")
    assert "CPU 1 is the root system's again and stays offline" in place.log()


def test_what_the_console_had_lost_before_is_nobodys_loss(place: CellPlace) -> None:
    """On any board that has run for a while the first thing to be read is a gap; the guest's first line follows."""
    with place.board.place.mutex():
        Ring(place.board.place).write("z" * 5000 + "\n")
    cell = virtual(place, "late")
    kill(cell, "KILL")
    assert cell.wait() == 137
    assert events(place, "late", "console-lost") == []


def test_lost_bytes_of_the_virtual_console_are_told(place: CellPlace) -> None:
    cell = virtual(place, "lossy")
    place.board.poke("lossy", "--print", "x" * 5000 + "\r\n")
    cell.expect(b"bytes of the hypervisor's console were lost here: they came faster than they are read")
    (lost,) = until(lambda: events(place, "lossy", "console-lost"), "an event")
    assert lost["bytes"] >= 5000 - 2048
    kill(cell, "KILL")
    assert cell.wait() == 137


def test_what_was_printed_while_no_supervisor_ran_is_told_to_be_lost(place: CellPlace) -> None:
    cell = virtual(place, "gap")
    pid = int((place.run_dir / "supervisor.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    until(lambda: place.call("list").returncode == 0, "a new supervisor")
    cell.expect(b"what the cell printed while no supervisor ran is lost")
    until(lambda: [event["why"] for event in events(place, "gap", "console-lost")], "an event")
    place.board.poke("gap", "--print", "and on it goes\r\n")
    cell.expect(b"and on it goes\r\n")
    kill(cell, "KILL")
    assert cell.wait() == 137


@pytest.mark.parametrize("which", ["place", "followed"])
def test_the_hypervisors_words_about_a_cell_are_events(which: str, request: pytest.FixtureRequest) -> None:
    place: CellPlace = request.getfixturevalue(which)
    cell = virtual(place, "spoken")

    def said() -> list[str]:
        return [event["text"] for event in events(place, "spoken", "hypervisor")]

    until(lambda: 'Started cell "spoken"' in said(), "its start")
    place.board.poke("spoken", "--park", "1")
    assert cell.wait() == 134
    assert 'Parking CPU 1 (Cell: "spoken")' in said()


def test_lines_of_the_hypervisors_console_find_their_cell_again_behind_a_gap(followed: CellPlace) -> None:
    place = followed
    cell = virtual(place, "writer")
    beside = place.running_cell("beside", port=2)  # it runs, and cannot print there
    place.board.poke("writer", "--print", "y" * 5000 + "\r\n")
    file = place.path / "log" / "hypervisor.jsonl"

    def entries() -> list[dict[str, Any]]:
        return [json.loads(line) for line in file.read_bytes().splitlines() if line.endswith(b"}")]

    until(lambda: any(entry.get("missed") for entry in entries()), "a gap")
    numbers = iter(range(1000))

    def attributed() -> bool:
        place.board.poke("writer", "--print", f"line {next(numbers)}\r\n")
        return any(entry.get("text", "").startswith("line ") and entry.get("cell") == "writer" for entry in entries())

    until(attributed, "a line whose cell is known")
    assert not any(entry.get("cell") == "beside" for entry in entries() if entry["kind"] == "inmate")
    for each in (cell, beside):
        kill(each, "KILL")
        assert each.wait() == 137
