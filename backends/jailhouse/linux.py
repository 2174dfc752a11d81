# SPDX-License-Identifier: Apache-2.0
"""Jailhouse half of booting Linux: where loader, kernel, device tree and RAM disk lie, and what the kernel is told.

The places are those of ``jailhouse cell linux``, whose loader is used too: it lies at guest address 0, reads from a
text behind it where kernel and device tree are, and jumps. The kernel's command line stands in the device tree.

A Linux guest of an image gets a RAM disk of our init, the container's process and the image's root file system; there
is no file server in a cell. A kernel with a RAM disk of its own gets just that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from backends.guest import initrd
from backends.jailhouse import tree
from backends.jailhouse.desk import Part
from backends.jailhouse.plan import Form, Load, Source
from runphi_async.board import board as boards
from runphi_async.errors import PlanError
from runphi_async.partition import boot, mounts
from runphi_async.partition.spec import GuestKind
from runphi_async.units import MIB, human, round_up

if TYPE_CHECKING:
    from backends.jailhouse.comm import CellComm
    from backends.jailhouse.desk import Facts
    from backends.jailhouse.mem import CellMemory
    from runphi_async.board.board import Template
    from runphi_async.partition.spec import GuestSpec

#: key of the configuration that names the RAM disk with our init
SETTING: Final = "jailhouse.initrd"
#: where the loader finds its text, behind its first byte, and how long it may be, the NUL included
PARAMS_OFFSET: Final = 0x1000
PARAMS_MAX: Final = 256
#: bytes of the loader where RAM itself begins at 0 and it lies in front of the device tree
LOADER_MAX: Final = 2 * boards.PAGE
#: an arm64 kernel begins at a multiple of this, behind which it wants its text offset
KERNEL_ALIGN: Final = 2 * MIB
#: the RAM disk lies this many kernel sizes behind the kernel's start, which needs more memory than its file has
KERNEL_SPACE: Final = 2
#: most that a device tree grows when memory, CPUs, command line and RAM disk are written into it
DTB_GROWTH: Final = boards.PAGE
#: a kernel cuts longer ones off. Source: COMMAND_LINE_SIZE of arm64, less the NUL
CMDLINE_MAX: Final = 2047
#: what init writes into the kernel's log when there is no terminal
KERNEL_LOG: Final = "kmsg"


class Console(NamedTuple):
    """A console as the guest knows it."""

    #: for the kernel
    argument: str
    #: for our init
    device: str


_CONSOLES: Final = {
    "virtual": Console("console=jailhouse", KERNEL_LOG),
    "pl011": Console("console=ttyAMA0,115200", "/dev/ttyAMA0"),
    "xuartps": Console("console=ttyPS0,115200", "/dev/ttyPS0"),
    "8250": Console("console=ttyS0,115200", "/dev/ttyS0"),
    "imx": Console("console=ttymxc0,115200", "/dev/ttymxc0"),
    "imx-lpuart": Console("console=ttyLP0,115200", "/dev/ttyLP0"),
    "mvebu": Console("console=ttyMV0,115200", "/dev/ttyMV0"),
    "hscif": Console("console=ttySC0,115200", "/dev/ttySC0"),
    "scifa": Console("console=ttySC0,115200", "/dev/ttySC0"),
    "scif": Console("console=ttySC0,115200", "/dev/ttySC0"),
    "hvc": Console("console=hvc0", "/dev/hvc0"),
}
_NO_CONSOLE: Final = Console("", KERNEL_LOG)
#: the kernel is quiet where a process prints; on the hypervisor's console init's own alerts must come through, bare
_QUIET: Final = "quiet loglevel=1"
_ALERTS: Final = "quiet loglevel=2 printk.time=0 printk.devkmsg=on"


class LinuxBoot(NamedTuple):
    """What boots.

    :ivar conf: what our init reads, but for what is known only when the cell is made; empty: it is not ours.
    """

    loads: tuple[Load, ...]
    cmdline: str
    conf: bytes
    part: Part


def choose(spec: GuestSpec, facts: Facts, template: Template, memory: CellMemory, channels: CellComm) -> LinuxBoot:
    """Decide what is loaded where.

    :raises PlanError: something is missing, or it does not fit.
    """
    kernel = spec.kernel or facts.kernel
    assert kernel is not None  # boot.decide has refused
    _check(spec, facts, template, memory, channels)
    console = _CONSOLES.get(channels.kind, _NO_CONSOLE)
    conf = _conf(spec, facts, console)
    dtb = spec.dtb or facts.dtb or tree.FILE
    ram = memory.ram
    dtb_size = (tree.MADE_MAX if dtb == tree.FILE else _pages(facts, dtb)) + DTB_GROWTH
    at_dtb = ram.virt or LOADER_MAX
    at_kernel = round_up(at_dtb + dtb_size, KERNEL_ALIGN) + facts.text_offset
    size = _pages(facts, kernel)
    loads = [
        Load(Form.RAW, str(facts.loader), 0, int(template.reset_ram) if ram.virt else LOADER_MAX, ours=True),
        Load(Form.TEXT, f"kernel={at_kernel:#x} dtb={at_dtb:#x}", PARAMS_OFFSET, PARAMS_MAX),
        Load(Form.RAW, kernel, at_kernel, size, ours=spec.kernel is None),
    ]
    end, unpacked = at_kernel + size, 0
    disk = _disk(spec, facts, conf)
    if disk is not None:
        form, path, length = disk
        at_disk = at_kernel + KERNEL_SPACE * size
        loads.append(Load(form, path, at_disk, length))
        end = at_disk + length
        unpacked = length if form is Form.ROOTFS else 0
    loads.append(Load(Form.DTB, dtb, at_dtb, dtb_size))
    _check_fits(end, unpacked, memory)
    cmdline = _cmdline(spec, channels, console)
    which = "made for the board" if dtb == tree.FILE else dtb
    explain = [
        f"boot: {kernel} at {at_kernel:#x}, device tree {which} at {at_dtb:#x}, started by Jailhouse's loader at 0",
        f"boot: RAM disk {_what(disk[0], disk[1], facts)} at {loads[3].address:#x}" if disk else "boot: no RAM disk",
        f"boot: command line '{cmdline}'",
    ]
    if conf:
        explain.append(f"boot: init on {console.device} runs the process; what the guest writes ends with it")
    return LinuxBoot(tuple(loads), cmdline, conf, Part(explain=tuple(explain)))


def _check(spec: GuestSpec, facts: Facts, template: Template, memory: CellMemory, channels: CellComm) -> None:
    if facts.loader is None:
        raise PlanError(
            "cannot boot a Linux cell: Jailhouse's linux-loader.bin is missing",
            "set jailhouse.loader in the configuration",
        )
    if spec.dtb is None and facts.dtb is None and facts.board.devicetree is None:
        raise PlanError(
            "cannot boot a Linux cell: there is no device tree",
            'name one with "dtb", set jailhouse.dtb, or add [devicetree] to the board file',
        )
    if not template.reset_ram and memory.ram.virt > 0:
        raise PlanError(
            "cannot boot a Linux cell: no RAM at guest address 0 for the loader", "set reset_ram in the board"
        )
    console = channels.console
    if spec.kind is GuestKind.LINUX and console.source is Source.UART and not console.input:
        raise PlanError(
            f"cannot give a Linux guest console '{console.name}': its processes cannot print there without its "
            "interrupt, which the root system has",
            "choose a port that is not shared with annotation org.runphi.console-port, or virtual",
        )


def _conf(spec: GuestSpec, facts: Facts, console: Console) -> bytes:
    if spec.kind is not GuestKind.LINUX:
        return b""
    process, _ = boot.linux_process(spec, b"" if facts.initrd else None, SETTING)
    more = (("console", console.device), ("comm", f"{facts.board.comm.address:#x}"))
    inside = mounts.decide(spec, shares=False).guest
    conf = initrd.container_conf(process, readonly=spec.readonly_root, rootfs="ramdisk", mounts=inside)
    return conf + initrd.records(*more)


def _disk(spec: GuestSpec, facts: Facts, conf: bytes) -> tuple[Form, str, int] | None:
    """Return what the RAM disk is made of, and how long it is at most."""
    if spec.kind is GuestKind.LINUX:
        own = facts.sizes[facts.initrd or ""] + round_up(len(conf), boards.PAGE) + boards.PAGE
        return Form.ROOTFS, spec.rootfs, round_up(own + facts.sizes[spec.rootfs], boards.PAGE)
    return (Form.RAMDISK, spec.ramdisk, _pages(facts, spec.ramdisk)) if spec.ramdisk else None


def _what(form: Form, path: str, facts: Facts) -> str:
    return f"of {facts.initrd} and rootfs {path}" if form is Form.ROOTFS else path


def _check_fits(end: int, unpacked: int, memory: CellMemory) -> None:
    ram = memory.ram
    if end > ram.guest.end:
        raise PlanError(
            f"cannot place kernel and RAM disk in the cell's memory: they end at {end:#x}, RAM at {ram.guest.end:#x}",
            f"the guest needs {human(round_up(end - ram.virt, MIB))}: raise the container's memory limit",
        )
    need = end - ram.virt + unpacked
    if need > ram.size:
        raise PlanError(
            f"cannot unpack a root file system of {human(unpacked)} in the cell's memory of {human(ram.size)}",
            f"the guest needs {human(round_up(need, MIB))}: raise the container's memory limit",
        )


def _cmdline(spec: GuestSpec, channels: CellComm, console: Console) -> str:
    manners = ""
    if spec.kind is GuestKind.LINUX:
        manners = _ALERTS if channels.kind == "virtual" else _QUIET
    cmdline = " ".join(filter(None, (console.argument, manners, spec.cmdline)))
    if len(cmdline.encode()) > CMDLINE_MAX:
        raise PlanError(
            f"cannot give the kernel its command line: it has {len(cmdline.encode())} bytes", f"at most {CMDLINE_MAX}"
        )
    return cmdline


def _pages(facts: Facts, path: str) -> int:
    """Return the size of a file in whole pages, as it was when the facts were gathered."""
    return round_up(facts.sizes[path], boards.PAGE)
