# SPDX-License-Identifier: Apache-2.0
"""`configure -a`: which backend is taken, in the original's order, and what is said about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runphi_async.install import detect
from runphi_async.install.detect import Machine

if TYPE_CHECKING:
    from pathlib import Path

BARE = Machine("", "", "", "", "", False, "")
ALL = Machine(
    "/usr/sbin/dockerd", "/usr/sbin/jailhouse", "1", "/usr/sbin/xl", "xen", True, "/usr/bin/qemu-system-x86_64"
)


@pytest.mark.parametrize(
    ("machine", "backend"),
    [
        (ALL, "docker"),
        (ALL._replace(dockerd=""), "jailhouse"),
        (ALL._replace(dockerd="", jailhouse_enabled="0"), "xen"),
        (ALL._replace(dockerd="", jailhouse_tool=""), "xen"),
        (ALL._replace(dockerd="", jailhouse_enabled="", dom0=False), "qemu"),
        (ALL._replace(dockerd="", jailhouse_enabled="", hypervisor="kvm"), "qemu"),
        (ALL._replace(dockerd="", jailhouse_enabled="", xl=""), "qemu"),
        (BARE, None),
    ],
)
def test_the_first_in_the_original_s_order_is_taken(machine: Machine, backend: str | None) -> None:
    assert detect.choose(detect.judge(machine)) == backend


def test_every_backend_is_explained() -> None:
    lines = detect.explain(detect.judge(ALL._replace(dockerd="", jailhouse_enabled="0")))
    assert lines == [
        "docker: not chosen: there is no docker daemon (dockerd)",
        "jailhouse: not chosen: the hypervisor is not enabled (jailhouse enable SYSCONFIG)",
        "xen: chosen: this is dom0 of Xen; partitions are Xen domains",
        "qemu: not chosen: /usr/bin/qemu-system-x86_64 is installed, but xen comes before it",
    ]


def test_docker_in_front_of_a_hypervisor_is_said() -> None:
    lines = detect.explain(detect.judge(ALL))
    assert "ordinary containers" in lines[0]
    assert lines[-1].endswith("for partitions: configure -c jailhouse")
    assert "docker comes first" not in " ".join(detect.explain(detect.judge(BARE._replace(dockerd="/d"))))


def test_the_machine_is_read(tmp_path: Path) -> None:
    assert detect.read(str(tmp_path)) == BARE
    for name in ("usr/sbin/dockerd", "usr/local/bin/jailhouse", "usr/sbin/xl", "usr/bin/qemu-system-aarch64"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o755)
    for name, text in (
        ("sys/devices/jailhouse/enabled", "1\n"),
        ("sys/hypervisor/type", "xen\n"),
        ("proc/xen/capabilities", "control_d\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert detect.read(str(tmp_path)) == ALL._replace(
        jailhouse_tool="/usr/local/bin/jailhouse", qemu="/usr/bin/qemu-system-aarch64"
    )
