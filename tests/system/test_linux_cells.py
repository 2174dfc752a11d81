# SPDX-License-Identifier: Apache-2.0
"""Linux cells as containers, in a real supervisor on the fake board, which checks what was loaded as a kernel would."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from backends.base import Evidence
from backends.guest import fdt
from backends.jailhouse import examples, linuxfiles
from backends.jailhouse.backend import JailhouseBackend
from backends.jailhouse.progress import SAID
from runphi_async.partition.spec import GuestKind
from tests.system.cellkit import CellPlace, board_in, kill, places
from tests.system.place import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runphi_async.testing.cellboard import CellBoard
    from tests.system.place import Container

BUSYBOX = shutil.which("busybox")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(BUSYBOX is None, reason="needs busybox-static"),
    pytest.mark.timeout(180),
]


class LinuxPlace(CellPlace):
    """A supervisor's world with a board and a small Linux image."""

    def linux(self, name: str, script: str, *, port: str = "port1", tty: bool = False, **more: Any) -> Container:
        """Create a container that runs a script in a Linux cell."""
        annotations = {"org.runphi.console-port": port, **more.pop("annotations", {})}
        process = {"args": ["/bin/sh", "-c", script], "env": ["LINUX=1", "PATH=/bin", "WORD=a word"], **more}
        made = self.bundle(name, backend="jailhouse", terminal=tty, annotations=annotations, process=process)
        folder = made / "rootfs" / "bin"
        folder.mkdir()
        assert BUSYBOX is not None
        shutil.copy(BUSYBOX, folder / "busybox")
        for tool in ("sh", "cat", "id", "stty", "sleep"):
            (folder / tool).symlink_to("busybox")
        return self.create(name, made=made)

    def started(self, name: str, script: str, **more: Any) -> Container:
        cell = self.linux(name, script, **more)
        assert cell.created == 0, (cell.error, self.log())
        cell.must("start")
        return cell

    def kernel_log(self) -> str:
        return (self.board.place.root / "dmesg").read_text()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[CellBoard]:
    with board_in(tmp_path) as made:
        yield made


@pytest.fixture
def place_with(board: CellBoard) -> Iterator[Callable[..., LinuxPlace]]:
    with places(LinuxPlace, board) as make:
        yield make


@pytest.fixture
def place(place_with: Callable[..., LinuxPlace]) -> LinuxPlace:
    return place_with()


def test_the_whole_walk(place: LinuxPlace) -> None:
    cell = place.started("walk", 'echo "$WORD $0"; pwd; read line; echo "read $line"; exit 7', cwd="/home")
    cell.expect(b"a word /bin/sh\n/home\n")
    assert cell.state()["status"] == "running"
    cell.type(b"what was typed\n")
    assert cell.wait() == 7
    # neither init's words nor anything else is shown
    assert cell.rest() == b"read what was typed\n"
    assert cell.state()["annotations"]["org.runphi.exit-reason"] == "exited with 7"
    assert b"\x1b" not in cell.console_log()
    assert list(place.board.cells()) == []
    assert place.held() == set()
    cell.must("delete")


def test_what_was_loaded_is_in_the_record(place: LinuxPlace) -> None:
    cell = place.started("record", "read line", annotations={"org.runphi.cmdline": "isolcpus=1"})
    tree = fdt.parse((cell.record / linuxfiles.TREE).read_bytes()).root
    chosen = tree.child("chosen")
    assert chosen is not None
    assert chosen.texts("bootargs") == ["console=ttyAMA0,115200 quiet loglevel=1 isolcpus=1"]
    start, end = (int.from_bytes(chosen.props[f"linux,initrd-{name}"], "big") for name in ("start", "end"))
    assert end - start == (cell.record / linuxfiles.RAMDISK).stat().st_size
    conf = (cell.record / "configrecord.conf").read_text()
    assert "load.4 = dtb 'made.dtb' at 0x70000000 0x2000" in conf
    assert "cmdline = console=ttyAMA0,115200 quiet loglevel=1 isolcpus=1" in conf
    kill(cell, "KILL")
    assert cell.wait() == 137


@pytest.mark.parametrize(
    ("process", "code", "reason"),
    [
        ({}, 0, "exited with 0"),
        ({"args": ["/bin/sh", "-c", "kill -9 $$"]}, 137, "exited with 137"),
        ({"args": ["absent"]}, 127, "cannot run the process: cannot run absent: executable file not found in $PATH"),
        ({"args": ["/bin/absent"]}, 127, "cannot run the process: cannot run /bin/absent: No such file or directory"),
        ({"args": ["/bin/id", "-u"], "user": {"uid": 7, "gid": 8}}, 0, "exited with 0"),
    ],
)
def test_how_processes_end(place: LinuxPlace, process: dict[str, Any], code: int, reason: str) -> None:
    cell = place.started("ends", "exit 0", **process)
    assert cell.wait() == code
    assert cell.state()["annotations"]["org.runphi.exit-reason"] == reason
    shown = cell.rest()
    if code == 127:
        assert f"runphi: {reason.partition(': ')[2]}\n".encode() in shown
    elif "user" in process:
        assert shown == b"7\n"


def test_a_flood_comes_whole_and_before_the_end(place: LinuxPlace) -> None:
    cell = place.started("flood", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; printf end; exit 5")
    assert cell.rest() == b"".join(b"line %d\n" % n for n in range(20000)) + b"end"
    assert cell.wait() == 5


def test_the_end_of_the_input_and_signals_arrive(place: LinuxPlace) -> None:
    cell = place.started("eof", "trap 'echo usr1' USR1; cat; echo over; while :; do sleep 1; done")
    cell.type(b"one\ntwo")
    os.close(cell.stdin)
    cell.stdin = -1
    cell.expect(b"one\ntwoover\n")
    kill(cell, "USR1")
    cell.expect(b"usr1\n")
    kill(cell, "TERM")
    assert cell.wait() == 143
    assert cell.state()["annotations"]["org.runphi.exit-reason"] == "exited with 143"


def test_pause_and_resume_load_everything_again(place: LinuxPlace) -> None:
    cell = place.started("again", "touch /been 2>/dev/null; echo begun; read line; echo $line; exit 4")
    cell.expect(b"begun\n")
    cell.must("pause")
    assert cell.state()["status"] == "paused"
    cell.must("resume")
    cell.expect(b"begun\n")
    cell.type(b"x\n")
    assert cell.wait() == 4


def test_a_supervisor_that_dies_loses_nothing(place: LinuxPlace) -> None:
    cell = place.started("outlives", "echo begun; read line; echo read $line; exit 9")
    cell.expect(b"begun\n")
    place.kill_supervisor()
    cell.type(b"on\n")
    cell.expect(b"read on\n")
    assert cell.wait() == 9
    assert cell.state()["annotations"]["org.runphi.exit-reason"] == "exited with 9"


def test_what_init_said_is_known_to_the_next_supervisor(board: CellBoard, tmp_path: Path) -> None:
    plan = next(examples.plan(example) for example in examples.EXAMPLES if example.spec["kind"] is GuestKind.LINUX)
    backend = JailhouseBackend(board.config(), str(tmp_path))
    for said, verdict in (("7\n", (7, "exited with 7")), ("126 no\n", (126, "cannot run the process: no"))):
        (tmp_path / SAID).write_text(said)
        driver = backend.recall(backend.remember(plan), str(tmp_path))
        assert driver.settle(Evidence(9, 0, True)) == verdict


def test_a_cell_whose_last_word_was_lost_ends_as_its_state_says(place: LinuxPlace) -> None:
    cell = place.started("lost", "echo begun; read line")
    cell.expect(b"begun\n")
    place.board.poke("lost", "--state", "3")
    assert cell.wait() == 1
    assert cell.state()["annotations"]["org.runphi.exit-reason"] == "the guest says that it has failed"


def test_on_the_hypervisors_console(place: LinuxPlace) -> None:
    cell = place.started("virtual", "echo one; echo two; exit 6", port="virtual")
    assert cell.wait() == 6
    assert [line for line in cell.rest().splitlines() if line] == [b"one", b"two"]


def test_on_a_virtio_console(place: LinuxPlace) -> None:
    cell = place.started("hvc", "echo begun; read line; echo read $line; exit 6", port="con1")
    cell.expect(b"begun\n")
    cell.type(b"this\n")
    assert cell.wait() == 6
    assert cell.rest() == b"read this\n"


def test_without_a_console_the_state_tells(place: LinuxPlace) -> None:
    for name, code, told in (("well", 0, 0), ("badly", 6, 1)):
        cell = place.started(name, f"exit {code}", port="none")
        assert cell.wait() == told
        cell.must("delete")


def test_a_kernel_with_a_ram_disk_of_its_own_boots_by_itself(place: LinuxPlace) -> None:
    made = place.bundle(
        "own",
        backend="jailhouse",
        annotations={"org.runphi.console-port": "port1"},
        process={"env": ["KERNEL=/boot/Image", "RAMDISK=/boot/initrd"]},
    )
    shutil.copy(place.board.kernel, made / "rootfs/boot/Image")
    shutil.copy(place.board.initrd, made / "rootfs/boot/initrd")
    cell = place.create("own", made=made)
    assert cell.created == 0, cell.error
    cell.must("start")
    shown = cell.expect(b"Run /init as init process")
    assert b"Kernel command line: console=ttyAMA0,115200\r\n" in shown
    kill(cell, "KILL")
    assert cell.wait() == 137


def test_what_cannot_boot_is_said_by_the_board(place: LinuxPlace) -> None:
    place.board.kernel.write_bytes(bytes(4096).replace(bytes(64), bytes(56) + b"ARM\x64" + bytes(4), 1))
    cell = place.linux("late", "exit 0")
    assert cell.created == 0, cell.error
    with open(place.board.place.memory, "r+b") as memory:  # somebody overwrites the RAM disk
        memory.seek(int.from_bytes(_initrd_start(cell), "big"))
        memory.write(b"junk")
    cell.must("start")
    until(lambda: "late: Linux cannot boot: the RAM disk is damaged at 0x0" in place.kernel_log(), "the board's word")
    assert cell.state()["status"] == "running"
    kill(cell, "KILL")
    assert cell.wait() == 137


def _initrd_start(cell: Container) -> bytes:
    chosen = fdt.parse((cell.record / linuxfiles.TREE).read_bytes()).root.child("chosen")
    assert chosen is not None
    return chosen.props["linux,initrd-start"]


def test_what_is_refused_before_anything_is_made(place: LinuxPlace) -> None:
    place.board.initrd.unlink()
    cell = place.linux("refused", "exit 0")
    assert cell.created != 0
    assert "RAM disk with our init is missing" in cell.error
    assert "no Linux cells: the RAM disk with our init is missing at " in place.call("doctor").stdout
    assert list(place.board.cells()) == []
    bad = place.bundle(
        "tree",
        backend="jailhouse",
        annotations={"org.runphi.console-port": "port1", "org.runphi.dtb": "/boot/config.json"},
        process={"env": ["KERNEL=/boot/Image"]},
    )
    shutil.copy(place.board.kernel, bad / "rootfs/boot/Image")
    (bad / "rootfs/boot/config.json").write_text(json.dumps({}))
    cell = place.create("tree", made=bad)
    assert "cannot read the device tree: it does not begin as one" in cell.error
    assert place.held() == set()
