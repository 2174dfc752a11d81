# SPDX-License-Identifier: Apache-2.0
"""Jailhouse half of booting: what is loaded where, and at which address the CPU begins.

A bare-metal image is loaded where it wants to lie, and the CPU begins there: at the entry of an ELF image, else at the
first byte. A Linux kernel is started by Jailhouse's own loader at guest address 0, which reads from a text behind it
where kernel and device tree lie; these are placed as ``jailhouse cell linux`` places them. An image for a remote
processor is loaded by the root system's remoteproc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from backends.jailhouse.desk import Part
from backends.jailhouse.plan import Form, Load
from runphi_async.errors import PlanError
from runphi_async.partition import board as boards
from runphi_async.partition import boot
from runphi_async.partition.boot import ImageFormat
from runphi_async.partition.spec import GuestKind
from runphi_async.partition.units import MIB, human, round_up

if TYPE_CHECKING:
    from backends.jailhouse.desk import Facts
    from backends.jailhouse.mem import CellMemory
    from runphi_async.partition.board import Template
    from runphi_async.partition.boot import Boot
    from runphi_async.partition.spec import GuestSpec

#: what the architectures of a board are called in images
ARCHES: Final = {"arm64": "aarch64", "arm": "arm", "x86": "x86_64"}
#: key of the configuration that names the kernel of images without one
SETTING: Final = "jailhouse.kernel"
#: where Jailhouse's own inmates and its Linux loader look for a text, behind their first byte
CMDLINE_OFFSET: Final = 0x1000
#: bytes of it, the NUL included
CMDLINE_MAX: Final = 256
#: an arm64 kernel begins at a multiple of this, behind which it wants its text offset
KERNEL_ALIGN: Final = 2 * MIB
#: kernel and RAM disk lie this many kernel sizes apart: it unpacks and moves itself
KERNEL_SPACE: Final = 5
#: most that a device tree grows when memory, command line and RAM disk are written into it
DTB_GROWTH: Final = boards.PAGE
#: a guest kernel on the console that the board has for it
_CMDLINE: Final = {
    "virtual": "console=jailhouse",
    "pl011": "console=ttyAMA0",
    "xuartps": "console=ttyPS0",
    "hvc": "console=hvc0",
}


class CellBoot(msgspec.Struct, frozen=True):
    """What boots."""

    arch: str
    reset_address: int
    loads: tuple[Load, ...]
    cmdline: str
    part: Part


def image(spec: GuestSpec, kernel: str | None) -> str:
    """Return the file whose header decides."""
    return boot.boot_image(spec, kernel, SETTING)


def decide(spec: GuestSpec, facts: Facts) -> Boot:
    """Choose the image, and refuse one that the board cannot run: nothing else about it makes sense then."""
    arch = ARCHES[facts.board.arch]
    booting = boot.decide(spec, facts.image, facts.kernel, arch, SETTING)
    if spec.rpu:
        if facts.image.format is not ImageFormat.ELF or facts.image.arch != "arm":
            what = f"{facts.image.format}" + (f" for {facts.image.arch}" if facts.image.arch else "")
            raise PlanError(
                f"cannot run {booting.image} on a remote processor: it is {what}, not a 32-bit Arm ELF image"
            )
        return booting
    if booting.arch != arch:
        what = f"it is for {booting.arch}, and the CPUs of board '{facts.board.name}' are {arch}"
        raise PlanError(f"cannot boot {booting.image}: {what}")
    if spec.kind is GuestKind.INMATE:
        if facts.image.format in (ImageFormat.ARM64_IMAGE, ImageFormat.BZIMAGE):
            raise PlanError(
                f"cannot boot {booting.image} as an inmate: it is a Linux kernel", "name it with KERNEL= instead"
            )
    elif facts.image.format is not ImageFormat.ARM64_IMAGE:
        raise PlanError(
            f"cannot boot {booting.image} in a cell: it is {facts.image.format}, not an uncompressed arm64 kernel",
            "use arch/arm64/boot/Image of the kernel's build",
        )
    return booting


def choose(
    spec: GuestSpec, facts: Facts, template: Template, booting: Boot, memory: CellMemory, console: str
) -> CellBoot:
    """Decide what is loaded where.

    :param console: "virtual", the type of the console's UART, or something else.
    """
    if spec.rpu:
        sentence = f"boot: {booting.image}, loaded by the root system's remoteproc from its firmware directory"
        return CellBoot("arm", 0, (Load(Form.RPU, booting.image),), "", Part(explain=(sentence,)))
    if spec.kind is GuestKind.INMATE:
        return _inmate(spec, facts, booting.image, memory, booting.explain)
    return _linux(spec, facts, template, memory, console)


def _inmate(spec: GuestSpec, facts: Facts, name: str, memory: CellMemory, explain: tuple[str, ...]) -> CellBoot:
    if spec.ramdisk or spec.dtb:
        raise PlanError(
            f"cannot load {spec.ramdisk or spec.dtb}: a bare-metal image takes neither RAM disk nor device tree"
        )
    elf = facts.image.format is ImageFormat.ELF
    start = memory.image_start
    entry = facts.image.entry if elf else start
    loads = [Load(Form.ELF if elf else Form.RAW, name, start, memory.ram.virt + memory.ram.size - start)]
    sentences = [*explain, f"boot: loaded at {start:#x}, the CPU begins at {entry:#x}"]
    if spec.cmdline:
        loads.append(_text(spec.cmdline, name, start))
        sentences.append(f"boot: command line at {CMDLINE_OFFSET:#x}, where Jailhouse's own inmates look for it")
    return CellBoot(ARCHES[facts.board.arch], entry, tuple(loads), "", Part(explain=tuple(sentences)))


def _text(text: str, name: str, start: int) -> Load:
    if start != 0:
        raise PlanError(
            f"cannot give {name} a command line: only Jailhouse's own inmates, which lie at guest address 0, take one",
            "leave org.runphi.cmdline out",
        )
    if len(text.encode()) >= CMDLINE_MAX:
        raise PlanError(f"cannot give {name} its command line: it has {len(text.encode())} bytes", "at most 255")
    return Load(Form.TEXT, text, CMDLINE_OFFSET, CMDLINE_MAX)


def _linux(spec: GuestSpec, facts: Facts, template: Template, memory: CellMemory, console: str) -> CellBoot:
    kernel, dtb = spec.kernel or facts.kernel, spec.dtb or facts.dtb
    assert kernel is not None  # boot.decide has refused
    if facts.loader is None:
        raise PlanError(
            "cannot boot a Linux cell: Jailhouse's linux-loader.bin is missing",
            "set jailhouse.loader in the configuration",
        )
    if dtb is None:
        raise PlanError(
            "cannot boot a Linux cell: there is no device tree", 'name one with "dtb", or set jailhouse.dtb'
        )
    if not template.reset_ram and memory.ram.virt > 0:
        raise PlanError(
            "cannot boot a Linux cell: no RAM at guest address 0 for the loader", "set reset_ram in the board"
        )
    ram, dtb_size = memory.ram, _pages(facts, dtb) + DTB_GROWTH
    at_dtb = ram.virt if ram.virt else 2 * boards.PAGE  # behind the loader
    at_kernel = round_up(at_dtb + dtb_size, KERNEL_ALIGN) + facts.text_offset
    size = _pages(facts, kernel)
    loads = [
        Load(Form.RAW, facts.loader, 0, CMDLINE_OFFSET),
        Load(Form.TEXT, f"kernel={at_kernel:#x} dtb={at_dtb:#x}", CMDLINE_OFFSET, CMDLINE_MAX),
        Load(Form.RAW, kernel, at_kernel, size),
    ]
    end = at_kernel + size
    disk = spec.ramdisk if spec.kind is GuestKind.KERNEL else spec.rootfs
    if disk is not None:
        at_disk = at_kernel + KERNEL_SPACE * size
        form = Form.RAW if spec.kind is GuestKind.KERNEL else Form.ROOTFS
        loads.append(Load(form, disk, at_disk, _pages(facts, disk)))
        end = at_disk + _pages(facts, disk)
    loads.append(Load(Form.DTB, dtb, at_dtb, dtb_size))
    if end > ram.guest.end:
        raise PlanError(
            f"cannot place kernel and RAM disk in the cell's memory: they end at {end:#x}, RAM at {ram.guest.end:#x}",
            f"the guest needs {human(round_up(end - ram.virt, MIB))}: raise the container's memory limit",
        )
    cmdline = " ".join(filter(None, (_CMDLINE.get(console, ""), spec.cmdline)))
    explain = (
        f"boot: {kernel} at {at_kernel:#x}, device tree {dtb} at {at_dtb:#x}, started by Jailhouse's loader at 0",
        f"boot: RAM disk of {disk}" if disk is not None else "boot: no RAM disk",
        f"boot: command line '{cmdline}'",
    )
    return CellBoot("aarch64", 0, tuple(loads), cmdline, Part(explain=explain))


def _pages(facts: Facts, path: str) -> int:
    """Return the size of a file in whole pages, as it was when the facts were gathered."""
    return round_up(facts.sizes[path], boards.PAGE)
