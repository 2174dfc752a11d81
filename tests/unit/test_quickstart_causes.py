# SPDX-License-Identifier: Apache-2.0
"""From what is known of a failure to what mends it: every row of the table, and their order."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Finding, Level
from runphi_async.testing.quickstart.causes import CAUSES, LINUX, Facts, diagnose

WARNING = Level.WARNING


def finding(area: str, text: str, level: Level = WARNING) -> Finding:
    return Finding(level, area, text, "mend")


#: facts as they were met, or are written by the code that is named, and the row that must be found
CASES: list[tuple[str, dict[str, Any]]] = [
    # seen on a machine whose KVM runs small programs and no kernel
    ("KVM too slow", {"late": True, "accel": "kvm", "vmm_state": "running", "error": "no answer for 60 s"}),
    ("KVM internal error", {
        "late": True, "accel": "kvm", "vmm_state": "internal-error",
        "vmm_log": "KVM internal error. Suberror: 1\nextra data[0]: 0x1\nemulation failure\n",
    }),
    ("KVM internal error", {"accel": "kvm", "reason": "the VMM stopped: internal error", "code": 125}),
    ("KVM internal error", {"accel": "kvm", "reason": "VMM failed", "vmm_log": "kvm run failed Bad address\n"}),
    ("KVM too slow", {"accel": "kvm", "reason": "the guest's kernel did not reach init within 60 s", "code": 125}),
    ("KVM demanded", {"said": "cannot use KVM: KVM is there but a guest did not get anywhere"}),
    ("init not reached", {"accel": "tcg", "reason": "the guest's kernel did not reach init within 300 s"}),
    ("init not reached", {"accel": "tcg", "late": True, "vmm_state": "running"}),
    ("panic", {"accel": "tcg", "reason": "guest panicked", "code": 134}),
    ("panic", {"accel": "tcg", "vmm_state": "guest-panicked"}),
    ("panic", {"accel": "tcg", "late": True, "kernel": "[    1.2] Kernel panic - not syncing: VFS: Unable to mount"}),
    ("guest kernel", {"findings": (finding("qemu", "cannot run Linux guests (LINUX=1): no kernel at /x/vmlinux"),)}),
    ("guest kernel", {"findings": (finding("qemu", "cannot run Linux guests (LINUX=1): no initial ramdisk at /x"),)}),
    ("guest kernel", {"said": "cannot boot: its RAM disk with our init is missing"}),
    ("file server", {"findings": (finding("qemu", "cannot run Linux guests (LINUX=1): no file server at /x"),)}),
    ("file server", {"said": "cannot share the root filesystem: /usr/lib/qemu/virtiofsd: No such file or directory"}),
    ("no QEMU", {"findings": (finding("qemu", "cannot find QEMU"),)}),
    ("disk full", {"number": errno.ENOSPC}),
    ("disk full", {"engine_log": "write /var/lib/x: no space left on device"}),
    ("no network device", {"said": "cannot give the guest a network: /dev/net/tun: no such file or directory"}),
    ("cgroups", {"findings": (finding("host", "cgroups: none; no cpu, cpuset, memory"),)}),
    ("cgroups", {"said": "cannot make the cgroup /x: read-only file system"}),
    ("memory", {"reason": "out of memory: the kernel killed the VMM", "code": 137}),
    ("memory", {"vmm_log": "qemu-system-x86_64: cannot set up guest memory 'ram': Cannot allocate memory"}),
    ("memory limit", {"said": "cannot give the guest 16 MiB of memory; at least 96 MiB"}),
    ("no permission", {"number": errno.EACCES}),
    ("no permission", {"said": "open /dev/x: operation not permitted"}),
    ("address in use", {"number": errno.EADDRINUSE}),
    ("address in use", {"error": "cannot start containerd: another one answers on /run/x/containerd.sock"}),
    ("images", {"error": "cannot run ctr images import --snapshotter native /x/demo.tar: archive/tar: invalid header"}),
    ("engine", {"error": "cannot start containerd: it ended at once; last words in /run/x/containerd.log:"}),
    ("supervisor", {"said": "runphi: cannot start the supervisor: it ended at once"}),
    ("supervisor", {"findings": (), "said": "the supervisor ended or fell silent before it answered"}),
    ("configuration", {
        "said": "runphi: cannot start the supervisor: /etc/runphi/config.toml: qemu.accle: unknown key",
        "findings": (finding("runphi", "cannot use the configuration: …", Level.ERROR),),
    }),
    ("Python environment", {"said": "cannot start the supervisor: no Python environment at /x/.venv"}),
    ("Python environment", {"said": "ModuleNotFoundError: No module named 'anyio'"}),
    ("no runc", {"said": "cannot run an ordinary container: there is no runc; install runc"}),
    ("VMM failed", {"reason": "VMM failed with status 1: qemu-system-x86_64: -cpu host: unsupported", "code": 125}),
    ("VMM failed", {"reason": "VMM killed by signal 6", "code": 134}),
    # met now and then: `start` found it dead first
    ("VMM failed", {
        "said": "ctr: OCI runtime start failed: cannot run 'cont': QEMU has ended or cannot be reached: unknown",
        "reason": "killed by signal 9", "code": 137,
    }),
    ("VMM failed", {"accel": "tcg", "reason": "the VMM stopped: input or output of a device failed", "code": 125}),
    ("VMM failed", {"accel": "tcg", "vmm_state": "internal-error"}),
    ("VMM hangs", {"said": "cannot run 'cont': QEMU did not answer in 30 s"}),
    ("unknown", {"error": "output is [b'ho'], should be [b'hi']"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "facts"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_cause_is_recognised(name: str, facts: dict[str, Any]) -> None:
    found = diagnose(Facts(LINUX, **facts))
    assert found.name == name
    assert found.says
    assert found.mend


def test_a_bare_metal_guest_that_is_silent() -> None:
    found = diagnose(Facts("bare-metal guest", late=True, accel="tcg", vmm_state="running"))
    assert (found.name, found.says) == ("silent guest", "the bare-metal guest does not answer")


def test_every_row_has_a_case() -> None:
    """A row that nobody can reach, or that a new one in front of it hides, is found here."""
    reached = {name for name, _ in CASES} | {"silent guest"}
    assert [cause.name for cause in CAUSES if cause.name not in reached] == []
    assert len({cause.name for cause in CAUSES}) == len(CAUSES)


def test_what_only_a_linux_guest_needs_explains_no_other_failure() -> None:
    missing = (finding("qemu", "cannot run Linux guests (LINUX=1): no kernel at /x"),)
    assert diagnose(Facts("bare-metal guest", error="exit code is 1", findings=missing)).name == "unknown"


def test_findings_that_are_well_explain_nothing() -> None:
    fine = (finding("host", "cgroups: v2", Level.OK), finding("qemu", "no kernel at", Level.OK))
    assert diagnose(Facts(LINUX, findings=fine)).name == "unknown"


@pytest.mark.parametrize(
    ("release", "package"), [("12", "qemu-system-common"), ("13", "virtiofsd"), ("", "install virtiofsd")]
)
def test_a_package_by_its_name_on_this_release(release: str, package: str) -> None:
    facts = Facts(LINUX, said="/usr/lib/qemu/virtiofsd: No such file or directory", release=release)
    assert package in diagnose(facts).mend


def test_the_accelerator_is_blamed_for_no_failure_of_another() -> None:
    """The very mend that this table replaces named the kernel's files where KVM was to blame, and so on for each."""
    on_kvm = diagnose(Facts(LINUX, late=True, accel="kvm", vmm_state="running"))
    on_tcg = diagnose(Facts(LINUX, late=True, accel="tcg", vmm_state="running"))
    assert "tcg" in on_kvm.mend
    assert "prepare-guest" not in on_kvm.mend
    assert "tcg" not in on_tcg.mend


@given(
    st.builds(
        Facts, what=st.sampled_from([LINUX, "cell", "{x}"]), error=st.text(), said=st.text(), late=st.booleans(),
        number=st.integers(0, 140), reason=st.text(), code=st.none() | st.integers(0, 255), accel=st.text(),
        vmm_state=st.text(), vmm_log=st.text(), kernel=st.text(), supervisor_log=st.text(), engine_log=st.text(),
    )
)  # fmt: skip
def test_whatever_is_known_there_is_an_answer(facts: Facts) -> None:
    assert diagnose(facts).mend
