# SPDX-License-Identifier: Apache-2.0
"""The life of bare-metal guests on real Xen, through the OCI command line."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import pexpect
import pytest

from tests.system.place import RUNPHI, until
from tests.xen.dom0.kit import made, running

if TYPE_CHECKING:
    from tests.system.place import Container
    from tests.xen.dom0.kit import XenPlace

pytestmark = pytest.mark.timeout(900)


def test_the_whole_life(place: XenPlace) -> None:
    container = made(place, "life")
    assert container.created == 0, container.error
    assert container.state()["status"] == "created"
    domid, letters = place.domain("life")
    assert letters[2] == "p"
    config = (container.record / "xl.cfg").read_text()
    assert 'type = "pvh"' in config
    assert "memory = 32" in config
    assert container.record.joinpath("configlife.conf").read_text().startswith("# boot:")
    container.must("start")
    container.expect(b"> ")
    assert container.state()["status"] == "running"
    container.type(b"echo through  the console\r")
    container.expect(b"\r\nthrough  the console\r\n> ")
    container.must("pause")
    assert place.domain("life")[0] == domid
    assert place.domain("life")[1][2] == "p"
    assert container.state()["status"] == "paused"
    container.type(b"echo later\r")
    container.must("resume")
    container.expect(b"\r\nlater\r\n> ")
    assert "not stopped" in container.refused("delete")
    place.must("kill", "life", "KILL")
    assert container.wait() == 137
    assert container.state()["annotations"]["org.runphi.exit-reason"] == "killed by signal 9"
    assert not place.has_domain("life")
    container.must("delete")
    assert not container.root.joinpath("life").exists()


@pytest.mark.parametrize(
    ("typed", "code", "reason"),
    [
        (b"exit 0", 0, "guest powered off"),
        (b"exit 3", 3, "exited with 3"),  # 3 is Xen's word for a crash
        (b"exit 42", 42, "exited with 42"),
        (b"exit 255", 255, "exited with 255"),
        (b"crash", 134, "guest crashed"),
        (b"reset", 133, "guest reset (reboot)"),
    ],
)
def test_exit_codes(place: XenPlace, typed: bytes, code: int, reason: str) -> None:
    name = typed.decode().replace(" ", "-")
    container = running(place, name)
    container.type(b"spam 40\r")
    container.expect(b"line 0000040\r\n> ")
    container.type(typed + b"\r")
    said = {b"crash": b"crashing\r\n", b"reset": b"resetting\r\n"}.get(typed, b"")
    assert container.rest() == typed + b"\r\n" + said
    assert container.wait() == code
    assert container.state()["annotations"]["org.runphi.exit-reason"] == reason
    container.must("delete")


def test_pv_guests_and_pins(place: XenPlace) -> None:
    linux = {"cgroupsPath": f"{place.cgroup}/pinned", "namespaces": [], "resources": {"cpu": {"cpus": "1"}}}
    annotations = {"org.runphi.machine": "pv", "org.runphi.memory": "16M", "org.runphi.xen.weight": "512"}
    container = running(place, "pinned", annotations=annotations, linux=linux)
    domid, _ = place.domain("pinned")
    vcpus = subprocess.run(["xl", "vcpu-list", str(domid)], capture_output=True, text=True, check=True).stdout
    assert vcpus.splitlines()[1].split()[-3:] == ["1", "/", "all"]
    shares = subprocess.run(["xl", "sched-credit2", "-d", str(domid)], capture_output=True, text=True, check=True)
    assert "512" in shares.stdout
    assert (container.record / "assignedCPUs").read_text() == "1\n"
    container.type(b"exit 7\r")
    assert container.wait() == 7
    container.must("delete")


def test_run_on_a_terminal(place: XenPlace) -> None:
    bundle = place.bundle("term", backend="xen", terminal=True)
    child = pexpect.spawn(RUNPHI, ["--root", str(place.root), "run", "--bundle", str(bundle), "term"], env=place.env,
                          timeout=240)  # fmt: skip
    child.expect_exact("> ")
    child.send("echo on a pty\r")
    child.expect_exact("\r\non a pty\r\n> ")
    child.send("exit 42\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 42
    assert "container does not exist" in place.refused("state", "term")


def test_five_at_once(place: XenPlace) -> None:
    names = [f"many{number}" for number in range(5)]
    found: dict[str, Container] = {}

    def make(name: str) -> None:
        found[name] = running(place, name, annotations={"org.runphi.memory": "16M"})

    threads = [threading.Thread(target=make, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == names
    for name, container in found.items():
        container.type(b"echo I am %s\r" % name.encode())
    for name, container in found.items():
        container.expect(b"\r\nI am %s\r\n> " % name.encode())
        container.type(b"exit 9\r")
    for container in found.values():
        assert container.wait() == 9
        container.must("delete")


def test_a_killed_supervisor_loses_and_doubles_nothing(place: XenPlace) -> None:
    container = running(place, "numbers")
    lines = 4000
    container.type(b"spam %d\r" % lines)
    container.expect(b"line 0000100\r\n")
    place.kill_supervisor()
    shown = container.expect(b"line %07d\r\n> " % lines)
    assert shown.split(b"\r\n")[:-1] == [b"line %07d" % number for number in range(101, lines + 1)]
    assert container.state()["status"] == "running"
    container.type(b"echo still here\r")
    container.expect(b"\r\nstill here\r\n> ")
    log = container.console_log()
    assert [line for line in log.split(b"\r\n") if line.startswith(b"line ")] == [
        b"line %07d" % number for number in range(1, lines + 1)
    ]
    container.type(b"exit 5\r")
    assert container.wait() == 5
    container.must("delete")


def test_a_supervisor_killed_during_create_leaves_no_domain(place: XenPlace) -> None:
    bundle = place.bundle("cut", backend="xen")
    argv = [RUNPHI, "--root", str(place.root), "create", "--bundle", str(bundle), "cut"]
    client = subprocess.Popen(argv, env=place.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    until(lambda: (place.run_dir / "cut" / "xl.cfg").exists(), "the domain's configuration")
    place.kill_supervisor()
    client.wait(120)
    if place.call("state", "cut").returncode == 0:  # it was quick enough to be made
        place.must("delete", "--force", "cut")
    assert not place.has_domain("cut")


def test_xens_own_console_is_in_the_timeline(place: XenPlace) -> None:
    container = running(place, "beside")
    subprocess.run(["xl", "debug-keys", "h"], check=True)
    until(lambda: "showing installed handlers" in container.must("timeline"), "the line of Xen's console")
    assert "runPHI demo inmate" in container.must("timeline")
    container.type(b"exit 0\r")
    assert container.wait() == 0
    container.must("delete")


def test_attach_from_a_second_terminal(place: XenPlace) -> None:
    container = running(place, "seen")
    child = pexpect.spawn(RUNPHI, ["--root", str(place.root), "attach", "seen"], env=place.env, timeout=240)
    child.expect_exact("> ")
    child.send("echo from the second\r")
    child.expect_exact("\r\nfrom the second\r\n> ")
    container.expect(b"\r\nfrom the second\r\n> ")
    child.send("\x10\x11")
    child.expect(pexpect.EOF)
    child.close()
    place.must("kill", "seen", "TERM")
    assert container.wait() == 143
    container.must("delete")


def test_a_domain_destroyed_behind_our_back_ends_its_container(place: XenPlace) -> None:
    container = running(place, "taken")
    domid, _ = place.domain("taken")
    subprocess.run(["xl", "destroy", str(domid)], check=True)
    assert container.wait() == 137
    assert container.state()["annotations"]["org.runphi.exit-reason"] == "domain was destroyed from outside"
    container.must("delete")


def test_a_dead_init_takes_its_domain_along(place: XenPlace) -> None:
    container = running(place, "orphan")
    os.kill(container.pid, signal.SIGKILL)
    until(lambda: not place.has_domain("orphan"), "the end of the domain")
    container.must("delete")


def test_what_cannot_be_had_is_refused_at_once(place: XenPlace) -> None:
    container = made(place, "huge", annotations={"org.runphi.memory": "64G"})
    assert container.created == 1
    assert "cannot give the guest 64 GiB: Xen has" in container.error
    container = made(place, "pool", annotations={"org.runphi.xen.pool": "nosuch"})
    assert "cannot run the guest in cpupool nosuch: there is none; there is: Pool-0" in container.error
    container = made(place, "typo", annotations={"org.runphi.xen.wieght": "1"})
    assert "cannot understand annotation org.runphi.xen.wieght" in container.error
    assert not any(place.has_domain(name) for name in ("huge", "pool", "typo"))
