# SPDX-License-Identifier: Apache-2.0
"""What `runphi doctor` makes of devices, limits, permissions and of the installation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from backends.base import Finding, Level
from runphi_async.doctor import machine
from runphi_async.doctor.machine import Devices
from runphi_async.install import change, examine, record, runc
from runphi_async.install.root import CONFIG, HOME, Root, digest_of

if TYPE_CHECKING:
    from pathlib import Path

HEALTHY = Devices("x86_64", "", "", "vmx", 1 << 20, "/etc/runphi/config.toml", (0o644, 0))


def test_a_healthy_machine() -> None:
    assert {finding.level for finding in machine.judge(HEALTHY)} == {Level.OK}


@pytest.mark.parametrize(
    ("change", "level", "words", "mend"),
    [
        ({"kvm": "no such file or directory"}, Level.NOTE, "QEMU emulates", "modprobe kvm_intel"),
        ({"kvm": "permission denied", "flag": "svm"}, Level.NOTE, "permission denied", "modprobe kvm_amd"),
        ({"kvm": "no such file or directory", "flag": ""}, Level.NOTE, "QEMU emulates", "firmware"),
        ({"kvm": "no such file or directory", "machine": "aarch64"}, Level.NOTE, "QEMU emulates", "EL2"),
        ({"tun": "no such device"}, Level.NOTE, "no networks", "modprobe tun"),
        ({"files": 1024}, Level.WARNING, "1024 open files", "LimitNOFILE"),
        ({"config": None}, Level.OK, "the defaults hold", ""),
        ({"config": (0o664, 0)}, Level.ERROR, "by others than root", "chmod go-w"),
        ({"config": (0o644, 1000)}, Level.ERROR, "by others than root", "chown root"),
    ],
)
def test_a_machine_with_a_flaw(change: dict[str, object], level: Level, words: str, mend: str) -> None:
    found = machine.judge(HEALTHY._replace(**change))  # type: ignore[arg-type]
    assert [f for f in found if f.level is level and words in f.text and mend in f.mend]


def test_this_machine_can_be_read() -> None:
    devices = machine.read()
    assert devices.machine == os.uname().machine
    assert devices.files > 0


# Section: the installation


def texts(found: list[Finding], level: Level) -> list[str]:
    assert all(finding.mend for finding in found if finding.level is Level.WARNING)
    return [finding.text for finding in found if finding.level is level]


def test_what_is_not_installed_is_a_note(tmp_path: Path) -> None:
    (finding,) = examine.examine(Root(str(tmp_path)))
    assert finding.level is Level.NOTE
    assert finding.mend.endswith("bin/configure -a installs it")


def test_files_that_are_missing_changed_or_half_done(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    files = {"/usr/sbin/a": [digest_of(b"a")], "/usr/sbin/b": [digest_of(b"b")], CONFIG: [digest_of(b"c")]}
    for path in files:
        root.write(path, path[-1:].encode())
    record.save(root, "install", {"version": "1", "backend": "qemu", "files": files})
    assert texts(examine.examine(root), Level.OK) == [f"version 1 in {HOME}, for backend qemu"]
    (tmp_path / "usr/sbin/a").unlink()
    root.write("/usr/sbin/b", b"other")
    root.write(CONFIG, b"mine")
    found = examine.examine(root)
    assert texts(found, Level.WARNING) == ["/usr/sbin/a is missing"]
    assert "/usr/sbin/b was changed by somebody" in texts(found, Level.NOTE)
    (tmp_path / f"{HOME}/.new".lstrip("/")).mkdir(parents=True)
    assert "an installation was interrupted" in texts(examine.examine(root), Level.WARNING)


def test_the_place_of_runc(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    root.write(f"{HOME}/bin/runphi", b"#!/bin/sh\n# runphi_async\n", 0o755)
    root.write("/usr/sbin/runc", b"vanilla", 0o755)
    runc.replace(root)
    assert "/usr/sbin/runc is runPHI, the ordinary runc /usr/sbin/runc_vanilla" in texts(
        examine.examine(root), Level.OK
    )
    (tmp_path / "usr/sbin/runc_vanilla").rename(tmp_path / "usr/sbin/away")
    assert "the ordinary runc is gone" in texts(examine.examine(root), Level.WARNING)[0]
    (tmp_path / "usr/sbin/away").rename(tmp_path / "usr/sbin/runc")
    assert "no longer runPHI" in texts(examine.examine(root), Level.WARNING)[0]


def test_engines_that_were_changed(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    change.apply(root, change.plan(root, "podman"))
    path = change.place("podman")
    assert f"{path} was given the runtime runphi" in texts(examine.examine(root), Level.OK)
    root.write(path, b"")
    assert texts(examine.examine(root), Level.WARNING) == [f"{path} names the runtime runphi no more"]
    root.write("/var/lib/runphi/install/runc.json", b"{")
    assert "cannot read" in texts(examine.examine(root), Level.WARNING)[0]
