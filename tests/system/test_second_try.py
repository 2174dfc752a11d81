# SPDX-License-Identifier: Apache-2.0
"""Guests whose VMM fails them: each liar against the verbs, and what the runtime makes of it.

Nothing of a Linux guest's container has run before our init spoke: then it is started once more, in software. Any
other guest, and one that had begun, ends with the reason.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from runphi_async.testing import liarqemu
from tests.system.liarkit import KVM_SECONDS, lying
from tests.system.linuxkit import BOOT, Lan, await_init, joined, linux, linux_bundle
from tests.system.place import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.place import Container, Place

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(BOOT + 2 * PATIENCE)]

#: Seconds in which a QEMU at a tenth of its speed has started and answers, and no kernel at that speed is at init.
CRAWL_SECONDS = 15

SCRIPT = "echo once; read line; echo got $line; exit 7"
ROLES = {
    "hangs": f"QEMU did not answer in {KVM_SECONDS} s",
    "frozen": f"the guest's kernel did not reach init within {KVM_SECONDS} s on KVM",
    "crawls": f"the guest's kernel did not reach init within {CRAWL_SECONDS} s on KVM",
    "stops 0": "the VMM stopped: internal error: KVM internal error. Suberror: 1; emulation failure",
    "stops 0.3": "the VMM stopped: internal error: KVM internal error. Suberror: 1; emulation failure",
    "aborts": "VMM killed by signal 6: qemu: kvm_init: Assertion `ret == 0' failed.",
    "crashes 0": "VMM killed by signal 6: qemu: kvm_cpu_exec: Assertion `run->exit_reason' failed.",
    "refuses": "VMM failed with status 1: qemu: failed to initialize kvm: Operation not permitted",
}


@pytest.fixture
def liar(tmp_path: Path, inmates_built: Path) -> Iterator[Callable[..., Place]]:
    """Make places where KVM plays a role."""
    places: list[Place] = []

    def make(role: str, **settings: float | str) -> Place:
        places.append(lying(tmp_path / str(len(places)), inmates_built, role, **settings))
        return places[-1]

    yield make
    left = [line for made in places for line in made.close()]
    assert not left, "left over:\n" + "\n".join(left)


def patience(role: str) -> float:
    """How long a kernel may take on a liar: long, where another failure than that is looked for on a busy machine."""
    return {"hangs": KVM_SECONDS, "frozen": KVM_SECONDS, "crawls": CRAWL_SECONDS}.get(role, PATIENCE)


def kinds(place: Place, name: str) -> list[str]:
    return [event["event"] for event in place.events(name)]


def reason(container: Container) -> str:
    return str(container.state()["annotations"]["org.runphi.exit-reason"])


# Section: where it is safe


@pytest.mark.parametrize("role", ROLES)
def test_a_linux_guest_that_kvm_fails_runs_in_software(liar: Callable[..., Place], role: str) -> None:
    place = liar(role, kvm=patience(role))
    container = linux(place, "c1", SCRIPT)
    container.type(b"bread\n")
    assert container.rest() == b"once\ngot bread\n"
    assert container.wait() == 7
    state = container.state()
    assert ROLES[role] in state["annotations"]["org.runphi.accel-fallback"]
    (event,) = [event for event in place.events("c1") if event["event"] == "accel-fallback"]
    assert event["accel"] == "tcg"
    assert event["reason"] == state["annotations"]["org.runphi.accel-fallback"]
    assert kinds(place, "c1").count("exit") == 1
    assert f"{event['reason']}: starting it once more on TCG" in place.log()
    # from now on nobody gets KVM
    plan = place.must("plan", str(linux_bundle(place, "c2", "exit 0")))
    assert "-accel kvm" not in plan
    assert ROLES[role].split("; ")[0] in place.must("doctor")


def test_a_slow_kvm_that_reaches_init_in_time_is_left_alone(liar: Callable[..., Place]) -> None:
    place = liar("honest", kvm=BOOT)
    container = linux(place, "c1", "echo here; exit 3")
    await_init(container)
    assert container.rest() == b"here\n"
    assert container.wait() == 3
    assert "accel-fallback" not in kinds(place, "c1")


def test_the_network_and_what_is_shared_are_there_again(liar: Callable[..., Place]) -> None:
    place = liar("frozen")
    lan = Lan()
    try:
        shared = place.path / "shared"
        shared.mkdir()
        (shared / "word").write_text("bread\n")
        mounts = [{"destination": "/data", "type": "bind", "source": str(shared), "options": ["rbind", "ro"]}]
        netns = lan.container(5)
        group = {"cgroupsPath": f"{place.cgroup}/c1"}
        container = linux(
            place, "c1", "cat /data/word; ip -o addr show eth0; ping -c1 -W5 10.77.0.1 | grep -c ' 0% '; exit 4",
            linux={**joined(netns), **group}, mounts=mounts,
        )  # fmt: skip
        shown = container.rest().decode()
        assert shown.startswith("bread\n")
        assert "10.77.0.5/24" in shown
        assert shown.endswith("\n1\n")
        assert container.wait() == 4
        assert lan.shape(netns)[0] == ["eth0", "lo"]
    finally:
        lan.close()


def test_all_of_the_second_try_is_in_the_containers_cgroup(liar: Callable[..., Place]) -> None:
    place = liar("aborts")
    container = linux(place, "c1", SCRIPT)
    container.expect(b"once\n")
    server = int((container.record / "fs.pid").read_text().split()[0])
    for pid in (container.vmm(), server):
        with open(f"/proc/{pid}/cgroup") as file:
            assert f"{place.cgroup}/c1" in file.read()
    container.type(b"x\n")
    assert container.wait() == 7


def test_a_strangers_command_line_takes_kvm_from_nobody(liar: Callable[..., Place]) -> None:
    place = liar("frozen")
    container = linux(place, "c1", "exit 5", annotations={"org.runphi.cmdline": "nosmp"})
    assert container.wait() == 5
    assert "accel-fallback" in kinds(place, "c1")
    assert "-accel kvm" in place.must("plan", str(linux_bundle(place, "c2", "exit 0")))


def test_run_shows_it_too(liar: Callable[..., Place]) -> None:
    place = liar("stops 0")
    done = place.call("run", "--bundle", str(linux_bundle(place, "c1", "echo shown; exit 6")), "c1")
    assert (done.returncode, done.stdout) == (6, "shown\n"), done.stderr


@pytest.mark.parametrize("moment", ["again.json", "first.status", "ctl.log"])
@pytest.mark.parametrize("role", ["frozen", "crashes 0"])
def test_a_supervisor_that_is_killed_meanwhile(liar: Callable[..., Place], role: str, moment: str) -> None:
    place = liar(role, kvm=patience(role))
    container = linux(place, "c1", SCRIPT)
    until((container.record / moment).exists, moment)
    place.kill_supervisor()
    container.type(b"bread\n")
    assert container.rest() == b"once\ngot bread\n"
    assert container.wait() == 7
    assert kinds(place, "c1").count("accel-fallback") == 1
    assert container.state()["annotations"]["org.runphi.accel-fallback"]


def test_a_vmm_that_fails_while_no_supervisor_watches(liar: Callable[..., Place]) -> None:
    place = liar("frozen", kvm=PATIENCE)
    container = linux(place, "c1", SCRIPT)
    supervisor, guardian = place.pid(), place.guardian()
    os.kill(guardian, signal.SIGSTOP)
    os.kill(supervisor, signal.SIGKILL)
    os.kill(container.vmm(), signal.SIGABRT)
    until((container.record / "vmm.status").exists, "the status")
    os.kill(guardian, signal.SIGCONT)
    container.type(b"bread\n")
    until(lambda: place.call("version").returncode == 0, "a supervisor")
    assert container.rest() == b"once\ngot bread\n"
    assert container.wait() == 7


# Section: signals and verbs meanwhile


@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("INT", 130), ("KILL", 137)])
@pytest.mark.parametrize("role", ["frozen", "hangs"])
def test_signals_end_a_guest_that_has_not_reached_init(
    liar: Callable[..., Place], role: str, name: str, code: int
) -> None:
    place = liar(role, kvm=PATIENCE)
    container = place.create("c1", made=linux_bundle(place, "c1", SCRIPT))
    if role == "frozen":
        container.must("start")
    began = time.monotonic()
    place.must("kill", "c1", name)
    assert container.wait() == code
    assert time.monotonic() - began < PATIENCE / 4
    assert reason(container) == f"killed by signal {code - 128}"


@pytest.mark.parametrize("verb", ["kill", "delete"])
@pytest.mark.parametrize("moment", ["again.json", "first.status"])
def test_a_guest_that_is_ended_between_its_tries_stays_so(liar: Callable[..., Place], moment: str, verb: str) -> None:
    place = liar("stops 0")
    container = linux(place, "c1", SCRIPT)
    until((container.record / moment).exists, moment)
    if verb == "kill":
        place.must("kill", "c1", "KILL")
    else:
        place.must("delete", "--force", "c1")
    assert container.wait() == 137
    assert container.rest() == b""


def test_pause_between_the_tries_is_a_pause_of_the_second(liar: Callable[..., Place]) -> None:
    place = liar("stops 0")
    container = linux(place, "c1", SCRIPT)
    until((container.record / "again.json").exists, "a decision")
    container.must("pause")
    assert container.state()["status"] == "paused"
    container.must("resume")
    container.type(b"bread\n")
    assert container.rest() == b"once\ngot bread\n"
    assert container.wait() == 7


# Section: where it is not


def test_a_guest_that_had_reached_init_ends(liar: Callable[..., Place]) -> None:
    place = liar("stops init", kvm=BOOT)
    container = linux(place, "c1", SCRIPT)
    await_init(container)
    assert container.wait() == 125
    assert reason(container).startswith("the VMM stopped: internal error: KVM internal error. Suberror: 1")
    assert "accel-fallback" not in kinds(place, "c1")


@pytest.mark.parametrize("role", ["frozen", "stops 0"])
def test_kvm_that_was_demanded_is_not_replaced(liar: Callable[..., Place], role: str) -> None:
    place = liar(role, wish="kvm", kvm=patience(role))
    container = linux(place, "c1", SCRIPT)
    assert container.wait() == 125
    assert reason(container) == ROLES[role]
    assert "accel-fallback" not in kinds(place, "c1")


def test_a_second_try_that_fails_says_both(liar: Callable[..., Place]) -> None:
    place = liar("stops 0", kvm=PATIENCE, tcg=0.1)
    container = linux(place, "c1", SCRIPT)
    assert container.wait() == 125
    said = reason(container)
    assert said.startswith("the guest's kernel did not reach init within 0.1 s on TCG")
    assert "on the first: the VMM stopped: internal error" in said
    assert "-accel kvm" in place.must("plan", str(linux_bundle(place, "c2", "exit 0")))


@pytest.mark.parametrize(("role", "code"), [("stops 0.3", 125), ("crashes 0.3", 134)])
def test_an_inmate_is_never_started_again(liar: Callable[..., Place], role: str, code: int) -> None:
    place = liar(role)
    container = place.create("c1")
    container.must("start")
    assert container.wait() == code
    assert reason(container)
    shown = container.rest()
    assert shown.count(b"runPHI demo inmate") <= 1
    assert "accel-fallback" not in kinds(place, "c1")


def test_an_inmate_that_crawls_is_slow_and_nothing_else(liar: Callable[..., Place]) -> None:
    """It may be just what it is to be: nobody but its users can tell that it is too slow."""
    place = liar("crawls")
    container = place.running("c1")
    container.type(b"exit 9\n")
    assert container.wait() == 9
    assert "accel-fallback" not in kinds(place, "c1")
    assert "-accel kvm" in place.must("plan", str(place.bundle("c2")))


def test_a_kernel_that_panics_before_init_ends_with_its_last_words(liar: Callable[..., Place]) -> None:
    place = liar("honest", wish="tcg")
    container = linux(place, "c1", SCRIPT, annotations={"org.runphi.cmdline": "rdinit=/nowhere init=/nowhere"})
    assert container.wait() != 0
    assert "Kernel panic - not syncing" in reason(container)
    assert "Kernel panic" in (container.record / "kernel.log").read_text()


# Section: another monitor


def say(container: Container, command: str) -> None:
    """Be another monitor: that of the events takes commands as well."""
    with open(container.record / "ev.in", "wb", buffering=0) as monitor:
        monitor.write(json.dumps({"execute": command}).encode() + b"\n")


def status(container: Container, wanted: str) -> None:
    until(lambda: container.state()["status"] == wanted, wanted)


def test_a_pause_by_another_monitor_is_told_and_can_be_undone(place: Place) -> None:
    container = place.running("c1")
    say(container, "stop")
    status(container, "paused")
    container.must("resume")
    status(container, "running")
    say(container, "stop")
    status(container, "paused")
    say(container, "cont")
    status(container, "running")
    container.type(b"exit 9\n")
    assert container.wait() == 9
    by = [(event["event"], event.get("by")) for event in place.events("c1") if event["event"] in ("pause", "resume")]
    another = "another monitor"
    assert by == [("pause", another), ("resume", None), ("pause", another), ("resume", another)]


def test_our_own_pauses_are_nobody_elses(place: Place) -> None:
    container = place.running("c1")
    for _ in range(10):
        container.must("pause")
        container.must("resume")
    container.type(b"exit 9\n")
    assert container.wait() == 9
    assert not [event for event in place.events("c1") if event.get("by")]


def test_a_pause_while_no_supervisor_watched_is_found(place: Place) -> None:
    container = place.running("c1")
    guardian = place.guardian()
    os.kill(guardian, signal.SIGSTOP)
    os.kill(place.pid(), signal.SIGKILL)
    say(container, "stop")
    os.kill(guardian, signal.SIGCONT)
    until(lambda: place.call("version").returncode == 0, "a supervisor")
    status(container, "paused")
    container.must("resume")
    container.type(b"exit 9\n")
    assert container.wait() == 9


def test_a_vmm_that_is_told_to_quit_ends_its_container(place: Place) -> None:
    container = place.running("c1")
    say(container, "quit")
    assert container.wait() == 143


def test_a_panic_of_a_running_linux_guest_brings_the_kernels_words(liar: Callable[..., Place]) -> None:
    place = liar("honest", wish="tcg")
    container = linux(place, "c1", "echo up; echo c > /proc/sysrq-trigger; sleep 100")
    assert container.wait() == 134
    assert "Kernel panic - not syncing: sysrq triggered crash" in reason(container)


# Section: signals that nobody takes


def test_a_signal_that_init_never_takes_ends_the_guest(liar: Callable[..., Place]) -> None:
    """Root in the guest can freeze its init, which is no reason to stay for ever."""
    place = liar("honest", kvm=BOOT)
    freeze = "mount -t cgroup2 none /mnt && mkdir /mnt/f && echo 1 >/mnt/f/cgroup.procs && echo 1 >/mnt/f/cgroup.freeze"
    # init passes on what the script prints, but a file needs none
    tell = "until grep -q 'frozen 1' /mnt/f/cgroup.events; do sleep 1; done; : >/frozen"
    container = linux(place, "c1", f"mkdir -p /mnt; echo up; {freeze}; {tell}; sleep 1000")
    await_init(container)
    container.expect(b"up\n")
    until((place.path / "bundles" / "c1" / "rootfs" / "frozen").exists, "a frozen init")
    place.must("kill", "c1", "TERM")
    assert container.wait() == 143
    assert "has not taken signal 15" in place.log()


def test_a_process_may_handle_a_signal_and_live_on(liar: Callable[..., Place]) -> None:
    place = liar("honest", kvm=BOOT)
    container = linux(place, "c1", "trap 'echo no' TERM; echo up; while :; do sleep 1; done")
    await_init(container)
    container.expect(b"up\n")
    place.must("kill", "c1", "TERM")
    container.expect(b"no\n")
    time.sleep(3)  # longer than its stop_seconds
    assert container.state()["status"] == "running"
    place.must("kill", "c1", "KILL")
    assert container.wait() == 137


def test_the_roles_are_all_known() -> None:
    assert {role.split()[0] for role in ROLES} <= set(liarqemu.ROLES)
