# SPDX-License-Identifier: Apache-2.0
"""Cells as containers, in a real supervisor on the fake board: the whole walk, and everything that goes wrong."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from backends.jailhouse import codec
from runphi_async.board.claims import Claim, Kind, Owner
from runphi_async.board.ledger import Ledger
from runphi_async.host.files import boot_id
from runphi_async.testing.fake_jailhouse import board as fake
from runphi_async.testing.fake_jailhouse import machine
from tests.system.cellkit import CellPlace, board_in, kill, places
from tests.system.place import ended, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runphi_async.testing.cellboard import CellBoard


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(180),
]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[CellBoard]:
    with board_in(tmp_path) as made:
        yield made


@pytest.fixture
def place_with(board: CellBoard) -> Iterator[Callable[..., CellPlace]]:
    with places(CellPlace, board) as make:
        yield make


@pytest.fixture
def place(place_with: Callable[..., CellPlace]) -> CellPlace:
    return place_with()


def test_the_whole_walk(place: CellPlace) -> None:
    cell = place.cell("walk")
    assert cell.created == 0, (cell.error, place.log())
    assert cell.state()["status"] == "created"
    record = cell.record
    assert {"walk.cell", "walk.c", "configwalk.conf", "cell.phase"} <= {path.name for path in record.iterdir()}
    assert list(place.board.cells()) == ["walk"]
    assert place.held() == {"walk"}
    cell.must("start")
    cell.expect(b"runPHI demo inmate, cell\r\n> ")
    assert cell.state()["status"] == "running"
    cell.type(b"echo hello\n")
    cell.expect(b"\nhello\r\n> ")
    cell.must("pause")
    assert cell.state()["status"] == "paused"
    assert (place.board.place.sysfs / "cells/1/state").read_text() == "shut down\n"
    cell.must("resume")
    cell.expect(b"runPHI demo inmate, cell\r\n> ")
    cell.type(b"exit 0\n")
    assert cell.wait() == 0
    # whoever sees the end finds the board free
    assert list(place.board.cells()) == []
    assert place.held() == set()
    assert cell.state()["annotations"]["org.runphi.exit-reason"] == "the guest ended by itself"
    assert b"\nhello\r\n" in cell.console_log()
    cell.must("delete")


def test_kill_and_delete(place: CellPlace) -> None:
    cell = place.running_cell("kill")
    kill(cell, "KILL")  # also a guest that does nothing any more is only a CPU to be stopped
    assert cell.wait() == 137
    cell.must("delete")
    forced = place.running_cell("forced")
    forced.must("delete", "--force")
    assert forced.wait() == 137
    assert list(place.board.cells()) == []
    assert place.held() == set()


def test_a_name_that_is_too_long_for_a_cell(place: CellPlace) -> None:
    name = "5" + "abcdef0123456789" * 4
    cell = place.running_cell(name)
    (short,) = place.board.cells()
    assert len(short) <= 31
    assert not short[0].isdigit()
    assert f"cell = {short}\n" in (cell.record / f"config{cell.record.name}.conf").read_text()
    cell.type(b"exit 3\n")
    assert cell.wait() == 1
    assert "says that it has failed" in cell.state()["annotations"]["org.runphi.exit-reason"]


def test_eight_cells_at_once(place: CellPlace) -> None:
    names = [f"many{number}" for number in range(1, 9)]
    place.must("version")
    with ThreadPoolExecutor(8) as pool:
        cells = list(pool.map(lambda number: place.cell(f"many{number}", port=number), range(1, 9)))
        assert [cell.created for cell in cells] == [0] * 8, [cell.error for cell in cells]
        assert sorted(place.board.cells()) == names
        list(pool.map(lambda cell: cell.must("start"), cells))
    for cell in cells:
        cell.expect(b"> ")
        cell.type(f"echo I am {cell.name}\n".encode())
    for cell in cells:
        cell.expect(f"\nI am {cell.name}\r\n> ".encode())
    ninth = place.cell("many9", port=9)
    assert ninth.created == 0, ninth.error  # CPU 9 is left, and it is the last
    tenth = place.cell("many10", port=9)
    assert tenth.created == 1
    assert "cannot give" in tenth.error
    assert "many9" in tenth.error
    for cell in cells:
        cell.type(b"exit 0\n")
    assert [cell.wait() for cell in cells] == [0] * 8
    assert place.held() == {"many9"}


def test_the_supervisor_is_killed(place: CellPlace) -> None:
    running, waiting, paused = (
        place.running_cell("run"),
        place.cell("wait", port=2),
        place.running_cell("pause", port=3),
    )
    paused.must("pause")
    place.kill_supervisor()
    assert [cell.state()["status"] for cell in (running, waiting, paused)] == ["running", "created", "paused"]
    running.type(b"echo still here\n")
    running.expect(b"\nstill here\r\n> ")
    waiting.must("start")
    waiting.expect(b"> ")
    paused.must("resume")
    paused.expect(b"> ")
    for cell in (running, waiting, paused):
        cell.type(b"exit 0\n")
        assert cell.wait() == 0
    assert place.held() == set()
    assert list(place.board.cells()) == []


def test_an_end_while_no_supervisor_lives(place: CellPlace) -> None:
    cell = place.running_cell("alone")
    os.kill(place.pid(), signal.SIGSTOP)
    place.board.poke("alone", "--state", "3")
    place.kill_supervisor()
    assert cell.wait() == 1
    assert place.held() == set()
    assert list(place.board.cells()) == []


def test_a_supervisor_that_dies_between_an_end_and_the_clean_up(place: CellPlace) -> None:
    cell = place.running_cell("half")
    record, board = cell.record, place.board
    # The tool waits before it destroys: by then the end is saved, and nobody was told.
    board.inject({"on": "cell destroy", "delay": 5, "times": 1})
    cell.type(b"exit 3\n")
    until(lambda: json.loads((record / "state.json").read_text())["status"] == "stopped", "the end in the record")
    place.kill_supervisor()
    assert cell.wait() == 1
    until(lambda: not list(board.cells()), "the end of the cell")
    assert place.held() == set()
    assert (record / "cell.phase").read_text() == "none\n"


def test_an_init_killed_while_no_supervisor_lives(place: CellPlace) -> None:
    cell = place.running_cell("orphan")
    os.kill(place.pid(), signal.SIGSTOP)
    os.kill(cell.pid, signal.SIGKILL)
    place.kill_supervisor()
    assert cell.state()["status"] == "stopped"
    assert list(place.board.cells()) == []
    assert place.held() == set()


@pytest.mark.parametrize(
    ("do", "code", "reason"),
    [
        (("destroy",), 137, "somebody else destroyed the cell"),
        (("shutdown",), 137, "somebody else shut the cell down"),
        (("--park", "1"), 134, "the guest broke out of its cell: the hypervisor stopped CPU 1"),
        (("--state", "3"), 1, "the guest says that it has failed"),
        (("--vanish",), 137, "somebody else destroyed the cell"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_ends_that_nobody_asked_for(place: CellPlace, do: tuple[str, ...], code: int, reason: str) -> None:
    cell = place.running_cell("c")
    if do[0].startswith("--"):
        place.board.poke("c", *do)
    else:
        place.board.run("cell", do[0], "--name", "c")
    assert cell.wait() == code
    assert cell.state()["annotations"]["org.runphi.exit-reason"] == reason
    assert place.held() == set()
    assert list(place.board.cells()) == []


def test_a_create_that_fails_leaves_nothing(place: CellPlace) -> None:
    place.board.inject({"on": "cell load", "errno": "EINVAL", "times": 1})
    cell = place.cell("bad")
    assert cell.created == 1
    assert "an image does not fit into a LOADABLE region" in cell.error
    assert list(place.board.cells()) == []
    assert place.held() == set()
    assert place.cell("good").created == 0


def test_a_guest_that_refuses(place: CellPlace) -> None:
    cell = place.running_cell("no")
    place.board.inject({"on": "cell shutdown", "errno": "EPERM", "times": 1})
    kill(cell, "TERM")
    assert cell.wait() == 143
    assert b"the cell refuses to shut down; trying again" in cell.rest()


def test_a_tool_that_hangs(place_with: Callable[..., CellPlace]) -> None:
    place = place_with(deadline_seconds=5)
    cell = place.running_cell("hang")
    other = place.running_cell("other", port=2)
    place.board.inject({"on": "cell shutdown", "hang": "process", "times": 1})
    kill(cell, "KILL")
    other.type(b"echo alive\n")
    other.expect(b"\nalive\r\n")
    assert cell.wait() == 137
    assert "the board hangs and must be reset" in cell.state()["annotations"]["org.runphi.exit-reason"]
    until(lambda: "the board must be reset" in place.log(), "words about it")


def test_pause_is_refused_by_default(place_with: Callable[..., CellPlace]) -> None:
    place = place_with(pause="refuse")
    cell = place.running_cell("firm")
    said = cell.refused("pause")
    assert "cannot pause a cell" in said
    assert 'set pause = "shutdown" in [jailhouse]' in said
    assert cell.state()["status"] == "running"


def test_no_hypervisor(place: CellPlace) -> None:
    place.board.run("disable")
    cell = place.cell("none")
    assert cell.created == 1
    assert (
        "cannot use Jailhouse: Jailhouse is not enabled; enable it with the board's system configuration" in cell.error
    )


def test_the_virtual_console(place: CellPlace) -> None:
    """Output only: what is typed goes nowhere, and the person is told."""
    cell = place.cell("virt", annotations={"org.runphi.console-port": "virtual"})
    assert cell.created == 0, cell.error
    cell.must("start")
    cell.expect(b"runPHI demo inmate, cell\r\n> ")
    cell.type(b"echo hello\n")
    cell.expect(b"the hypervisor's console is output only")
    other = place.running_cell("beside")  # prints on its own port, so the lines are still the first one's
    place.board.poke("virt", "--print", "a line\r\n")
    assert b"beside" not in cell.expect(b"a line\r\n")
    place.board.poke("virt", "--print", "the last one\r\n")
    kill(cell, "KILL")
    assert cell.wait() == 137
    assert b"the last one\r\n" in cell.rest()
    other.type(b"exit 0\n")
    assert other.wait() == 0


def test_doctor_looks_at_the_board(place: CellPlace) -> None:
    assert "Jailhouse on QEMU virt, arm64" in place.call("doctor").stdout
    place.board.run("disable")
    assert "Jailhouse is not enabled" in place.call("doctor").stdout


def test_a_cpu_that_was_offline_before_stays_so_and_is_told_of(place: CellPlace) -> None:
    """Jailhouse brings back only the CPUs that it took offline itself."""
    machine.online(place.board.place, 1, up=False)
    cell = place.running_cell("cold")
    assert "CPUs that have left the root system: 1" in place.log()
    kill(cell, "KILL")
    assert cell.wait() == 137
    until(lambda: "CPU 1 is the root system's again and stays offline" in place.log(), "words about it")
    assert "CPU 1 of the root cell is offline: `jailhouse disable` would fail half way" in place.call("doctor").stdout
    machine.online(place.board.place, 1, up=True)


# Section: the ledger


def claim(place: CellPlace, owner: str, cell: str, cpu: int) -> None:
    """Claim as a supervisor did that died before it made a record, or whose record somebody removed."""
    ledger = Ledger(str(place.run_dir / "ledger.db"), boot_id())
    ledger.claim(Owner(owner, boot_id(), cell), [Claim(Kind.CPU, cpu, cpu + 1)])


def test_one_id_in_two_roots_makes_two_cells(place: CellPlace) -> None:
    one = place.running_cell("same")
    two = place.running_cell("same", root=place.path / "root2", port=2)
    names = list(place.board.cells())
    assert len(set(names)) == 2
    assert "same" in names
    assert len(place.held()) == 2
    for cell in (one, two):
        cell.type(b"echo I am one\n")
        cell.expect(b"\nI am one\r\n> ")
    one.type(b"exit 0\n")
    assert one.wait() == 0
    assert list(place.board.cells()) == [name for name in names if name != "same"]
    two.type(b"echo still here\n")
    two.expect(b"\nstill here\r\n> ")
    again = place.running_cell("next", port=3)
    two.must("delete", "--force")
    assert list(place.board.cells()) == ["next"]
    assert again.state()["status"] == "running"


def test_a_name_that_somebody_else_gave_a_cell(place: CellPlace) -> None:
    cell = place.running_cell("mine")
    taken = fake.small_cell("taken", (5,), ram=0x7F00_0000)
    path = place.board.image.parent / "taken.cell"
    path.write_bytes(codec.encode(taken))
    place.board.run("cell", "create", str(path))
    own = place.running_cell("taken", port=2)
    names = list(place.board.cells())
    assert {"mine", "taken"} < set(names)
    assert len(names) == 3
    own.must("delete", "--force")
    assert sorted(place.board.cells()) == ["mine", "taken"]
    cell.type(b"exit 0\n")
    assert cell.wait() == 0


def test_a_new_supervisor_looks_over_the_ledger(place: CellPlace) -> None:
    """What stands for nothing is freed; what still exists is kept and told of, in log, events and doctor."""
    cell = place.running_cell("live")
    claim(place, "vanished", "vanished", 6)
    claim(place, "orphan", "orphan", 7)
    for name, cpu, ram in (("orphan", 7, 0x7F10_0000), ("stranger", 8, 0x7F20_0000)):
        path = place.board.image.parent / f"{name}.cell"
        path.write_bytes(codec.encode(fake.small_cell(name, (cpu,), ram=ram)))
        place.board.run("cell", "create", str(path))
    # the live one's CPUs are not what it claimed: somebody edited the ledger by hand
    with closing(sqlite3.connect(place.run_dir / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE claim SET start = 9, end = 10 WHERE owner = 'live' AND kind = 'cpu'")
    place.kill_supervisor()
    # it answers before it has compared its accounts
    until(lambda: "cell 'stranger' on CPUs 8 was made" in place.log(), "the ledger is looked over")
    assert place.held() == {"live", "orphan"}
    log = place.log()
    assert "ledger: vanished: its cell 'vanished' does not exist any more: freed" in log
    assert "ledger: orphan: its cell 'orphan' is there, and its container's record is gone" in log
    assert "ledger: nobody: cell 'stranger' on CPUs 8 was made by somebody else" in log
    problem = "its cell 'live' has CPUs 1, it claimed 9"
    assert [event["problem"] for event in place.events("live") if event["event"] == "ledger"] == [problem]
    said = place.call("doctor").stdout
    for text in (f"ledger: live: {problem}", "ledger: orphan: its cell 'orphan' is there", "cell 'stranger' on CPUs 8"):
        assert text in said
    assert "vanished" not in said
    place.board.run("cell", "destroy", "--name", "orphan")
    place.kill_supervisor()
    until(lambda: place.held() == {"live"}, "the ledger is looked over")
    cell.type(b"exit 0\n")
    assert cell.wait() == 0
    assert place.held() == set()


def test_a_board_that_hangs_takes_no_threads(place: CellPlace) -> None:
    """sysfs that never answers: the supervisor goes on, says so, and works again when it answers."""
    place.must("version")
    enabled = place.board.place.sysfs / "enabled"
    content = enabled.read_bytes()
    enabled.unlink()
    os.mkfifo(enabled)
    try:
        with ThreadPoolExecutor(8) as pool:
            said = [answer.stdout for answer in pool.map(lambda _: place.call("doctor"), range(8))]
        assert all("no answer within" in text or "never came back" in text for text in said)
        assert "reads of sysfs never came back" in said[-1]
        assert "the board must be reset" in said[-1]
        assert place.cell("none").created == 1
        assert place.call("map").returncode == 1
        assert place.call("list").returncode == 0
        pid = place.pid()
        os.kill(pid, signal.SIGTERM)  # it ends although its threads do not
        ended(pid)
        assert "thread(s) have not come back" in place.log()
        assert place.call("list").returncode == 0  # the next one
        assert "no answer within" in place.call("doctor").stdout
    finally:
        # Who waits for a writer finds one, then the end of the file. A reader that comes later finds the file.
        fifo = enabled.rename(enabled.with_name("hanging"))
        enabled.write_bytes(content)
        os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))
        fifo.unlink()
    until(lambda: "Jailhouse on QEMU virt" in place.call("doctor").stdout, "an answer")
