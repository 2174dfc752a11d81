# SPDX-License-Identifier: Apache-2.0
"""What `runphi doctor` makes of what it finds."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from backends.base import Finding, Level
from backends.configured import from_table
from backends.qemu.backend import QemuBackend
from runphi_async.doctor import checkup
from runphi_async.doctor.checkup import Engine, Host, Place

if TYPE_CHECKING:
    from pathlib import Path

HEALTHY = Host("6.1.0-21-amd64", "x86_64", 0, (1 << 41) - 1, 0, 1, frozenset({"cpu", "cpuset", "memory"}), 4, 8 << 30)


def levels(found: list[Finding]) -> set[Level]:
    return {finding.level for finding in found}


def test_a_healthy_host() -> None:
    found = checkup.judge_host(HEALTHY)
    assert levels(found) == {Level.OK}
    assert [finding.text for finding in found][-2:] == ["cgroups: v2", "4 CPUs, 8192 MiB of memory"]


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"kernel": "5.5.19"}, Level.ERROR, "is too old"),
        ({"kernel": "5.6.0-rc1"}, Level.OK, ""),
        ({"uid": 1000}, Level.ERROR, "runs as user 1000"),
        ({"capabilities": 0}, Level.ERROR, "CAP_SYS_ADMIN"),
        ({"capabilities": 1 << 21}, Level.NOTE, "CAP_SYS_RESOURCE"),
        ({"controllers": frozenset({"cpu"})}, Level.WARNING, "no cpuset, memory"),
        ({"v1": 9}, Level.OK, "cgroups: 9 hierarchies of v1 and v2"),
        ({"v1": 0, "v2": 0, "controllers": frozenset()}, Level.WARNING, "cgroups: none"),
    ],
)
def test_a_host_with_a_flaw(change: dict[str, object], level: Level, words: str) -> None:
    found = checkup.judge_host(HEALTHY._replace(**change))  # type: ignore[arg-type]
    assert any(finding.level is level and words in finding.text for finding in found)
    assert all(finding.mend for finding in found if finding.level in (Level.ERROR, Level.WARNING))


@pytest.mark.parametrize(
    ("place", "level"),
    [
        (Place("run directory", "/r", 0o700, 1 << 30), Level.OK),
        (Place("run directory", "/r", -1, 0), Level.OK),
        (Place("run directory", "/r", 0o777, 1 << 30), Level.ERROR),
        (Place("log directory", "/r", 0o755, 1 << 20), Level.WARNING),
        (Place("log directory", "/r", 0, 0, "not a directory"), Level.ERROR),
    ],
)
def test_a_directory(place: Place, level: Level) -> None:
    (finding,) = checkup.judge_place(place)
    assert finding.level is level
    assert "/r" in finding.text


def test_directories_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = from_table({"log": {"dir": str(tmp_path / "file" / "log")}})
    run, log = checkup.read_places(config, str(tmp_path))
    assert (run.mode, run.problem) == (tmp_path.stat().st_mode & 0o7777, "")
    assert run.free > 0
    assert log.problem == "not a directory"
    assert len(checkup.read_places(from_table({"log": {"enabled": False}}), str(tmp_path))) == 1


def test_the_ordinary_runtime() -> None:
    assert levels(checkup.judge_runc("/usr/bin/runc", "runc version 1.1.5", "")) == {Level.OK}
    assert levels(checkup.judge_runc("/usr/bin/runc", "", "")) == {Level.WARNING}
    (finding,) = checkup.judge_runc(None, "", "/opt/runc")
    assert "/opt/runc" in finding.text


def test_an_engine() -> None:
    engine = Engine("docker", "dockerd", "/etc/docker/daemon.json")
    assert checkup.judge_engine(engine, "20.10", '{"runtimes":{"runphi":{}}}').level is Level.OK
    assert checkup.judge_engine(engine, "", "").level is Level.NOTE


def test_this_host_can_be_read() -> None:
    host = checkup.read_host()
    assert host.kernel == os.uname().release
    assert host.cpus > 0


def test_the_answer() -> None:
    found = [Finding(Level.OK, "host", "fine"), Finding(Level.ERROR, "runc", "bad", "mend it")]
    assert checkup.as_text(found).splitlines() == [
        "ok      host        fine",
        "error   runc        bad",
        "                    to mend it: mend it",
    ]
    assert json.loads(checkup.as_json(found))[1] == {
        "level": "error", "area": "runc", "text": "bad", "mend": "mend it",
    }  # fmt: skip


async def test_qemu_that_is_not_there(tmp_path: Path) -> None:
    config = from_table({"qemu": {"x86_64": "nosuch-x86", "aarch64": "nosuch-arm"}})
    (finding,) = await QemuBackend(config, str(tmp_path)).examine()
    assert (finding.level, finding.area) == (Level.WARNING, "qemu")
    assert "apt-get install" in finding.mend


async def test_qemu_without_what_linux_guests_need(tmp_path: Path) -> None:
    (tmp_path / "qemu").touch(mode=0o755)
    missing = str(tmp_path / "missing")
    table = {"accel": "tcg", "x86_64": str(tmp_path / "qemu"), "aarch64": "nosuch-arm", "kernel": missing}
    config = from_table({"qemu": {**table, "initrd": missing, "virtiofsd": missing}})
    found = await QemuBackend(config, str(tmp_path)).examine()
    assert [finding.level for finding in found] == [Level.OK, Level.NOTE, *[Level.WARNING] * 3]
    assert all("LINUX=1" in finding.text for finding in found[2:])
