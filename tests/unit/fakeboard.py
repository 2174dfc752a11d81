# SPDX-License-Identifier: Apache-2.0
"""A fake board for tests, and recorded sessions to replay on it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec

import runphi_async.testing.fake_jailhouse as package
from backends.jailhouse import codec
from backends.jailhouse.model import Arch, Cell, CellFlag, System
from runphi_async.testing.fake_jailhouse import board, inmates, machine
from runphi_async.testing.fake_jailhouse.place import Place

BIN = Path(package.__file__).parent / "bin"
ROOT = Path(package.__file__).parents[3]
USAGE = "<full usage text on stdout>"
ACTIVE = CellFlag.VIRTUAL_CONSOLE_ACTIVE
#: Paths of the recorded machine that are the board's own here.
OWN = re.compile(r"(?<![\w/])/(root|tmp|sys/devices|lib/firmware|dev/jailhouse)\b")
CONFIGS: dict[str, Cell | System] = {
    "qemu-arm64": board.root_config(16),
    "qemu-arm64-4": board.root_config(),
    "qemu-arm64-4-novcon": board.root_config(virtual_console=False),
    "qemu-arm64-inmate-demo": board.inmate_demo(),
    "t-vcon1": board.small_cell("vcon1"),
    "t-vcon2": board.small_cell("vcon2", (2,), ram=0x7F900000),
    "t-comm": board.small_cell("comm", (3,), ram=0x7F800000, flags=ACTIVE),
    "t-commto": board.small_cell("commto", (3,), ram=0x7F800000, flags=ACTIVE, timeout=1000000),
    "t-two": board.small_cell("twocpu", (1, 2)),
    "t-cpu1b": board.small_cell("cpu1b", flags=CellFlag.PASSIVE_COMMREG),
    "t-perm": board.small_cell("perm", flags=CellFlag.PASSIVE_COMMREG | CellFlag.VIRTUAL_CONSOLE_PERMITTED, uart=True),
    "t-rev": msgspec.structs.replace(board.small_cell("rev"), revision=13),
    "t-arch": board.small_cell("arch", arch=Arch.X86),
    "t-cpu99": board.small_cell("cpu99", (9,)),
    "t-nocpu": board.small_cell("nocpu", ()),
    "t-cpu0": board.small_cell("cpu0", (0,)),
    "t-name31": board.small_cell("a23456789012345678901234567890X"),
    "t-num": board.small_cell("42"),
    "t-space": board.small_cell("my cell"),
    "t-overlap": board.small_cell("overlap", (3,)),
    "t-noexist-ram": board.small_cell("noram", (3,), ram=0x7FA30000),
}


class Result(NamedTuple):
    """What a command printed, without the board's own directory, and its status."""

    out: str
    err: str
    status: int


class Step(NamedTuple):
    """A command of a recorded session, and what it answered. ``command`` None: the board was reset."""

    command: str | None
    result: Result


class FakeBoard:
    """A board in a directory that everybody may enter: one recorded command is another user's.

    :param checkout: whose programs are used; one that everybody may enter, too, where another user calls them.
    """

    def __init__(self, checkout: Path = ROOT) -> None:
        self.checkout = checkout
        self.folder = tempfile.TemporaryDirectory(prefix="board-")
        self.root = Path(self.folder.name)
        self.root.chmod(0o755)
        self.place = Place(self.root)
        self.on()

    def on(self) -> None:
        """Switch the board on, the module not loaded, with the files that the recorded machine had."""
        self.place.power_on()
        for folder in ("root/jh", "root/ko", "root/runphi", "tmp", "shims"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for name, config in CONFIGS.items():
            self.path(name).write_bytes(codec.encode(config))
        for name in inmates.PROGRAMS:
            (self.root / f"root/jh/{name}.bin").write_bytes(inmates.image(name))
        old = codec.encode(codec.new_cell("inmate-demo", Arch.ARM64, "coloured"), readable_only=True)
        (self.root / "root/runphi/qemu-arm64-inmate-demo.cell").write_bytes(old)
        for name, text in SHIMS.items():
            shim = self.root / "shims" / name
            shim.write_text(f"#!/bin/sh\n{text}")
            shim.chmod(0o755)

    def path(self, name: str) -> Path:
        """Where a configuration lies."""
        return self.root / f"root/jh/{name}.cell"

    def off(self) -> None:
        """Pull the plug."""
        machine.power_off(self.place)
        self.folder.cleanup()

    @property
    def env(self) -> dict[str, str]:
        """Environment of commands on the board."""
        code = f"import sys; sys.path.insert(0, {str(self.checkout)!r})\n{RUN}"
        fake = shlex.join([sys.executable, "-I", "-c", code])
        path = f"{self.root}/shims:{self.checkout / BIN.relative_to(ROOT)}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "FAKE_JAILHOUSE": str(self.root), "BOARD": str(self.root), "FAKE": fake}

    def run(self, command: str, timeout: float = 50) -> Result:
        """Run a shell command on the board, with the recorded machine's paths."""
        command = re.sub(r"\bsleep [0-9.]+", "settle", command)
        command = re.sub(r"echo (\d) > /sys/devices/system/cpu/cpu(\d)/online", r"hotplug \1 \2", command)
        command = OWN.sub(lambda match: f"{self.root}{match[0]}", command)
        done = subprocess.run(
            ["bash", "-c", command], env=self.env, capture_output=True, timeout=timeout, check=False, cwd=self.root
        )
        out, err = (data.decode().replace(str(self.root), "") for data in (done.stdout, done.stderr))
        return Result(out, err, done.returncode)

    def jailhouse(self, *args: str, timeout: float = 50) -> Result:
        """Run the tool."""
        done = subprocess.run(
            [BIN / "jailhouse", *args], env=self.env, capture_output=True, timeout=timeout, check=False
        )
        return Result(done.stdout.decode(), done.stderr.decode(), done.returncode)

    def enable(self) -> None:
        """Load the module and enable the hypervisor."""
        machine.insert(self.place)
        assert self.jailhouse("enable", str(self.path("qemu-arm64-4"))) == Result("", "", 0)


RUN = "from runphi_async.testing.fake_jailhouse.__main__ import main; sys.exit(main(sys.argv[1:]))"
SHIMS = {
    "insmod": 'eval "$FAKE insmod"',
    "rmmod": 'eval "$FAKE rmmod" 2>/dev/null || { echo "rmmod: ERROR: Module jailhouse is in use" >&2; exit 1; }',
    "dmesg": 'cat "$BOARD/dmesg"',
    "settle": 'eval "$FAKE settle"',
    "hotplug": 'word=online; [ "$1" = 0 ] && word=offline; eval "$FAKE $word $2" 2>/dev/null || '
    '{ echo "bash: line 1: echo: write error: Operation not permitted" >&2; exit 1; }',
}


def session(path: Path) -> list[Step]:
    """Read a recorded session."""
    steps: list[Step] = []
    command = ""
    out: list[str] = []
    err: list[str] = []
    current = out
    for line in path.read_text().splitlines():
        if line == "# board reset":
            steps.append(Step(None, Result("", "", 0)))
        elif line.startswith("$ "):
            command, out, err = line[2:], [], []
        elif line.startswith(("  [stdout] ", "  [stderr] ")):
            current = out if "stdout" in line[:10] else err
            current.append(line[11:])
        elif status := re.match(r"  \[rc=(\d+) ", line):
            texts = ["".join(f"{row}\n" for row in rows) for rows in (out, err)]
            steps.append(Step(command, Result(texts[0], texts[1], int(status[1]))))
        elif not line.startswith("#"):
            current.append(line[11:])
    return steps
