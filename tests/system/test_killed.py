# SPDX-License-Identifier: Apache-2.0
"""Everything around a guest is killed: the supervisor, the init stub, QEMU, whoever reads the console."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import time

import pytest

from tests.system.place import PATIENCE, RUNPHI, Place, ended, until

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(90),
]


@pytest.mark.parametrize("status", ["created", "running", "paused", "stopped"])
def test_the_supervisor_is_killed(place: Place, backend: str, status: str) -> None:
    c = place.create("c1", backend=backend)
    if status != "created":
        c.must("start")
        c.expect(b"> ")
    if status == "paused":
        c.must("pause")
    if status == "stopped":
        c.type(b"exit 6\n")
        assert c.wait() == 6
    place.kill_supervisor()
    assert c.state()["status"] == status
    if status == "created":
        c.must("start")
        c.expect(b"> ")
    if status == "paused":
        c.must("resume")
    if status != "stopped":
        c.type(b"echo again\n")
        c.expect(b"\nagain\r\n> ")
        c.type(b"exit 6\n")
        assert c.wait() == 6
    c.must("delete")


def test_verbs_right_behind_the_death_of_the_supervisor(place: Place) -> None:
    """Guardian and clients start the next one at the same time: everybody must wait for the one that wins."""
    c = place.create("c1", backend="fake")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            old = place.pid()
            os.kill(old, signal.SIGKILL)
            ended(old)
            answers = list(pool.map(lambda _: c.call("state"), range(4)))
            assert [(done.returncode, done.stderr) for done in answers] == [(0, "")] * 4


def test_attach_goes_on_behind_the_death_of_the_supervisor(place: Place) -> None:
    c = place.running("c1", backend="fake")
    attach = subprocess.Popen(
        [RUNPHI, "attach", "c1"], env=place.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert attach.stdin is not None
    for number in range(3):
        c.type(b"echo before %d\n" % number)
        c.expect(b"\nbefore %d\r\n> " % number)
        place.kill_supervisor()
        assert attach.poll() is None, attach.communicate()
        attach.stdin.write(b"echo behind %d\n" % number)
        attach.stdin.flush()
        c.expect(b"\nbehind %d\r\n> " % number)
    c.type(b"exit 4\n")
    out, err = attach.communicate(timeout=PATIENCE)
    assert (attach.returncode, err) == (4, b"")
    assert re.findall(rb"\n(before \d|behind \d)\r\n", out) == [
        b"%s %d" % (word, number) for number in range(3) for word in (b"before", b"behind")
    ]
    assert out.count(b"runPHI demo inmate") == 1
    assert c.wait() == 4


def test_the_supervisor_is_killed_while_the_guest_talks(place: Place) -> None:
    c = place.running("c1")
    lines = 60_000
    c.type(b"spam %d\n" % lines)
    shown = b""
    for share in range(1, 5):
        shown += c.expect(b"line %07d\r\n" % (lines * share // 6))
        os.kill(place.pid(), signal.SIGKILL)
    shown += c.expect(b"line %07d\r\n> " % lines)
    assert re.findall(rb"line (\d+)\r\n", shown) == [b"%07d" % n for n in range(1, lines + 1)]
    until(lambda: place.call("version").returncode == 0, "a supervisor")
    c.type(b"exit 2\n")
    assert c.wait() == 2
    c.rest()
    log = c.console_log()
    assert re.findall(rb"line (\d+)\r\n", log) == [b"%07d" % n for n in range(1, lines + 1)]
    assert log.count(b"runPHI demo inmate") == 1
    assert place.must("logs", "c1") == log.decode().replace("\r\n", "\n")  # read as text


@pytest.mark.parametrize("typed", ["exit 5", "crash"])
def test_a_guest_ends_while_no_supervisor_runs(place: Place, backend: str, typed: str) -> None:
    c = place.running("c1", backend=backend)
    old = place.pid()
    guardian = place.guardian()
    os.kill(guardian, signal.SIGSTOP)  # nobody starts a new one
    os.kill(old, signal.SIGKILL)
    feed = os.open(c.record / "con.in", os.O_RDWR)
    os.write(feed, typed.encode() + b"\n")
    until(lambda: (c.record / "vmm.status").exists() and (c.record / "vmm.status").read_text(), "the end of the guest")
    os.close(feed)
    os.kill(guardian, signal.SIGCONT)
    assert c.wait() == {"exit 5": 5, "crash": 134}[typed]


def test_killed_between_saving_the_end_and_telling_it(place: Place) -> None:
    """The record says stopped, the init stub does not know yet: the next supervisor tells it."""
    c = place.create("c1", backend="fake")
    old = place.pid()
    guardian = place.guardian()
    os.kill(guardian, signal.SIGSTOP)
    os.kill(old, signal.SIGKILL)
    os.kill(c.vmm(), signal.SIGKILL)
    state = json.loads((c.record / "state.json").read_text())
    (c.record / "state.json").write_text(json.dumps({**state, "status": "stopped", "exit_code": 42, "reason": "test"}))
    os.kill(guardian, signal.SIGCONT)
    assert c.wait() == 42
    assert c.state()["status"] == "stopped"


def test_the_init_stub_is_killed(place: Place, backend: str) -> None:
    c = place.running("c1", backend=backend)
    vmm = c.vmm()
    os.kill(c.pid, signal.SIGKILL)
    assert c.wait() == 137
    ended(vmm)
    until(lambda: c.state()["status"] == "stopped", "the container's end")
    assert c.state()["annotations"]["org.runphi.exit-code"] == "137"


def test_the_init_stub_is_killed_while_no_supervisor_runs(place: Place) -> None:
    c = place.running("c1")
    vmm = c.vmm()
    old = place.pid()
    guardian = place.guardian()
    os.kill(guardian, signal.SIGSTOP)
    os.kill(old, signal.SIGKILL)
    os.kill(c.pid, signal.SIGKILL)
    assert c.wait() == 137
    os.kill(guardian, signal.SIGCONT)
    ended(vmm)
    until(lambda: c.state()["status"] == "stopped", "the container's end")


def test_qemu_is_killed(place: Place) -> None:
    c = place.running("c1")
    os.kill(c.vmm(), signal.SIGKILL)
    assert c.wait() == 137
    assert "signal 9" in c.state()["annotations"]["org.runphi.exit-reason"]


def test_qemu_is_killed_before_start(place: Place) -> None:
    c = place.create("c1")
    os.kill(until(c.vmm, "a pid"), signal.SIGKILL)
    assert c.wait() == 137
    assert c.refused("start") == "cannot start a container that has stopped"


def test_the_reader_of_stdout_goes_away(place: Place) -> None:
    c = place.running("c1")
    os.close(c.stdout)
    c.stdout = -1
    c.type(b"spam 30000\nexit 8\n")
    assert c.wait() == 8
    assert place.must("logs", "--tail", "2", "c1").startswith("line 0030000\n") or b"line 0030000" in c.console_log()


def test_a_reader_that_never_reads_does_not_hold_the_end(place: Place) -> None:
    c = place.running("c1", backend="fake")
    c.type(b"spam 20000\n")
    time.sleep(0.2)  # it is stuck against the full pipe, whenever that is
    place.must("kill", "c1", "9")
    assert c.wait() == 137
