# SPDX-License-Identifier: Apache-2.0
"""`bin/start_jailhouse` on the fake board: what it does, what it finds, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from backends.jailhouse import codec
from runphi_async.board.claims import Claim, Kind, Owner
from runphi_async.board.ledger import FILE, Ledger
from runphi_async.host.files import boot_id
from runphi_async.testing.fake_jailhouse import machine, rootsystem
from tests.unit.fakeboard import BIN, CONFIGS, ROOT, FakeBoard

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
START = str(ROOT / "bin" / "start_jailhouse")
INSERT = "modprobe: ERROR: could not insert 'jailhouse':"
NOT_LOADED = "note    jailhouse   Jailhouse's kernel module is not loaded"


class Board(FakeBoard):
    """A board and a configuration of runPHI that names it."""

    def __init__(self) -> None:
        super().__init__()
        self.run_dir = self.root / "run-dir"
        self.run_dir.mkdir()
        self.configure()

    def configure(self, **settings: Any) -> None:
        """Write runPHI's configuration."""
        words = {
            "board": "qemu-arm64",
            "sysfs": str(self.place.sysfs),
            "system_config": str(self.path("qemu-arm64-4")),
            "deadline_seconds": 20,
            **settings,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in words.items()]
        (self.root / "runphi.toml").write_text("\n".join(["[jailhouse]", *lines, ""]))

    def start(self, *words: str) -> tuple[int, str, str]:
        """Call it; return its status and what it printed."""
        env = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "FAKE_JAILHOUSE": str(self.root),
            "RUNPHI_CONFIG": str(self.root / "runphi.toml"),
            "RUNPHI_RUN_DIR": str(self.run_dir),
        }
        done = subprocess.run([START, *words], env=env, capture_output=True, text=True, timeout=90, check=False)
        return done.returncode, done.stdout, done.stderr

    def enabled(self) -> bool:
        path = self.place.sysfs / "enabled"
        return path.exists() and path.read_text() == "1\n"


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.off()


def test_start_look_and_stop(board: Board) -> None:
    status, out, _ = board.start("--check")
    assert status == 0
    assert NOT_LOADED in out
    assert not board.place.sysfs.exists()
    status, out, _ = board.start()
    assert status == 0, out
    assert out.splitlines()[-2:] == [
        "ok      jailhouse   Jailhouse's kernel module was loaded",
        "ok      jailhouse   Jailhouse was enabled; the root cell is 'qemu-arm64'",
    ]
    running = "ok      jailhouse   Jailhouse is enabled; the root cell is 'qemu-arm64' on CPUs 0-3\n"
    assert board.start() == (0, running, "")  # once more does nothing
    assert board.start("--check") == (0, running, "")
    status, out, _ = board.start("--stop")
    assert (status, board.place.sysfs.exists()) == (0, False)
    assert "Jailhouse was disabled" in out
    assert "its kernel module was removed" in out
    assert board.start("--stop") == (0, "ok      jailhouse   Jailhouse is not loaded\n", "")


def test_a_module_from_a_file_and_a_configuration_by_name(board: Board) -> None:
    board.configure(system_config="")
    (board.root / rootsystem.here("lib/modules/RELEASE/modules.dep")).write_text("")
    status, out, err = board.start("--module", "/nonexistent.ko", str(board.path("qemu-arm64-4")))
    assert (status, board.enabled()) == (1, False)
    assert "cannot load Jailhouse's kernel module: the kernel's tools said 'insmod: ERROR: could not load" in err
    status, out, _ = board.start("--module", str(board.root / rootsystem.here(rootsystem.MODULE)))
    assert status == 1
    assert "error   jailhouse   no system configuration is named" in out
    status, _, err = board.start(
        "--module", str(board.root / rootsystem.here(rootsystem.MODULE)), str(board.path("qemu-arm64-4"))
    )
    assert (status, board.enabled(), err) == (0, True, "")


def break_module(board: Board) -> None:
    (board.root / rootsystem.here("lib/modules/RELEASE/modules.dep")).write_text("kernel/other.ko:\n")


def break_memory(board: Board) -> None:
    (board.root / "proc/iomem").write_text("40000000-7fffffff : System RAM\n")
    (board.root / "proc/cmdline").write_text("quiet\n")


def break_firmware(board: Board) -> None:
    board.place.firmware.unlink()


def break_device(board: Board) -> None:
    machine.insert(board.place)
    board.place.device.unlink()


def break_cpus(board: Board) -> None:
    machine.online(board.place, 2, up=False)


def break_gic(board: Board) -> None:
    (board.root / "proc/interrupts").write_text(" 11: 1 GICv2 27 Level timer\n")


def break_tool(board: Board) -> None:
    board.configure(tool="/nonexistent/jailhouse")


def name_a_cell(board: Board) -> None:
    board.configure(system_config=str(board.path("t-vcon1")))


def name_a_cut_one(board: Board) -> None:
    path = board.path("cut")
    path.write_bytes(codec.encode(CONFIGS["qemu-arm64-4"])[:600])
    board.configure(system_config=str(path))


def take_another_board(board: Board) -> None:
    board.configure(board="kria-kv260")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_module, "has no module jailhouse"),
        (break_memory, "memory 0x7fc00000-0x7fffffff for the hypervisor is not reserved: Linux uses 0x40000000-"),
        (break_firmware, "the hypervisor's image jailhouse.bin is not in /lib/firmware"),
        (break_device, "/dev/jailhouse cannot be used: No such file or directory"),
        (break_cpus, "the system configuration lists CPU 2, which is not online"),
        (break_gic, "the system configuration is for GICv3, and this machine has GICv2"),
        (break_tool, "the `jailhouse` tool is not there"),
        (name_a_cell, "t-vcon1.cell is the configuration of cell 'vcon1'"),
        (name_a_cut_one, "cannot use the system configuration:"),
        (take_another_board, "and board 'kria-kv260' for 'ZynqMP-KV260'"),
    ],
)
def test_what_is_in_the_way_is_said_and_nothing_is_done(board: Board, damage: Any, words: str) -> None:
    damage(board)
    loaded = board.place.sysfs.exists()
    for options in (["--check"], []):
        status, out, _ = board.start(*options)
        assert status == 1
        (line,) = [line for line in out.splitlines() if words in line]
        assert line.startswith("error   jailhouse   ")
        assert "to mend it: " in out[out.index(line) :].splitlines()[1]
    assert board.place.sysfs.exists() is loaded
    assert not board.enabled()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            {"on": "modprobe", "status": 1, "stderr": f"{INSERT} Exec format error"},
            "cannot load Jailhouse's kernel module: it was built for another kernel; build it for this kernel",
        ),
        (
            {"on": "enable", "errno": "EINVAL"},
            "cannot enable Jailhouse: the system configuration does not fit the machine; it must list exactly the CPUs",
        ),
        (
            {"on": "enable", "errno": "EBUSY"},
            "cannot enable Jailhouse: it is enabled already; disable it first, or use it as it is",
        ),
        ({"on": "enable", "errno": "ENODEV"}, "cannot enable Jailhouse: the CPU has no virtualization"),
        ({"on": "enable", "errno": "ENOMEM"}, "cannot enable Jailhouse: jailhouse said"),
        ({"on": "enable", "status": 0}, "the tool reported success, but sysfs shows no change"),
    ],
)  # fmt: skip
def test_what_only_the_tools_know_is_said_too(board: Board, rule: dict[str, Any], words: str) -> None:
    board.place.control.write_text(json.dumps([rule]))
    status, _, err = board.start()
    assert status == 1
    assert err.startswith("start_jailhouse: cannot ")
    assert words in err


def test_a_tool_that_hangs(board: Board) -> None:
    board.configure(deadline_seconds=1)
    board.place.control.write_text(json.dumps([{"on": "enable", "hang": "caller"}]))
    status, _, err = board.start()
    assert status == 1
    assert "cannot enable Jailhouse" in err
    assert "jailhouse did not come back within 1 s; the board must be reset" in err


def test_a_board_that_hangs(board: Board) -> None:
    """A read of sysfs that never returns: it is said, and the command ends all the same."""
    assert board.start()[0] == 0
    enabled = board.place.sysfs / "enabled"
    enabled.unlink()
    os.mkfifo(enabled)
    for options in ([], ["--check"], ["--stop"]):
        status, out, err = board.start(*options)
        assert (status, out) == (1, "")
        assert "no answer within 5 s; the board must be reset" in err


def test_enabled_for_another_board(board: Board) -> None:
    assert board.start()[0] == 0
    board.configure(board="kria-kv260", system_config="")
    status, out, _ = board.start()
    assert status == 1
    assert "the root cell that runs is 'qemu-arm64', and the board file is for 'ZynqMP-KV260'" in out


def test_stop_is_refused_while_there_are_cells(board: Board) -> None:
    assert board.start()[0] == 0
    for name in ("t-vcon1", "t-vcon2"):
        assert board.jailhouse("cell", "create", str(board.path(name))).status == 0
    Ledger(str(board.run_dir / FILE), boot_id()).claim(Owner("web@7", boot_id(), "vcon1"), [Claim(Kind.CPU, 1, 2)])
    status, out, _ = board.start("--stop")
    assert (status, board.enabled()) == (1, True)
    assert "cell 'vcon1' is container 'web@7' (shut down)" in out
    assert "delete it first: runphi delete --force web@7" in out
    assert "cell 'vcon2' was made by somebody else" in out
    for name in ("vcon1", "vcon2"):
        assert board.jailhouse("cell", "destroy", name).status == 0
    machine.online(board.place, 3, up=False)
    status, out, _ = board.start("--stop")
    assert (status, board.enabled()) == (1, True)
    assert "CPU 3 of the root cell is offline: stopping would fail half way" in out
    machine.online(board.place, 3, up=True)
    busy = {"on": "rmmod", "status": 1, "stderr": "rmmod: ERROR: Module jailhouse is in use"}
    board.place.control.write_text(json.dumps([busy]))
    status, out, _ = board.start("--stop")
    assert (status, board.enabled()) == (0, False)
    assert "note    jailhouse   its kernel module stays: Jailhouse is enabled, or somebody has /dev/jailhouse" in out


def test_a_configuration_that_cannot_be_read(board: Board) -> None:
    (board.root / "runphi.toml").write_text("nonsense")
    status, out, err = board.start("--check")
    assert (status, out) == (1, "")
    assert err.startswith("start_jailhouse: ")
