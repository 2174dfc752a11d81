# SPDX-License-Identifier: Apache-2.0
"""The how-to "Run a Zephyr image on a Kria", as far as it goes without a board: plan for the board, life on the fake.

The image is a stand-in with Zephyr's layout; the fake board runs its own program in its place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from runphi_async.testing.cellboard import CellBoard
from tests.system.place import ROOT, Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(180),
]
#: The fake board's cells have ports of their own by default.
VIRTUAL = {"org.runphi.console-port": "virtual"}
EXAMPLE = ROOT / "examples" / "zephyr"
#: Zephyr's own headers as far as the example needs them.
STUBS = {
    "zephyr/init.h": "#define SYS_INIT(f, level, prio) int (*const init_##f)(void) = f\n",
}


def elf(path: Path) -> Path:
    """Make a program that lies where Zephyr's board kv260_a53 is linked for, and does not begin at its first byte."""
    (path / "stand.S").write_text(".text\n.global _start\nnop\nnop\n_start: mov x0, #1\nb .\n")
    subprocess.run(
        ["aarch64-linux-gnu-gcc", "-nostdlib", "-static", "-Wl,-Ttext=0x40000000,--build-id=none,-n", "-o",
         "zephyr.elf", "stand.S"],
        cwd=path, check=True, timeout=60,
    )  # fmt: skip
    return path / "zephyr.elf"


def bundle(path: Path, image: Path, **annotations: str) -> Path:
    """Make a bundle as an engine does of the example's container image."""
    boot = path / "rootfs" / "boot"
    boot.mkdir(parents=True)
    shutil.copy(image, boot / "zephyr.elf")
    shutil.copy(EXAMPLE / "config.json", boot)
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {"terminal": False, "user": {"uid": 0, "gid": 0}, "args": ["/x"], "cwd": "/", "env": []},
        "root": {"path": "rootfs"},
        "annotations": annotations,
        "linux": {"resources": {"memory": {"limit": 16 << 20}}, "namespaces": []},
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def board(tmp_path: Path) -> Iterator[CellBoard]:
    made = CellBoard(tmp_path)
    yield made
    made.close()


@pytest.fixture
def place(board: CellBoard, tmp_path: Path) -> Iterator[Place]:
    settings = {**board.settings(), "pause": "refuse"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    made = Place(tmp_path, "\n".join(['backend = "jailhouse"', "[jailhouse]", *lines, ""]))
    made.env["FAKE_JAILHOUSE"] = str(board.place.root)
    yield made
    left = made.close()
    assert not left, "left over:\n" + "\n".join(left)


@pytest.fixture
def kria(tmp_path: Path) -> Iterator[Place]:
    """A supervisor that plans for the board and has none."""
    lines = ['backend = "jailhouse"', "[jailhouse]", 'board = "kria-kv260"', f'sysfs = "{tmp_path}/none"', ""]
    made = Place(tmp_path, "\n".join(lines))
    yield made
    left = made.close()
    assert not left, "left over:\n" + "\n".join(left)


def test_the_plan_for_the_board(kria: Place, tmp_path: Path) -> None:
    made = bundle(tmp_path / "zephyr", elf(tmp_path))
    lines = kria.must("plan", str(made)).splitlines()
    for line in (
        "# cell: 'zephyr' on board 'kria-kv260', layout omnivisor",
        "# memory: RAM at 0x3ed00000, which the cell sees at 0x40000000 (its ELF header says so)",
        "# boot: loaded at 0x40000000, the CPU begins at 0x40000008",
        "console = virtual output only",
        "virtual_console = active",
        "reset_address = 0x40000008",
    ):
        assert line in lines, "\n".join(lines)
    assert kria.must("board", "check", "kria-kv260").startswith("kria-kv260: kria-kv260 (omnivisor) offers CPUs 1-3")


def test_its_life_on_the_fake(place: Place, board: CellBoard, tmp_path: Path) -> None:
    cell = place.create("zephyr", made=bundle(tmp_path / "zephyr", elf(tmp_path), **VIRTUAL))
    assert cell.created == 0, (cell.error, place.log())
    cell.must("start")
    cell.expect(b'demo inmate in cell "zephyr", CPU 1\r\n')
    assert 'demo inmate in cell "zephyr"' in place.must("logs", "zephyr")
    assert "  CPU 1   zephyr" in place.must("map").splitlines()
    assert 'set pause = "shutdown" in [jailhouse]' in cell.refused("pause")
    cell.type(b"hello\n")
    cell.expect(b"the hypervisor's console is output only")
    place.must("kill", "zephyr", "KILL")
    assert cell.wait() == 137
    cell.must("delete")
    assert list(board.cells()) == []


def test_the_console_of_the_example_is_a_hypercall(tmp_path: Path) -> None:
    for name, text in STUBS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", f"-I{tmp_path}"]
    subprocess.run(
        ["aarch64-linux-gnu-gcc", *flags, "-c", str(EXAMPLE / "src" / "cellconsole.c"), "-o", "console.o"],
        cwd=tmp_path, check=True, timeout=60,
    )  # fmt: skip
    shown = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", "console.o"],
        cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "hvc\t#0x4a48" in shown
    assert "mov\tx0, #0x8" in shown
