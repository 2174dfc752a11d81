# SPDX-License-Identifier: Apache-2.0
"""What sysfs shows, on trees as recorded, and what it means for a cell's container."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.base import Evidence
from backends.jailhouse import ending, firmware, sysfs
from backends.jailhouse.ending import Cause, Phase
from backends.jailhouse.sysfs import CellSeen, View

if TYPE_CHECKING:
    from pathlib import Path

ROOT = CellSeen(0, "qemu-arm64", "running", (0, 2, 3))


def tree(path: Path, enabled: str = "1\n", **cells: tuple[str, str, str, str]) -> str:
    (path / "cells").mkdir()
    (path / "enabled").write_text(enabled)
    (path / "console").write_bytes(b"Activating hypervisor\n")
    for number, content in cells.items():
        folder = path / "cells" / number.removeprefix("c")
        folder.mkdir()
        names = ("name", "state", "cpus_assigned_list", "cpus_failed_list")
        for name, text in zip(names, content, strict=True):
            (folder / name).write_text(text)
    return str(path)


def test_no_module(tmp_path: Path) -> None:
    assert sysfs.look(str(tmp_path / "none")) == View()


def test_loaded_and_not_enabled(tmp_path: Path) -> None:
    assert sysfs.look(tree(tmp_path, "0\n")) == View(module=True)


def test_cells_are_read_as_they_are(tmp_path: Path) -> None:
    directory = tree(
        tmp_path,
        c10=("my cell\n", "shut down\n", "\n", "\n"),
        c0=("qemu-arm64\n", "running\n", "0,2-3\n", "\n"),
        c2=("two\n", "failed\n", "1,4\n", "1\n"),
    )
    view = sysfs.look(directory)
    assert view.cells == (
        ROOT,
        CellSeen(2, "two", "failed", (1, 4), (1,)),
        CellSeen(10, "my cell", "shut down", ()),
    )
    assert view.root == ROOT
    assert view.console == b"Activating hypervisor\n"
    assert [seen.name for seen in view.guests()] == ["two", "my cell"]


def test_the_console_is_not_read_while_all_cells_run(tmp_path: Path) -> None:
    assert sysfs.look(tree(tmp_path, c0=("root\n", "running\n", "0\n", "\n"))).console == b""


@pytest.mark.parametrize("broken", ["name", "state", "cpus_assigned_list", "cpus_failed_list"])
def test_a_cell_destroyed_meanwhile_is_no_error(tmp_path: Path, broken: str) -> None:
    directory = tree(tmp_path, c0=("root\n", "running\n", "0\n", "\n"), c1=("x\n", "running\n", "1\n", "\n"))
    (tmp_path / "cells" / "1" / broken).unlink()
    assert [cell.name for cell in sysfs.look(directory).cells] == ["root"]


STARTED = b'Cell "c" can be loaded\nStarted cell "c"\n'


@pytest.mark.parametrize(
    ("console", "outside"),
    [
        (STARTED, False),
        (STARTED + b'hello\r\nCell "c" can be loaded\n', True),
        (STARTED + b'Cell "c2" can be loaded\n', False),
        (b'half a line\nCell "c" can be loaded\n', True),
        (b"a flood that pushed everything else out\r\n", False),
        (b"", False),
    ],
)
def test_a_stop_from_outside_is_on_the_console(console: bytes, outside: bool) -> None:
    assert sysfs.stopped_from_outside(console, "c") is outside


def view(state: str, failed: tuple[int, ...] = (), console: bytes = STARTED) -> View:
    return View(True, True, (ROOT, CellSeen(1, "c", state, (1,), failed)), console)


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (view("running"), None),
        (view("running/locked"), None),
        (view("running", (1,)), None),
        (view("shut down"), Cause.DONE),
        (view("shut down", console=STARTED + b'Cell "c" can be loaded\n'), Cause.STOPPED),
        (view("failed"), Cause.FAILED),
        (view("failed", (1,)), Cause.PARKED),
        (view("invalid"), Cause.INVALID),
        (view("Comm ABI mismatch"), Cause.INVALID),
        (View(True, True, (ROOT,)), Cause.VANISHED),
        (View(True), Cause.DISABLED),
        (View(), Cause.DISABLED),
        (None, Cause.SILENT),
    ],
)
def test_why_a_running_cell_ended(seen: View | None, cause: Cause | None) -> None:
    assert ending.judge(Phase.STARTED, "c", seen, asked=False) is cause


@pytest.mark.parametrize("phase", [Phase.LOADED, Phase.STARTING, Phase.PAUSED])
def test_a_cell_that_is_not_meant_to_run_is_shut_down_and_fine(phase: Phase) -> None:
    assert ending.judge(phase, "c", view("shut down"), asked=False) is None
    assert ending.judge(phase, "c", View(True, True, (ROOT,)), asked=False) is Cause.VANISHED


def test_a_stop_of_ours_is_not_taken_for_somebody_elses() -> None:
    stopped = view("shut down", console=STARTED + b'Cell "c" can be loaded\n')
    assert ending.judge(Phase.STARTED, "c", stopped, asked=True) is None


@pytest.mark.parametrize("cause", list(Cause))
def test_only_a_guest_that_is_done_ends_with_0(cause: Cause) -> None:
    found = ending.verdict(cause, (1,), Evidence(None, 0, booted=True))
    assert (found.code == 0) is (cause is Cause.DONE)
    assert found.reason


def test_words_for_ends() -> None:
    killed = Evidence(15, 0, booted=True)
    assert ending.verdict(Cause.KILLED, (), killed) == (143, "killed by signal 15")
    assert ending.verdict(None, (), killed) == (143, "killed by signal 15")
    assert ending.verdict(Cause.PARKED, (1, 2), killed) == (
        134,
        "the guest broke out of its cell: the hypervisor stopped CPUs 1-2",
    )


def test_remote_processors_are_read_where_the_hypervisor_shows_them(tmp_path: Path) -> None:
    folder = tree(tmp_path, c1=("motor\n", "running\n", "\n", "\n"))
    (tmp_path / "cells" / "1" / "rcpus_assigned_list").write_text("0-1\n")
    assert sysfs.look(folder).cells == (CellSeen(1, "motor", "running", (), (), (0, 1)),)


def test_a_cell_that_pause_has_destroyed_is_not_missed() -> None:
    gone = View(True, True, (ROOT,))
    assert ending.judge(Phase.AWAY, "motor", gone, asked=False) is None
    assert ending.judge(Phase.STARTED, "motor", gone, asked=False) is Cause.VANISHED
    assert ending.judge(Phase.STARTED, "motor", gone, asked=True) is None  # we are destroying it
    assert ending.judge(Phase.AWAY, "motor", None, asked=False) is Cause.SILENT


def test_the_link_of_an_image_has_a_name_that_the_tool_can_copy(tmp_path: Path) -> None:
    names = {firmware.name_of(f"{tmp_path}/{record}") for record in ("a", "b" * 200, "a@2")}
    assert len(names) == 3
    assert max(map(len, names)) <= firmware.NAME_MAX
    assert all(name.startswith(firmware.prefix(str(tmp_path))) for name in names)
    assert firmware.name_of("/other/a") not in names
