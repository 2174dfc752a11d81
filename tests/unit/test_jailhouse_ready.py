# SPDX-License-Identifier: Apache-2.0
"""Whether a machine can run Jailhouse: every obstacle that can be seen before the tool is called, in words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from backends.base import Level
from backends.jailhouse import codec, machinefacts, ready
from backends.jailhouse.model import Arch, ArmPlatform, Iommu, Memory, System, SystemFlag
from backends.jailhouse.ready import Machine, Step
from backends.jailhouse.settings import Jailhouse
from backends.jailhouse.sysfs import CellSeen, View
from runphi_async.board import loading
from runphi_async.board.ranges import Range
from runphi_async.testing.fake_jailhouse import board as fake

if TYPE_CHECKING:
    from pathlib import Path

SYSTEM = fake.root_config()
LOADED = View(module=True)
ENABLED = View(module=True, enabled=True, cells=(CellSeen(0, "qemu-arm64", "running", (0, 1, 2, 3)),))
RAM = Range(0x4000_0000, 0x7000_0000)
HEALTHY = Machine(
    uid=0,
    tool="/usr/sbin/jailhouse",
    machine="aarch64",
    kernel="6.1.192",
    view=View(),
    module=True,
    device="",
    firmware=("jailhouse.bin",),
    wanted="jailhouse.bin",
    system_path="root.cell",
    system=SYSTEM,
    problem="",
    iomem=((RAM, "System RAM"),),
    cmdline="console=ttyAMA0 mem=768M",
    online=(0, 1, 2, 3),
    gic=3,
    iommus=(),
    board=loading.load("qemu-arm64"),
)


def system(**more: Any) -> System:
    return msgspec.structs.replace(SYSTEM, **more)


def root(**more: Any) -> System:
    return system(root_cell=msgspec.structs.replace(SYSTEM.root_cell, **more))


def test_a_machine_that_is_ready() -> None:
    found = ready.judge(HEALTHY)
    assert {finding.level for finding in found} == {Level.NOTE, Level.OK}
    assert [finding.text for finding in found] == [
        "Jailhouse's kernel module is not loaded",
        "the hypervisor's image is there: jailhouse.bin",
        "memory 0x7fc00000-0x7fffffff, 0x70000000-0x7fa0ffff is kept free for Jailhouse",
        "CPUs 0-3 are online, as the system configuration lists them",
        "interrupt controller GICv3, as the system configuration says",
    ]
    assert ready.steps(HEALTHY) == (Step.LOAD, Step.ENABLE)
    assert ready.steps(HEALTHY._replace(view=LOADED)) == (Step.ENABLE,)
    assert ready.steps(HEALTHY._replace(view=ENABLED)) == ()
    assert not ready.hopeless(found)


ALL_OF_IT = ((Range(0x4000_0000, 0x8000_0000), "System RAM"),)
#: What is wrong, how bad it is, what is said and how to mend it.
OBSTACLES: dict[str, tuple[dict[str, Any], Level, str, str]] = {
    "not root": ({"uid": 1000}, Level.ERROR, "only root may drive Jailhouse", "run it as root"),
    "no tool": ({"tool": ""}, Level.ERROR, "the `jailhouse` tool is not there", "set jailhouse.tool"),
    "no module": ({"module": False}, Level.ERROR, "Linux 6.1.192 has no module jailhouse", "build it for this kernel"),
    "not enabled": ({"view": LOADED}, Level.NOTE, "Jailhouse is not enabled", "enable it with"),
    "no device": (
        {"view": LOADED, "device": "No such file or directory"},
        Level.ERROR,
        "/dev/jailhouse cannot be used: No such file or directory",
        "is devtmpfs mounted?",
    ),
    "no firmware": (
        {"firmware": ()},
        Level.ERROR,
        "the hypervisor's image jailhouse.bin is not in /lib/firmware",
        "install jailhouse.bin there",
    ),
    "another firmware": (
        {"firmware": ("jailhouse-amd.bin",), "wanted": "jailhouse-intel.bin"},
        Level.ERROR,
        "jailhouse-intel.bin is not in /lib/firmware; there is jailhouse-amd.bin",
        "install jailhouse-intel.bin",
    ),
    "no configuration": (
        {"system": None, "system_path": ""},
        Level.NOTE,
        "no system configuration is named",
        "set jailhouse.system_config",
    ),
    "a bad configuration": (
        {"system": None, "problem": "x.cell is the configuration of cell 'demo'"},
        Level.ERROR,
        "cannot use the system configuration: x.cell is the configuration of cell 'demo'",
        "name the board's own",
    ),
    "no virtual console": (
        {"system": system(flags=SYSTEM.flags & ~SystemFlag.VIRTUAL_DEBUG_CONSOLE)},
        Level.WARNING,
        "without VIRTUAL_DEBUG_CONSOLE nothing of the hypervisor's console can be read",
        "set the flag",
    ),
    "another architecture": (
        {"system": system(architecture=Arch.ARM)},
        Level.ERROR,
        "root.cell is for arm, and this machine is aarch64",
        "name the board's own",
    ),
    "another board": (
        {"system": root(name="ZynqMP")},
        Level.ERROR,
        "root.cell is for 'ZynqMP', and board 'qemu-arm64' for 'qemu-arm64'",
        "runphi board from-sysconfig",
    ),
    "another dialect": (
        {"system": system(dialect="omnivisor")},
        Level.ERROR,
        "root.cell is of dialect omnivisor, and board 'qemu-arm64' of mainline",
        'set dialect = "omnivisor"',
    ),
    "memory of nobody": (
        {"system": root(memory=(Memory(0x4000_0000, 0x4000_0000, 0x3800_0000, 7),))},
        Level.ERROR,
        "board 'qemu-arm64' lends 0x78000000-0x7fa0ffff, which is not the root cell's",
        "lend memory that",
    ),
    "a CPU too many in the board file": (
        {"system": root(cpu_set=b"\x07" + bytes(7)), "online": (0, 1, 2)},
        Level.ERROR,
        "board 'qemu-arm64' lends CPU 3, which the root cell does not have",
        "correct [cpus]",
    ),
    "nothing reserved": (
        {"iomem": ALL_OF_IT, "cmdline": "quiet"},
        Level.ERROR,
        "memory 0x7fc00000-0x7fffffff for the hypervisor is not reserved: Linux uses 0x40000000-0x7fffffff",
        "boot with a reserved-memory node (no-map) for it in the device tree, or with mem=768M",
    ),
    "too little reserved": (
        {"iomem": ((Range(0x4000_0000, 0x7C00_0000), "System RAM"),), "cmdline": "quiet mem=960M"},
        Level.ERROR,
        "for cells (ram) is not reserved: Linux uses 0x40000000-0x7bffffff, although the kernel was booted with mem=",
        "mem=768M",
    ),
    "addresses hidden": ({"iomem": None}, Level.NOTE, "/proc/iomem hides addresses", ""),
    "a CPU offline": (
        {"online": (0, 1, 3)},
        Level.ERROR,
        "the system configuration lists CPU 2, which is not online",
        "bring it online",
    ),
    "a CPU too many": (
        {"online": (0, 1, 2, 3, 4, 5)},
        Level.ERROR,
        "CPU 4-5 is online, and the system configuration does not list it",
        "add it to the configuration, or boot with maxcpus=",
    ),
    "another GIC": (
        {"gic": 2},
        Level.ERROR,
        "the system configuration is for GICv3, and this machine has GICv2",
        "name the configuration of this machine",
    ),
    "an IOMMU in use": (
        {"system": system(iommu_units=(Iommu(1, 0x1000, 0x1000),)), "iommus": ("dmar0",)},
        Level.WARNING,
        "Linux drives IOMMU dmar0, and the hypervisor is to take over 1",
        "boot with intel_iommu=off",
    ),
    "the virtual PCI host covered": (
        {"iomem": ((RAM, "System RAM"), (Range(0x80A_0000, 0x900_0000), "GICR"))},
        Level.WARNING,
        "GICR at 0x80a0000-0x8ffffff covers the virtual PCI host at 0x8e00000: no shared memory devices",
        "in the device tree",
    ),
    "a CPU of the root cell is offline": (
        {"view": ENABLED, "online": (0, 2)},
        Level.WARNING,
        "CPU 1,3 of the root cell is offline: `jailhouse disable` would fail half way",
        "bring it online",
    ),
    "another root cell runs": (
        {"view": ENABLED._replace(cells=(CellSeen(0, "other", "running", (0,)),))},
        Level.ERROR,
        "the root cell that runs is 'other', and the board file is for 'qemu-arm64'",
        "name the right one",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_an_obstacle(name: str) -> None:
    change, level, text, mend = OBSTACLES[name]
    found = [finding for finding in ready.judge(HEALTHY._replace(**change)) if text in finding.text]
    assert found, ready.judge(HEALTHY._replace(**change))
    assert found[0].level is level
    assert mend in found[0].mend


def test_pages_that_cells_share_are_kept_free_too() -> None:
    board = loading.load("kria-kv260")
    ram = ((Range(0, 0x3ED0_0000), "System RAM"), (Range(0x46D0_0000, 0x7E00_0000), "System RAM"))
    found = ready.judge(HEALTHY._replace(board=board, iomem=ram))
    (text,) = [finding.text for finding in found if "not reserved" in finding.text]
    assert text.startswith("memory 0x46d00000-0x46d0ffff for cells (page) is not reserved: Linux uses 0x46d00000-")


def test_x86_is_told_of_memmap() -> None:
    platform = system(architecture=Arch.X86)
    machine = HEALTHY._replace(machine="x86_64", system=platform, iomem=ALL_OF_IT, board=None)
    (finding,) = [found for found in ready.judge(machine) if "not reserved" in found.text]
    assert finding.mend == "boot the kernel with memmap=0x400000$0x7fc00000"


def test_what_runs_is_not_compared_with_what_it_was_started_from() -> None:
    """An enabled hypervisor has taken CPUs and memory; both were right, or it would not run."""
    machine = HEALTHY._replace(view=ENABLED, iomem=ALL_OF_IT, gic=2, firmware=(), module=False)
    assert [finding.text for finding in ready.judge(machine)] == [
        "Jailhouse is enabled; the root cell is 'qemu-arm64' on CPUs 0-3"
    ]


def test_what_must_not_be_stopped() -> None:
    cells = (*ENABLED.cells, CellSeen(1, "a", "running", (1,)), CellSeen(2, "b", "failed", (2,)))
    found = ready.in_the_way(ENABLED._replace(cells=cells), {"a": "web@1"}, (0, 3))
    assert [(finding.text, finding.mend) for finding in found] == [
        ("CPU 1-2 of the root cell is offline: stopping would fail half way", "bring it online"),
        ("cell 'a' is container 'web@1' (running)", "delete it first: runphi delete --force web@1"),
        (
            "cell 'b' was made by somebody else (failed)",
            "jailhouse cell destroy --name b, if nobody needs it",
        ),
    ]
    assert ready.in_the_way(ENABLED, {"a": "web"}, None) == []
    assert ready.in_the_way(LOADED, {"a": "web"}, ()) == []


# Section: reading


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A machine's files beside its sysfs tree."""
    files = {
        "proc/iomem": "40000000-6fffffff : System RAM\n  40000000-400fffff : Kernel code\n",
        "proc/cmdline": "quiet mem=768M\n",
        "proc/interrupts": " 11: 1042 GICv2 27 Level arch_timer\n",
        "proc/cpuinfo": "flags\t\t: fpu vmx sse\n",
        "proc/sys/kernel/arch": "armv7l\n",
        "sys/devices/system/cpu/online": "0-1,3\n",
        "sys/class/iommu/smmu0": "",
        f"lib/modules/{os.uname().release}/modules.dep": "kernel/a.ko.xz:\nextra/driver/jailhouse.ko.xz: kernel/a.ko\n",
        "lib/firmware/jailhouse-intel.bin": "",
        f"lib/firmware/{os.uname().release}/jailhouse.bin": "",
        "lib/firmware/other.bin": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_machine_is_read(place: Path) -> None:
    config = place / "root.cell"
    config.write_bytes(codec.encode(SYSTEM))
    settings = Jailhouse(sysfs=f"{place}/sys/devices/jailhouse", system_config=str(config), board="qemu-arm64")
    found = machinefacts.read(settings, LOADED, program="/x/jailhouse")
    assert found.system == SYSTEM
    assert isinstance(SYSTEM.platform, ArmPlatform)
    assert (found.uid, found.tool, found.machine, found.module) == (os.geteuid(), "/x/jailhouse", "armv7l", True)
    assert found.device == "No such file or directory"
    assert (found.firmware, found.wanted) == (("jailhouse-intel.bin", "jailhouse.bin"), "jailhouse-intel.bin")
    assert found.iomem is not None
    assert found.iomem[0] == (RAM, "System RAM")
    assert (found.cmdline, found.online, found.gic, found.iommus) == ("quiet mem=768M", (0, 1, 3), 2, ("smmu0",))
    assert found.board is not None
    (place / "proc/iomem").write_text("00000000-00000000 : System RAM\n")
    (place / "proc/cpuinfo").write_text("flags : svm\n")
    again = machinefacts.read(settings, LOADED)
    assert (again.iomem, again.wanted) == (None, "jailhouse-amd.bin")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"JHSYS", "root.cell: offset 0x"),
        (codec.encode(fake.inmate_demo()), "root.cell is the configuration of cell 'inmate-demo'"),
    ],
)
def test_a_configuration_that_is_none(place: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (place / "root.cell").write_bytes(content)
    found = machinefacts.read(Jailhouse(sysfs=f"{place}/sys/devices/jailhouse"), View(), str(place / "root.cell"))
    assert found.system is None
    assert problem in found.problem


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    found = machinefacts.read(Jailhouse(sysfs=f"{tmp_path}/sys/devices/jailhouse"), View())
    assert (found.module, found.firmware, found.wanted, found.iomem) == (None, (), "jailhouse.bin", None)
    assert (found.online, found.gic, found.iommus, found.system, found.problem) == (None, None, (), None, "")
    assert machinefacts.prefix("/sys/devices/jailhouse/") == ""
