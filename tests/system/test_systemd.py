# SPDX-License-Identifier: Apache-2.0
"""The units of the installation under a real systemd: the socket starts the supervisor, guests outlive its ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from runphi_async.testing.containerd import passed_on
from tests.system.booted import Booted
from tests.system.place import ROOT, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIGURE = "/usr/sbin/runphi-configure"
RUNPHI = "/usr/sbin/runphi"
SERVICE = "runphid.service"
SOCKET = "runphid.socket"
LINES = 20_000

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces are made by root"),
    pytest.mark.qemu,
    pytest.mark.timeout(600),  # a Python environment is made
]


@pytest.fixture
def booted(wheels: Path) -> Iterator[Booted]:
    """A booted machine with runPHI installed."""
    with Booted() as made:
        shutil.copytree(wheels, made.merged / "run/wheels")
        made.must(str(ROOT / "bin/configure"), "-c", "qemu", "--wheels", "/run/wheels")
        settings = made.merged / f"run/systemd/system/{SERVICE}.d/tests.conf"
        settings.parent.mkdir()
        lines = [f'Environment="{name}={value}"\n' for name, value in passed_on().items()]
        settings.write_text("".join(["[Service]\n", *lines]))
        yield made


def systemctl(machine: Booted, *words: str) -> str:
    return machine.must("/bin/systemctl", *words)


def supervisor(machine: Booted) -> int:
    """Return the process that systemd says is the supervisor, 0 if there is none."""
    return int(systemctl(machine, "show", "--property", "MainPID", "--value", SERVICE))


def state(machine: Booted, name: str) -> str:
    return str(json.loads(machine.must(RUNPHI, "state", name))["status"])


class Guest:
    """The demo inmate on pipes."""

    def __init__(self, machine: Booted, inmates: Path) -> None:
        self.machine = machine
        bundle = machine.merged / "run/bundle"
        (bundle / "rootfs/boot").mkdir(parents=True)
        shutil.copy(inmates / "demo-x86_64.elf", bundle / "rootfs/boot/inmate.elf")
        config = {
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/", "env": ["INMATE=/boot/inmate.elf"]},
            "root": {"path": "rootfs"},
            "linux": {"cgroupsPath": "/guests/g", "namespaces": []},
        }
        (bundle / "config.json").write_text(json.dumps(config))
        self.out = machine.merged / "run/out"
        words = machine.command(RUNPHI, "create", "--bundle", "/run/bundle", "--pid-file", "/run/pid", "g")
        with open(self.out, "wb") as out:
            self._create = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=out, stderr=out)
        assert self._create.wait(60) == 0, self.out.read_bytes()
        machine.must(RUNPHI, "start", "g")
        self.says(b"demo")

    def says(self, text: bytes) -> None:
        until(lambda: text in self.out.read_bytes(), f"a guest that says {text!r}")

    def type(self, text: bytes) -> None:
        assert self._create.stdin is not None
        self._create.stdin.write(text)
        self._create.stdin.flush()

    def close(self) -> None:
        assert self._create.stdin is not None
        self._create.stdin.close()


@pytest.fixture
def guest(booted: Booted, inmates_built: Path) -> Iterator[Guest]:
    made = Guest(booted, inmates_built)
    yield made
    made.close()


def test_the_first_verb_starts_the_service(booted: Booted) -> None:
    systemctl(booted, "enable", "--now", SOCKET)
    assert systemctl(booted, "is-enabled", SOCKET) == "enabled\n"
    assert supervisor(booted) == 0
    assert booted.must(RUNPHI, "list", "--quiet") == ""
    assert supervisor(booted) == int((booted.merged / "run/runPHI/supervisor.pid").read_text())
    # it stays in the service's place, and has no guardian beside it: systemd starts it again
    group = f"/sys/fs/cgroup/system.slice/{SERVICE}/cgroup.procs"
    own = [str(supervisor(booted))]
    until(lambda: booted.must("/bin/cat", group).split() == own, "the end of the proof of an accelerator")
    assert "is removed" in booted.must(CONFIGURE, "--uninstall")
    assert booted.run("/bin/systemctl", "is-enabled", SOCKET).returncode != 0
    assert systemctl(booted, "--failed", "--plain", "--no-legend") == ""


def test_guests_outlive_restarts_and_kills(booted: Booted, guest: Guest) -> None:
    # the guest was made by a supervisor that no systemd started: the service takes over from it
    old = int((booted.merged / "run/runPHI/supervisor.pid").read_text())
    systemctl(booted, "enable", "--now", SOCKET)
    assert state(booted, "g") == "running"
    assert supervisor(booted) not in (0, old)
    assert not (booted.merged / f"proc/{old}").exists()
    for number, end in enumerate((("restart", SERVICE), ("kill", "--signal", "KILL", SERVICE), ("stop", SERVICE))):
        before = supervisor(booted)
        assert before
        guest.type(b"spam %d\n" % LINES)
        systemctl(booted, *end)
        until(lambda: supervisor(booted) != before, "the end of that supervisor")  # noqa: B023
        assert state(booted, "g") == "running"
        until(lambda: supervisor(booted), "another supervisor")
        guest.type(b"echo after %d\n" % number)
        guest.says(b"\nafter %d" % number)
    lines = [line for line in guest.out.read_bytes().split(b"\r\n") if line.startswith(b"line ")]
    assert lines == [b"line %07d" % number for number in range(1, LINES + 1)] * 3
    guest.type(b"exit 3\n")
    until(lambda: state(booted, "g") == "stopped", "the guest's end")
    booted.must(RUNPHI, "delete", "g")


def test_reload_opens_the_logs_anew(booted: Booted, guest: Guest) -> None:
    log = booted.merged / "var/log/runphi/g/console.log"
    until(log.exists, "a log file")
    systemctl(booted, "enable", "--now", SERVICE)
    log.rename(log.with_suffix(".1"))
    systemctl(booted, "reload", SERVICE)
    until(log.exists, "a new log file")
    guest.type(b"echo into the new one\n")
    until(lambda: b"\ninto the new one" in log.read_bytes(), "the new log")
    refused = booted.run(CONFIGURE, "--uninstall")
    assert "there are partitions: g" in refused.stderr
    booted.must(RUNPHI, "kill", "g", "KILL")
    until(lambda: state(booted, "g") == "stopped", "the guest's end")
    booted.must(RUNPHI, "delete", "g")
