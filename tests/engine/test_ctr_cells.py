# SPDX-License-Identifier: Apache-2.0
"""Cells under containerd, on the fake board: run, attach, logs, pause, kill, delete, and a killed supervisor."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pexpect
import pytest

from runphi_async.testing.cellboard import CellBoard
from runphi_async.testing.containerd import wait_until
from tests.engine.harness import ANSWER, BUSYBOX, DEMO, Engine, exit_code

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)

BANNER = rb"runPHI demo inmate, cell\r+\n> "


class CellEngine(Engine):
    """A containerd whose demo guests are cells."""

    board: CellBoard

    def words(self, name: str, *, tty: bool = False, detach: bool = False, port: int | str = 1) -> list[str]:
        options = (
            "--annotation", "org.runphi.backend=jailhouse",
            "--annotation", f"org.runphi.console-port={port if isinstance(port, str) else f'port{port}'}",
        )  # fmt: skip
        env = {"INMATE": f"host:{self.board.image}"}
        return self.run_args(DEMO, name, tty=tty, detach=detach, env=env, options=options)

    def linux(self, *command: str, tty: bool = False) -> list[str]:
        """Words that run a process of the busybox image in a Linux cell."""
        options = (
            "--annotation", "org.runphi.backend=jailhouse",
            "--annotation", "org.runphi.console-port=port1",
        )  # fmt: skip
        return self.run_args(BUSYBOX, self.name("linux"), *command, tty=tty, env={"LINUX": "1"}, options=options)

    def cell(self, name: str, *, port: int | str = 1) -> pexpect.spawn:
        """A cell on a terminal, at its prompt."""
        child = self.spawn(*self.words(name, tty=True, port=port))
        child.expect(BANNER)
        return child


@pytest.fixture(scope="module")
def board(place: Path) -> Iterator[CellBoard]:
    folder = place / "b"
    folder.mkdir()
    made = CellBoard(folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def cells(place: Path, images: list[Path], board: CellBoard) -> Iterator[CellEngine]:
    if os.geteuid() != 0:
        pytest.skip("containerd needs root")
    config = place / "cells.toml"
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in board.settings().items())
    config.write_text(
        f'[log]\ndir = "{place}/cl"\n[inmate]\nhost_paths = ["{board.image.parent}"]\n[jailhouse]\n{settings}\n'
    )
    env = {"RUNPHI_CONFIG": str(config), "FAKE_JAILHOUSE": str(board.place.root)}
    engine = CellEngine(place / "cs", place / "cr", f"rpc{os.getpid()}", env)
    engine.board = board
    try:
        engine.start()
        engine.import_images([path for path in images if path.name.startswith(("demo", "busybox"))])
        yield engine
    finally:
        left = engine.stop()
    assert not left, "left over after the module:\n" + "\n".join(left)


@pytest.fixture(autouse=True)
def swept(cells: CellEngine) -> Iterator[None]:
    """Every test ends with a free board."""
    yield
    cells.sweep()
    wait_until(lambda: list(cells.board.cells()) == [], ANSWER, "a free board")


def say(child: pexpect.spawn, text: str) -> None:
    child.send(f"echo {text}\n".encode())
    child.expect(rb"\n" + text.encode() + rb"\r+\n> ")


def test_a_cell_on_a_terminal_lives_in_both_directions(cells: CellEngine) -> None:
    name = cells.name("cell")
    child = cells.cell(name)
    assert list(cells.board.cells()) == [name]
    assert cells.status(name) == "RUNNING"
    say(child, "hello from containerd")
    child.send(b"exit 0\n")
    assert exit_code(child) == 0


def test_a_cell_on_pipes_and_its_failure(cells: CellEngine) -> None:
    child = cells.pipe(*cells.words(cells.name("cell")))
    child.expect(BANNER)
    child.send(b"echo piped\nexit 3\n")
    assert child.finish() == 1
    assert b"\npiped\r\n" in child.seen


def test_attach_logs_pause_kill_and_delete(cells: CellEngine) -> None:
    name = cells.name("cell")
    starter = cells.spawn(*cells.words(name, tty=True, detach=True))
    assert exit_code(starter) == 0, starter.before
    child = cells.spawn("tasks", "attach", name)
    say(child, "attached")
    assert "attached" in cells.runphi("logs", name).stdout
    cells.must("tasks", "pause", name)
    assert cells.status(name) == "PAUSED"
    cells.must("tasks", "resume", name)
    child.expect(BANNER)  # from its beginning
    say(child, "again")
    cells.must("tasks", "kill", "-s", "SIGKILL", name)
    child.expect(pexpect.EOF)
    assert list(cells.board.cells()) == []
    cells.must("containers", "delete", name)


def test_cells_side_by_side_outlive_their_supervisor(cells: CellEngine) -> None:
    names = [cells.name("cell") for _ in range(8)]
    children = [cells.cell(name, port=port) for port, name in enumerate(names, 1)]
    # the banner may be here before the verb is answered
    wait_until(lambda: {cells.status(name) for name in names} == {"RUNNING"}, ANSWER, "running cells")
    old = cells.supervisor_pid()
    assert old is not None
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: cells.supervisor_pid() not in (None, old), ANSWER, "a new supervisor")
    for number, child in enumerate(children):
        say(child, f"still here {number}")
        child.send(b"exit 0\n")
        assert exit_code(child) == 0


@pytest.mark.parametrize("port", ["con0", "shm0"])
def test_a_console_in_shared_memory_outlives_the_supervisor(cells: CellEngine, port: str) -> None:
    name = cells.name("cell")
    child = cells.cell(name, port=port)
    say(child, "both ways")
    wait_until(lambda: cells.status(name) == "RUNNING", ANSWER, "a running cell")
    old = cells.supervisor_pid()
    assert old is not None
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: cells.supervisor_pid() not in (None, old), ANSWER, "a new supervisor")
    say(child, "still both ways")
    child.send(b"spam 2000\n")
    child.expect(rb"line 0001999\r+\nline 0002000\r+\n> ")
    child.send(b"exit 0\n")
    assert exit_code(child) == 0


def test_a_console_without_input_says_so(cells: CellEngine) -> None:
    name = cells.name("cell")
    child = cells.spawn(*cells.words(name, tty=True, port="virtual"))
    child.expect(rb"runphi: this console is output only: the hypervisor's console takes no input\r+\n")
    child.expect(BANNER)
    state = json.loads(cells.runphi("--root", f"/run/containerd/runc/{cells.namespace}", "state", name).stdout)
    assert state["annotations"]["org.runphi.console-input"] == "no"
    cells.must("tasks", "kill", "-s", "SIGKILL", name)
    assert exit_code(child) == 137


def test_a_cell_that_somebody_destroys_ends_its_container(cells: CellEngine) -> None:
    name = cells.name("cell")
    child = cells.cell(name)
    cells.board.run("cell", "destroy", "--name", name)
    assert exit_code(child) == 137


def test_a_linux_cell_on_a_terminal(cells: CellEngine) -> None:
    child = cells.spawn(*cells.linux("/bin/sh", tty=True))
    child.expect(rb"# ")
    child.send(b"echo answer $((40 + 2)); [ -t 0 ] && echo on a terminal\n")
    child.expect(rb"\nanswer 42\r+\non a terminal\r+\n")
    child.send(b"exit 7\n")
    assert exit_code(child) == 7


def test_a_linux_cell_on_pipes(cells: CellEngine) -> None:
    done = cells.ctr(*cells.linux("/bin/sh", "-c", "echo out; exit 3"))
    assert (done.returncode, done.stdout) == (3, "out\n")
