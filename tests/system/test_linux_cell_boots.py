# SPDX-License-Identifier: Apache-2.0
"""What is loaded into a Linux cell, started by a real kernel: on QEMU's ``virt`` machine, without a hypervisor.

Everything but Jailhouse's loader is what a cell would get, at the addresses of the cell: Debian's arm64 kernel, the
device tree that was made for the board, the RAM disk with our init and a root file system. Two CPUs of four run it, as
the device tree says. A page of memory plays the communication region.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import struct
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from backends.jailhouse import linuxfiles
from backends.jailhouse.images import images
from backends.jailhouse.marks import Filter, Said
from backends.jailhouse.plan import Form
from backends.jailhouse.planner import JailhousePlanner
from backends.jailhouse.settings import Jailhouse
from runphi_async.board import loading
from runphi_async.partition.spec import GuestKind, GuestSpec, ProcessSpec
from tests.unit.configkit import config as configured

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backends.jailhouse.plan import JailhousePlan

SETTINGS: Final = Jailhouse()
READY: Final = all(map(os.path.exists, (SETTINGS.kernel, SETTINGS.initrd))) and bool(
    shutil.which("qemu-system-aarch64") and shutil.which("aarch64-linux-gnu-gcc")
)
pytestmark = [
    pytest.mark.skipif(not READY, reason="needs bin/prepare-guest --cells, QEMU and a compiler for arm64"),
    pytest.mark.timeout(300),
]
#: seconds that anything may take on a loaded machine
PATIENCE: Final = 240.0

MACHINE: Final = (
    "-M", "virt,gic-version=3,virtualization=on,its=off", "-cpu", "cortex-a57", "-smp", "4", "-m", "2G",
)  # fmt: skip
PROGRAM: Final = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>
static void ended(int number)
{
	exit(number == SIGUSR1 ? 7 : 1);
}
int main(int argc, char **argv)
{
	struct winsize size;
	struct utsname name;
	char line[80];
	uname(&name);
	printf("on %s %s with %d CPUs, in %s\n", name.sysname, name.machine, get_nprocs(), getcwd(line, sizeof(line)));
	printf("%d arguments, the last is '%s'\n", argc, argv[argc - 1]);
	fflush(stdout);
	if (argc == 1)
		return 0;
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	line[strcspn(line, "\n")] = 0;
	ioctl(0, TIOCGWINSZ, &size);
	signal(SIGUSR1, ended);
	printf("read '%s' on %d rows\n", line, size.ws_row);
	fflush(stdout);
	for (;;)
		pause();
}
"""


def board_file(folder: Path, *, alone: bool) -> str:
    """Write a board file; ``alone``: the cell has its only serial port for itself."""
    text = Path(loading.path_of("qemu-arm64")).read_text()
    if not alone:
        (folder / "board.toml").write_text(text)
        return str(folder / "board.toml")
    text = text.replace("shared = true\n", "", 1)
    text = text.replace('dma = true\nconsole = "virtual"', 'dma = true\nconsole = "uart0"')
    path = folder / "board.toml"
    path.write_text(text)
    return str(path)


def rootfs(folder: Path) -> Path:
    made = folder / "rootfs"
    (made / "bin").mkdir(parents=True)
    source = folder / "program.c"
    source.write_text(PROGRAM)
    subprocess.run(["aarch64-linux-gnu-gcc", "-static", "-O1", "-o", made / "bin" / "program", source], check=True)
    return made


async def planned(folder: Path, *args: str, alone: bool = True, **more: Any) -> JailhousePlan:
    """Plan a cell and make its files, as a driver does."""
    loader = folder / "linux-loader.bin"
    loader.write_bytes(bytes(64))  # it is part of a Jailhouse installation; what it does, `starter` does here
    config = configured(Jailhouse(board=board_file(folder, alone=alone), loader=str(loader)))
    planner = JailhousePlanner(config, str(folder), str(folder / "nosysfs"))
    spec = GuestSpec(
        id="boots",
        kind=GuestKind.LINUX,
        rootfs=str(rootfs(folder)),
        cpu_quota=200_000,
        process=ProcessSpec(args, cwd="/work", terminal=alone, rows=24, cols=80),
        **more,
    )
    plan = await planner.plan(spec)
    for name, data in plan.files.items():
        (folder / name).write_bytes(data)
    return plan


def starter(kernel: int, tree: int, cpu: int) -> bytes:
    """Return what the first CPU runs: it has PSCI start another one at the kernel, with the device tree in x0."""
    code = struct.pack(
        "<6I",
        0x580000C0,  # ldr x0, function
        0x580000E1,  # ldr x1, cpu
        0x58000102,  # ldr x2, kernel
        0x58000123,  # ldr x3, tree
        0xD4000003,  # smc #0
        0x14000000,  # b .
    )
    return code + struct.pack("<4Q", 0xC400_0003, cpu, kernel, tree)


class Machine:
    """The machine, with its serial port and monitor."""

    def __init__(self, serial: tuple[asyncio.StreamReader, asyncio.StreamWriter], folder: Path) -> None:
        self._reader, self._writer = serial
        self._folder = folder
        self.shown = b""

    async def until(self, text: bytes, words: Filter) -> None:
        """Read on until something was printed, or init has spoken."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.shown and words.said is None:
                data = await self._reader.read(4096)
                assert data, self.shown
                self.shown += words.feed(data)

    def type(self, data: bytes) -> None:
        self._writer.write(data)

    async def word(self, address: int) -> int:
        """Return 32 bits of memory."""
        reader, writer = await asyncio.open_unix_connection(self._folder / "monitor")
        writer.write(f"xp /1wx {address:#x}\n".encode())
        found = None
        shown = b""
        async with asyncio.timeout(PATIENCE):
            while found is None:
                shown += await reader.read(4096)
                found = re.search(rb"%08x: 0x([0-9a-f]{8})" % address, shown)
        writer.close()
        return int(found[1], 16)


@asynccontextmanager
async def started(plan: JailhousePlan, folder: Path) -> AsyncIterator[Machine]:
    """Load what a cell gets, and start it."""
    places = {load.form: load.address for load in plan.cell.loads if load.form is not Form.RAW}
    ready = images(plan.cell.loads[2:], str(folder))  # the first two are Jailhouse's loader and its text
    text = plan.cell.loads[1].source
    kernel, tree = (int(number, 16) for number in re.findall(r"0x[0-9a-f]+", text))
    assert tree == places[Form.DTB]
    (folder / "starter").write_bytes(starter(kernel, tree, plan.cell.cpus[0]))
    (folder / "comm").write_bytes(b"JHCOMM\2\0".ljust(4096, b"\0"))
    loads = [*((image.path, image.address) for image in ready), (str(folder / "comm"), 0x8000_0000)]
    process = await asyncio.create_subprocess_exec(
        "qemu-system-aarch64",
        *MACHINE, "-accel", "tcg", "-nodefaults", "-display", "none", "-bios", folder / "starter",
        "-serial", f"unix:{folder}/serial,server=on", "-monitor", f"unix:{folder}/monitor,server=on,wait=off",
        *(word for path, at in loads for word in ("-device", f"loader,file={path},addr={at:#x},force-raw=on")),
        stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE):
            while not (folder / "serial").exists():
                assert process.returncode is None
                await asyncio.sleep(0.05)
            serial = await asyncio.open_unix_connection(folder / "serial")
        yield Machine(serial, folder)
        serial[1].close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_real_kernel_starts_from_what_was_loaded(tmp_path: Path) -> None:
    plan = await planned(tmp_path, "/bin/program", "one", "two words")
    mark = await asyncio.to_thread(linuxfiles.write, plan, str(tmp_path))
    words = Filter(mark)
    async with started(plan, tmp_path) as machine:
        await machine.until(b"'two words'\r\n", words)
        # nothing but the process prints there, although the kernel has its console on the same port
        assert machine.shown == (b"on Linux aarch64 with 2 CPUs, in /work\r\n3 arguments, the last is 'two words'\r\n")
        word = f"\x1b_runphi:{mark}:%s\x1b\\"
        machine.type(b"a\x1b")  # a key that could be the beginning of a word
        await machine.until(b"a^[", words)
        machine.type(b"\x1b" + (word % "winsize 31 99").encode() + b" line\r")
        await machine.until(b"on 31 rows\r\n", words)
        assert machine.shown.endswith(b"a^[^[ line\r\nread 'a\x1b\x1b line' on 31 rows\r\n")
        machine.type((word % "signal 10").encode())
        await machine.until(b"never printed", words)
        assert words.said == Said(7)
        async with asyncio.timeout(PATIENCE):
            while await machine.word(0x8000_0008) == 0:
                await asyncio.sleep(0.1)
        assert await machine.word(0x8000_0008) == 3  # failed, as the code is not 0


def machines_tree(folder: Path) -> str:
    """Return a device tree with all of the machine's devices, most of which the cell does not have."""
    whole = folder / "virt.dtb"
    dump = [*MACHINE[:1], f"{MACHINE[1]},dumpdtb={whole}", *MACHINE[2:], "-display", "none"]
    subprocess.run(["qemu-system-aarch64", *dump], check=True, capture_output=True)
    return str(whole)


async def test_a_tree_of_the_image_is_fitted_and_a_process_that_cannot_run_is_told_of(tmp_path: Path) -> None:
    plan = await planned(tmp_path, "/bin/absent", dtb=machines_tree(tmp_path))
    words = Filter(await asyncio.to_thread(linuxfiles.write, plan, str(tmp_path)))
    async with started(plan, tmp_path) as machine:
        await machine.until(b"never printed", words)
        assert (machine.shown, words.said) == (b"", Said(127, "cannot run /bin/absent: No such file or directory"))


async def test_without_a_terminal_the_kernels_log_takes_what_is_printed(tmp_path: Path) -> None:
    # Debian's kernel has no driver for the hypervisor's console; its log is the same on any console
    more = {"dtb": machines_tree(tmp_path), "cmdline": "console=ttyAMA0"}
    plan = await planned(tmp_path, "/bin/program", alone=False, **more)
    assert plan.cell.cmdline.startswith("console=jailhouse ")
    words = Filter(await asyncio.to_thread(linuxfiles.write, plan, str(tmp_path)))
    async with started(plan, tmp_path) as machine:
        await machine.until(b"never printed", words)
        lines = [line for line in machine.shown.splitlines() if line]
        assert lines == [b"on Linux aarch64 with 2 CPUs, in /work", b"1 arguments, the last is '/bin/program'"]
        assert words.said == Said(0)
        async with asyncio.timeout(PATIENCE):
            while await machine.word(0x8000_0008) == 0:
                await asyncio.sleep(0.1)
        assert await machine.word(0x8000_0008) == 2
