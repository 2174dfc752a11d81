# SPDX-License-Identifier: Apache-2.0
"""What containerd does with a bare-metal guest: pause, kill, metrics, delete, and errors as ``ctr`` shows."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

from runphi_async.testing.containerd import RUNPHI, wait_until
from tests.engine.harness import BANNER, BUSYBOX, DEMO, INMATE, PROMPT, command, exit_code, spam_lines

if TYPE_CHECKING:
    from tests.engine.harness import Engine

pytestmark = pytest.mark.qemu

#: long enough for bytes on their way through FIFOs, shim and client to arrive
QUIET = 0.7
#: how often the shortest-lived guest is run
SHORT_RUNS = 30
SIDE_BY_SIDE = 10


def read_until_quiet(child: pexpect.spawn) -> bytes:
    """Everything that still arrives until nothing comes for a while."""
    seen = b""
    while True:
        try:
            seen += child.read_nonblocking(65536, timeout=QUIET)
        except pexpect.TIMEOUT:
            return seen


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_pause_stops_the_guest_and_resume_continues_it(engine: Engine) -> None:
    name = engine.name()
    child = engine.demo_detached(name)
    child.send(b"spam 9000000\r")
    child.expect(rb"line 0000100\r+\n")
    engine.must("tasks", "pause", name)
    assert engine.status(name) == "PAUSED"
    read_until_quiet(child)
    (guest,) = engine.guests()
    before = cpu_ticks(guest)
    assert read_until_quiet(child) == b""
    assert cpu_ticks(guest) - before <= 2
    engine.must("tasks", "resume", name)
    assert engine.status(name) == "RUNNING"
    child.expect(rb"line \d{7}\r+\n")
    child.send(b"\x03")
    child.expect(rb"\^C\r+\n")
    child.expect(PROMPT)


def test_input_during_pause_arrives_after_resume(engine: Engine) -> None:
    name = engine.name()
    child = engine.demo_detached(name)
    engine.must("tasks", "pause", name)
    child.send(b"echo late\r")
    assert read_until_quiet(child) == b""
    engine.must("tasks", "resume", name)
    child.expect(rb"\nlate\r+\n")


def test_a_paused_guest_can_be_killed(engine: Engine) -> None:
    name = engine.name()
    child = engine.demo_detached(name)
    engine.must("tasks", "pause", name)
    engine.must("tasks", "kill", "-s", "KILL", name)
    assert exit_code(child) == 137


@pytest.mark.parametrize(("name_of_signal", "code"), [("TERM", 143), ("INT", 130), ("KILL", 137)])
def test_kill_ends_the_guest_with_the_signals_code(engine: Engine, name_of_signal: str, code: int) -> None:
    name = engine.name()
    child = engine.demo(name)
    engine.must("tasks", "kill", "-s", name_of_signal, name)
    assert exit_code(child) == code


@pytest.mark.parametrize("number", ["28", "SIGWINCH"])
def test_window_change_never_ends_the_guest(engine: Engine, number: str) -> None:
    name = engine.name()
    child = engine.demo(name)
    engine.must("tasks", "kill", "-s", number, name)
    assert b"alive" in command(child, b"echo alive")
    assert engine.status(name) == "RUNNING"


def test_a_crashed_guest_does_not_end_with_zero(engine: Engine) -> None:
    child = engine.demo(engine.name())
    child.send(b"crash\r")
    child.expect(b"crashing")
    assert exit_code(child) not in (0, None)


def test_a_hanging_guest_can_be_killed(engine: Engine) -> None:
    name = engine.name()
    child = engine.demo(name)
    child.send(b"hang\r")
    child.expect(b"hanging")
    engine.must("tasks", "kill", "-s", "KILL", name)
    assert exit_code(child) == 137


def test_killed_virtual_machine_ends_the_container(engine: Engine) -> None:
    child = engine.demo(engine.name())
    (guest,) = engine.guests()

    os.kill(guest, signal.SIGKILL)
    assert exit_code(child) not in (0, None)


def test_metrics_are_those_of_the_guest(engine: Engine) -> None:
    name = engine.name()
    engine.demo(name)
    report = engine.metrics(name)
    assert report["memory"]["usage"]["usage"] > 4 << 20
    assert 0 < report["cpu"]["usage"]["total"] < 60e9
    (guest,) = engine.guests()
    groups = Path(f"/proc/{guest}/cgroup").read_text()
    assert re.search(rf"\b(memory|):/{engine.namespace}/{name}$", groups, re.MULTILINE), groups
    pid, _ = engine.tasks()[name]
    assert Path(f"/proc/{pid}/cgroup").read_text() == groups


def test_ps_lists_the_reported_process(engine: Engine) -> None:
    name = engine.name()
    engine.demo(name)
    pid, _ = engine.tasks()[name]
    rows = [line.split()[0] for line in engine.must("tasks", "ps", name).splitlines()[1:]]
    assert str(pid) in rows


def test_delete_needs_force_while_the_guest_runs(engine: Engine) -> None:
    name = engine.name()
    engine.demo_detached(name)
    refused = engine.ctr("tasks", "delete", name)
    assert refused.returncode != 0
    assert engine.status(name) == "RUNNING"
    engine.ctr("tasks", "delete", "--force", name)
    assert name not in engine.tasks()
    assert engine.guests() == []


def test_stopped_task_is_deleted_and_can_be_run_again(engine: Engine) -> None:
    name = engine.name()
    for _ in range(2):
        engine.start_detached(name)
        engine.must("tasks", "kill", "-s", "KILL", name)
        wait_until(lambda: engine.status(name) == "STOPPED", 15, "the guest to end")
        assert engine.delete_task(name) == 137
        engine.must("containers", "delete", name)
        assert engine.cgroups() == []


def test_exec_is_refused_and_leaves_the_guest_alone(engine: Engine) -> None:
    name = engine.name()
    child = engine.demo(name)
    done = engine.ctr("tasks", "exec", "--exec-id", "e1", name, "/bin/true")
    assert done.returncode != 0
    assert "not supported by this guest" in done.stderr
    assert b"alive" in command(child, b"echo alive")


@pytest.mark.parametrize(
    ("image", "inmate"),
    [(DEMO, "/boot/missing.elf"), (BUSYBOX, "/etc/passwd"), (DEMO, "/boot"), (DEMO, "../../etc/passwd")],
)
def test_failed_create_says_why_and_leaves_nothing(engine: Engine, image: str, inmate: str) -> None:
    name = engine.name()
    done = engine.ctr(*engine.run_args(image, name, env={"INMATE": inmate}))
    assert done.returncode == 1
    text = done.stderr
    assert re.search(r"OCI runtime create failed: \S.+: unknown", text), text
    assert "unable to retrieve OCI runtime error" not in text
    assert inmate.rpartition("/")[2] in text
    assert engine.tasks() == {}
    assert not (engine.run_dir / name).exists()


def test_annotation_with_a_typing_error_is_refused(engine: Engine) -> None:
    words = engine.run_args(DEMO, engine.name(), env=INMATE, options=("--annotation", "org.runphi.memmory=64M"))
    done = engine.ctr(*words)
    assert done.returncode == 1
    assert "org.runphi.memmory" in done.stderr


@pytest.mark.timeout(180)
def test_short_lived_guests_lose_no_output(engine: Engine) -> None:
    for turn in range(SHORT_RUNS):
        child = engine.pipe(*engine.run_args(DEMO, engine.name(), env=INMATE))
        child.send(b"echo turn %d\nexit %d\n" % (turn, turn))
        assert child.finish() == turn
        assert re.match(BANNER, child.seen), child.seen
        assert b"\nturn %d\r\n" % turn in child.seen


@pytest.mark.timeout(180)
def test_ten_guests_side_by_side_and_an_attach_to_one(engine: Engine) -> None:
    names = [engine.name("side") for _ in range(SIDE_BY_SIDE)]
    children = [engine.spawn(*engine.run_args(DEMO, name, tty=True, env=INMATE)) for name in names]
    for child in children:
        child.expect(BANNER, timeout=120)
        child.expect(PROMPT, timeout=120)
    assert len(engine.guests()) == SIDE_BY_SIDE
    joined = engine.spawn_command([str(RUNPHI), "attach", names[4]])
    joined.expect(BANNER)  # what was printed before is shown again
    joined.expect(PROMPT)
    joined.send(b"echo from the second terminal\r")
    joined.expect(rb"\nfrom the second terminal\r+\n")
    children[4].expect(rb"\nfrom the second terminal\r+\n")
    children[4].expect(PROMPT)
    children[4].send(b"echo from the first\r")
    joined.expect(rb"\nfrom the first\r+\n")
    joined.send(b"\x10\x11")  # ctrl-p ctrl-q
    assert exit_code(joined) == 0
    for number, child in enumerate(children):
        child.send(b"exit %d\r" % (number + 1))
    assert [exit_code(child) for child in children] == list(range(1, SIDE_BY_SIDE + 1))


def test_killed_shim_takes_everything_with_it(engine: Engine) -> None:

    name = engine.name()
    engine.demo_detached(name)
    pid, _ = engine.tasks()[name]
    for shim in engine.shims(name):
        os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not engine.guests(), 15, "the virtual machine to end")
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 15, "the reported process to end")
    wait_until(lambda: not engine.cgroups(), 15, "the cgroup to go")
    wait_until(lambda: not (engine.run_dir / name).exists(), 15, "the record to go")


@pytest.mark.parametrize("sudden", [False, True], ids=["TERM", "KILL"])
def test_guest_outlives_containerd(engine: Engine, sudden: bool) -> None:
    name = engine.name()
    engine.start_detached(name)
    engine.halt(sudden=sudden)
    engine.start()
    assert engine.status(name) == "RUNNING"
    child = engine.attach(name)
    child.send(b"exit 8\r")
    assert exit_code(child) == 8


def test_supervisor_killed_while_the_guest_prints(engine: Engine) -> None:

    child = engine.demo(engine.name())
    child.send(b"spam 20000\r")
    child.expect(rb"line 0001000\r+\n")
    supervisor = engine.supervisor_pid()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    assert engine.runphi("list").returncode == 0
    child.expect(PROMPT)
    assert spam_lines(child.before) == list(range(1001, 20001))
    child.send(b"exit 11\r")
    assert exit_code(child) == 11
