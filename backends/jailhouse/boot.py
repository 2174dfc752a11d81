# SPDX-License-Identifier: Apache-2.0
"""Jailhouse half of booting: what is loaded where, and at which address the CPU begins.

A bare-metal image is loaded where it wants to lie, and the CPU begins there: at the entry of an ELF image, else at the
first byte. What a Linux kernel needs is decided in ``linux.py``. An image for a remote processor is loaded by the root
system's remoteproc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from backends.jailhouse import desk, linux
from backends.jailhouse.desk import Part
from backends.jailhouse.plan import Form, Load
from runphi_async.errors import PlanError
from runphi_async.partition import boot
from runphi_async.partition.image import ImageFormat
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from backends.jailhouse.comm import CellComm
    from backends.jailhouse.desk import Facts
    from backends.jailhouse.mem import CellMemory
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


class CellBoot(msgspec.Struct, frozen=True):
    """What boots."""

    arch: str
    reset_address: int
    loads: tuple[Load, ...]
    cmdline: str
    part: Part
    #: what our init reads; empty: it does not run
    conf: bytes = b""


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


def choose(spec: GuestSpec, facts: Facts, booting: Boot, memory: CellMemory, channels: CellComm) -> CellBoot:
    """Decide what is loaded where."""
    if spec.rpu:
        sentence = f"boot: {booting.image}, loaded by the root system's remoteproc from its firmware directory"
        return CellBoot("arm", 0, (Load(Form.RPU, booting.image),), "", Part(explain=(sentence,)))
    if spec.kind is GuestKind.INMATE:
        return _inmate(spec, facts, booting.image, memory, booting.explain)
    found = linux.choose(spec, facts, desk.template(spec, facts.board), memory, channels)
    return CellBoot("aarch64", 0, found.loads, found.cmdline, found.part, found.conf)


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
