# SPDX-License-Identifier: Apache-2.0
"""Containers that ask for no partition behave exactly as with runc."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.testing.containerd import wait_until
from tests.engine.harness import ANSWER, BUSYBOX, exit_code

if TYPE_CHECKING:
    from tests.engine.harness import Engine, Runtime


def test_output_and_exit_code(engine: Engine, plain: Runtime) -> None:
    words = ("/bin/sh", "-c", "echo out; echo err >&2; hostname >/dev/null; exit 21")
    done = engine.ctr(*engine.run_args(BUSYBOX, engine.name(), *words, runtime=plain.binary))
    assert (done.returncode, done.stdout, done.stderr) == (21, "out\n", "err\n")


def test_exec_pause_ps_and_kill(engine: Engine, plain: Runtime) -> None:
    name = engine.name()
    words = engine.run_args(BUSYBOX, name, "/bin/sleep", "1000", runtime=plain.binary, detach=True)
    engine.must(*words)
    done = engine.ctr("tasks", "exec", "--exec-id", "e1", name, "/bin/sh", "-c", "echo inside; exit 6")
    assert (done.returncode, done.stdout) == (6, "inside\n")
    engine.must("tasks", "pause", name)
    assert engine.status(name) == "PAUSED"
    engine.must("tasks", "resume", name)
    assert len(engine.must("tasks", "ps", name).splitlines()) == 2
    engine.must("tasks", "kill", "-s", "KILL", name)
    wait_until(lambda: engine.status(name) == "STOPPED", ANSWER, "the container's end")
    assert engine.delete_task(name) == 137


def test_terminal(engine: Engine, plain: Runtime) -> None:
    words = engine.run_args(BUSYBOX, engine.name(), "/bin/sh", runtime=plain.binary, tty=True)
    child = engine.spawn(*words)
    child.expect(b"# ")
    child.send(b"echo $((6*7))\r")
    child.expect(rb"\n42\r+\n")
    child.send(b"exit 13\r")
    assert exit_code(child) == 13


def test_missing_program_gives_runcs_own_error(engine: Engine, plain: Runtime) -> None:
    done = engine.ctr(*engine.run_args(BUSYBOX, engine.name(), "/bin/missing", runtime=plain.binary))
    assert done.returncode == 1
    assert "OCI runtime create failed: runc create failed" in done.stderr
    assert "/bin/missing" in done.stderr


def test_passed_through_container_leaves_no_supervisor_record(engine: Engine, plain: Runtime) -> None:
    name = engine.name()
    engine.ctr(*engine.run_args(BUSYBOX, name, "/bin/true", runtime=plain.binary))
    assert not (engine.run_dir / name).exists()
