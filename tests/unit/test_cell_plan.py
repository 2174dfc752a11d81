# SPDX-License-Identifier: Apache-2.0
"""The Jailhouse config generator: what a container asks against the cell it gets, without a hypervisor."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.guest import fdt
from backends.jailhouse import examples, generator, tree
from backends.jailhouse.desk import Facts
from backends.jailhouse.plan import Flag, Form, JailhousePlan, Source, Virtual
from runphi_async.board import board as boards
from runphi_async.board import loading, ranges
from runphi_async.board.claims import Claim, Held, Kind, Owner, units
from runphi_async.board.ranges import Range
from runphi_async.config.section import Size
from runphi_async.errors import PlanError
from runphi_async.partition import conf
from runphi_async.partition.channels import Channel
from runphi_async.partition.image import ImageFacts, ImageFormat, Segment
from runphi_async.partition.spec import GuestKind, GuestSpec, ProcessSpec
from runphi_async.partition.wishes import NetWish
from runphi_async.units import KIB, MIB
from tests.unit.wishkit import annotated

if TYPE_CHECKING:
    from runphi_async.board.board import Board

QEMU = loading.load("qemu-arm64")
KRIA = loading.load("kria-kv260")
ZCU = loading.load("zcu104")
FLAT = ImageFacts(ImageFormat.FLAT, 40 * KIB)
KERNEL = ImageFacts(ImageFormat.ARM64_IMAGE, 9 * MIB, "aarch64")
R5 = ImageFacts(ImageFormat.ELF, 9000, "arm", 32, 0, (Segment(0, 0x800), Segment(0x3ED0_0000, 0x3ED1_0000)))
X86 = ImageFacts(ImageFormat.ELF, 9000, "x86_64", 64, 0x100000, (Segment(0x100000, 0x102000),))
LINUX: dict[str, Any] = {
    "kind": GuestKind.KERNEL,
    "inmate": None,
    "kernel": "/k/Image",
    "ramdisk": "/k/initrd",
    "dtb": "/k/dtb",
    "image": KERNEL,
}
SIZES = {"/k/Image": 9 * MIB + 5, "/k/initrd": 3 * MIB, "/k/dtb": 3000, "/r": 8 * MIB, "/k/dtb2": 9}


def elf(start: int, size: int = 0x3000, entry: int = 0) -> ImageFacts:
    return ImageFacts(ImageFormat.ELF, size, "aarch64", 64, entry or start, (Segment(start, start + size),))


def plan(
    board: Board = QEMU,
    image: ImageFacts = FLAT,
    held: tuple[Held, ...] = (),
    facts: dict[str, Any] | None = None,
    **asked: Any,
) -> JailhousePlan:
    fields: dict[str, Any] = {"id": "c1", "kind": GuestKind.INMATE, "rootfs": "/r", "inmate": "/r/i", **asked}
    known = {"loader": "/l.bin", "sizes": SIZES, **(facts or {})}
    return generator.plan(GuestSpec(**fields), Facts(board=board, image=image, held=held, **known))


def holding(found: JailhousePlan, name: str = "first") -> tuple[Held, ...]:
    return tuple(Held(Owner(name, "boot", found.cell.name), claim) for claim in found.claims)


def refusal(**asked: Any) -> str:
    with pytest.raises(PlanError) as caught:
        plan(**asked)
    return str(caught.value)


def changed(board: Board, **fields: Any) -> Board:
    return msgspec.structs.replace(board, **fields)


def regions(found: JailhousePlan, *names: str) -> list[tuple[int, int, int]]:
    return [(r.phys, r.virt, r.size) for r in found.cell.regions if r.what in names]


# Section: the stock cells of the recorded board


def test_the_demo_inmate_gets_what_its_stock_cell_has() -> None:
    found = plan(cmdline="con-virtual=true")
    cell = found.cell
    assert (cell.name, cell.cpus, cell.dialect, cell.passive) == ("c1", (1,), "mainline", True)
    assert [(r.what, r.phys, r.virt, r.size, r.flags) for r in cell.regions] == [
        ("RAM", 0x7000_0000, 0, MIB, (Flag.READ, Flag.WRITE, Flag.EXECUTE, Flag.LOADABLE)),
        ("uart0", 0x900_0000, 0x900_0000, 0x1000, (Flag.READ, Flag.WRITE, Flag.IO, Flag.ROOTSHARED)),
        ("communication region", 0, 0x8000_0000, 0x1000, (Flag.READ, Flag.WRITE, Flag.COMM_REGION)),
    ]
    assert (cell.reset_address, cell.chips, cell.devices) == (0, (), ())
    assert (cell.console.source, cell.console.input, cell.virtual_console) == (Source.VIRTUAL, False, Virtual.ACTIVE)
    assert [(load.form, load.source, load.address) for load in cell.loads] == [
        (Form.RAW, "/r/i", 0),
        (Form.TEXT, "con-virtual=true", 0x1000),
    ]


def test_a_linux_cell_is_laid_out_as_the_tool_does() -> None:
    found = plan(**LINUX, **annotated(net="yes"), cpu_quota=200_000, cmdline="quiet", facts={"text_offset": 0x80000})
    cell = found.cell
    assert cell.cpus == (1, 2)
    # linux-demo: region 1 is a placeholder, peer 1 of 2 on 00:01.0 by interrupt 141
    assert [(r.phys, r.size) for r in cell.regions[:4]] == [
        (0x7FB0_0000, 0x1000),
        (0, 0),
        (0x7FB0_1000, 0x7F000),
        (0x7FB8_0000, 0x7F000),
    ]
    assert [Flag.WRITE in region.flags for region in cell.regions[:4]] == [False, False, False, True]
    (device,) = cell.devices
    assert (device.bdf, device.first_region, device.peer, device.peers, device.protocol) == (8, 0, 1, 2, 1)
    assert (cell.vpci_irq_base, [chip.pins for chip in cell.chips]) == (108, [(141,)])
    (ram,) = [region for region in cell.regions if region.what == "RAM"]
    assert (ram.phys, ram.virt, Flag.DMA in ram.flags) == (ram.virt, ram.phys, True)
    assert [(load.form, load.address) for load in cell.loads] == [
        (Form.RAW, 0),
        (Form.TEXT, 0x1000),
        (Form.RAW, 0x7028_0000),
        (Form.RAMDISK, 0x7028_0000 + 2 * (9 * MIB + 4096)),
        (Form.DTB, 0x7000_0000),
    ]
    assert cell.loads[1].source == "kernel=0x70280000 dtb=0x70000000"
    assert cell.cmdline == "console=jailhouse quiet"


def test_an_image_linked_elsewhere_gets_its_address_and_a_low_ram() -> None:
    found = plan(image=elf(0x7000_0000, 0x3000, 0x7000_0044), memory_limit=MIB + 5)
    assert regions(found, "RAM", "reset RAM") == [(0x7010_0000, 0, 0x10000), (0x7000_0000, 0x7000_0000, MIB)]
    assert found.cell.reset_address == 0x7000_0044
    same = plan(load_address=0x7000_0000)
    assert regions(same, "RAM")[0][1] == same.cell.reset_address == 0x7000_0000
    # behind the start of a granule: the RAM begins before the image
    assert regions(plan(load_address=0x7000_8000), "RAM")[0][1] == 0x7000_0000


def test_the_memory_limit_is_kept_in_granules() -> None:
    assert plan(memory_limit=300 * KIB).memory_bytes == 256 * KIB
    assert "cannot give the guest 1 KiB of memory: one of kind inmate needs 64 KiB" in refusal(memory_limit=KIB)


# Section: processors


def test_cpus_come_from_cpuset_quota_and_what_is_free() -> None:
    assert plan(cpuset=(2, 3)).pins == (2, 3)
    assert plan(cpu_quota=150_000).cell.cpus == (1, 2)
    first = holding(plan(cpu_quota=200_000))
    assert plan(held=first).cell.cpus == (3,)
    assert plan(held=holding(plan(cpuset=(2,))), cpuset=(1, 2, 3), cpu_quota=200_000).cell.cpus == (1, 3)


def test_a_shortage_of_cpus_names_the_owner() -> None:
    first = holding(plan(cpu_quota=200_000))
    assert refusal(held=first, cpu_quota=200_000) == (
        "cannot give the cell 2 CPUs: of CPUs 1-3 3 is free; 'first' has 1-2; "
        "a CPU belongs to one cell alone: delete a container, or ask for fewer CPUs"
    )
    assert "cannot pin the guest to CPU 0: it is not lent to cells; lent to cells: 1, 2, 3" in refusal(cpuset=(0,))
    alone = changed(QEMU, cpus=boards.Cpus(all="0"))
    assert "board 'qemu-arm64' lends none" in refusal(board=alone)


def test_a_remote_processor_comes_with_its_memory() -> None:
    found = plan(KRIA, R5, rpu=True)
    assert (found.cell.cpus, found.cell.rpus, found.arch) == ((), (0,), "arm")
    assert regions(found, "tcm-a", "tcm-b") == [(0xFFE0_0000,) * 2 + (0x10000,), (0xFFE2_0000,) * 2 + (0x10000,)]
    assert regions(found, "RAM") == [(0x3ED0_0000, 0x3ED0_0000, 16 * MIB)]
    assert [(load.form, load.source) for load in found.cell.loads] == [(Form.RPU, "/r/i")]
    away = (*R5.segments[:1], Segment(0x4000_0000, 0x4001_0000))
    second = plan(KRIA, msgspec.structs.replace(R5, segments=away), holding(found), rpu=True)
    assert second.cell.rpus == (1,)
    both = (*holding(found), *holding(second, "second"))
    assert "none is free; 'first' has 0, 'second' has 1" in refusal(board=KRIA, image=R5, held=both, rpu=True)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"rpu": True}, "cannot give the cell a remote processor: board 'qemu-arm64' has none"),
        ({"board": KRIA, "rpu": True}, "on a remote processor: it is flat, not a 32-bit Arm ELF image"),
        ({"board": KRIA, "rpu": True, "image": elf(0x3ED0_0000)}, "it is elf for aarch64, not a 32-bit Arm ELF"),
        ({"board": KRIA, "rpu": True, "image": R5, "net": NetWish(True)}, "to a network: it has no PCI"),
        ({"board": KRIA, "rpu": True, **LINUX}, "guest of kind kernel on a remote processor: it takes bare-metal"),
        (
            {"board": KRIA, "rpu": True, "image": R5, **annotated(console_port="virtual")},
            "give a remote processor console",
        ),
        ({"board": KRIA, "image": R5}, "it is for arm, and the CPUs of board 'kria-kv260' are aarch64"),
        ({"image": X86}, "cannot boot /r/i: it is for x86_64, and the CPUs of board 'qemu-arm64' are aarch64"),
        ({"image": KERNEL}, "cannot boot /r/i as an inmate: it is a Linux kernel; name it with KERNEL= instead"),
        ({"ramdisk": "/x"}, "cannot load /x: a bare-metal image takes neither"),
        ({"image": elf(0x7000_0000), "load_address": 4096}, "an ELF image says itself where it lies"),
        ({"load_address": 0x7000_0000, "cmdline": "x"}, "only Jailhouse's own inmates, which lie at guest address 0"),
        ({"cmdline": "x" * 256}, "its command line: it has 256 bytes; at most 255"),
        ({**LINUX, "image": ImageFacts(ImageFormat.GZIP, 9)}, "it is gzip, not an uncompressed arm64 kernel"),
        ({**LINUX, "facts": {"loader": None}}, "Jailhouse's linux-loader.bin is missing; set jailhouse.loader"),
        (
            {**LINUX, "dtb": None, "board": changed(QEMU, devicetree=None)},
            'there is no device tree; name one with "dtb", set jailhouse.dtb, or add [devicetree] to the board file',
        ),
        ({**LINUX, "memory_limit": 32 * MIB, "facts": {"sizes": {**SIZES, "/k/initrd": 20 * MIB}}}, "they end at 0x7"),
        ({**LINUX, "cmdline": "x" * 2048}, "cannot give the kernel its command line: it has 2066 bytes; at most 2047"),
        ({**LINUX, "kernel": None}, "there is no guest kernel; run bin/prepare-guest or set jailhouse.kernel"),
        (
            {"net": NetWish(True, "wlan")},
            "cannot give the cell network 'wlan': board 'qemu-arm64' has no such device; it has: net0",
        ),
        (
            annotated(console_port="uart7"),
            "console 'uart7': board 'qemu-arm64' has no such one for it; one of: virtual,",
        ),
        (annotated(console_port="net0"), "cannot give the cell console 'net0'"),
        (annotated(colors="0-3"), "board 'qemu-arm64' has no cache colours"),
        ({"board": KRIA, **annotated(colors="14-16")}, "colour 16: the board lends colours 0-15"),
        ({"image": elf(0x7FF0_0000, 0x1000), "memory_limit": 2 * MIB}, "covers communication region at 0x80000000"),
        ({"image": elf(0x8F0_0000), "memory_limit": 2 * MIB}, "covers uart0 at 0x9000000-0x9000fff"),
        ({"image": elf(0, 2 * MIB)}, "it takes 0x0-0x1fffff, RAM is 0x0-0xfffff; the guest needs 2 MiB: raise"),
        ({"image": ImageFacts(ImageFormat.FLAT, 2 * MIB)}, "the guest needs 2 MiB"),
        ({"memory_limit": 251 * MIB}, "251 MiB of memory: on board 'qemu-arm64' 250.1 MiB are free, the largest"),
    ],
)
def test_what_cannot_be_had_is_refused_in_words(asked: dict[str, Any], words: str) -> None:
    assert words in refusal(**asked)


def test_x86_boards_are_refused() -> None:
    assert "board 'qemu-arm64': x86 cells need ports and reset code" in refusal(board=changed(QEMU, arch="x86"))


def test_a_kind_without_template_is_refused() -> None:
    bare = changed(QEMU, template=boards.Templates(inmate=QEMU.template.inmate))
    assert "board 'qemu-arm64' has no template for it; add [template.kernel]" in refusal(board=bare, **LINUX)


# Section: memory that is taken


def test_memory_of_others_is_avoided_and_named() -> None:
    first = plan(**LINUX, memory_limit=200 * MIB)
    held = holding(first)
    assert regions(plan(held=held), "RAM")[0][0] == 0x7000_0000 + 200 * MIB + 64 * KIB
    text = refusal(held=held, memory_limit=64 * MIB)
    assert "50 MiB are free, the largest piece has 50 MiB; 'first' has 200.1 MiB; delete a container" in text


def test_an_image_at_a_physical_address_names_who_is_there() -> None:
    first = plan(KRIA, R5, rpu=True)
    text = refusal(board=KRIA, image=R5, held=holding(first), rpu=True)
    assert "cannot place the image's RAM at 0x3ed00000-0x3fcfffff: it is taken; 'first' has 16 MiB" in text
    far = msgspec.structs.replace(R5, segments=(Segment(0x5000_0000, 0x5000_1000),))
    assert "board 'kria-kv260' lends 0x3ed00000-0x46cfffff" in refusal(board=KRIA, image=far, rpu=True)


def test_holes_are_filled_joined_and_counted() -> None:
    """First fit: a hole takes what fits, neighbours that are given back become one, a shortage tells the largest."""
    board = changed(QEMU, cpus=boards.Cpus(all="0-15"), memory=(boards.Memory(start=0x7000_0000, size=Size(16 * MIB)),))
    held: dict[str, tuple[Held, ...]] = {}

    def everything() -> tuple[Held, ...]:
        return tuple(part for parts in held.values() for part in parts)

    def make(name: str, size: int) -> int:
        found = plan(board, id=name, held=everything(), memory_limit=size * MIB)
        held[name] = holding(found, name)
        return (regions(found, "RAM")[0][0] - 0x7000_0000) // MIB

    assert [make(name, 4) for name in ("a", "b", "c", "d")] == [0, 4, 8, 12]
    del held["b"], held["d"]
    text = refusal(board=board, id="e", held=everything(), memory_limit=6 * MIB)
    assert "8 MiB are free, the largest piece has 4 MiB; 'a' has 4 MiB, 'c' has 4 MiB" in text
    assert make("f", 2) == 4  # the lowest hole, although the other would fit as well
    assert make("g", 4) == 12  # what is left of the first is too small
    del held["f"], held["a"]
    assert make("h", 8) == 0  # three pieces were given back one by one, and are one range
    del held["c"], held["g"], held["h"]
    assert make("i", 16) == 0


def test_colours_interleave_and_exclude() -> None:
    one = plan(KRIA, **annotated(colors="0-3"))
    two = plan(KRIA, held=holding(one), **annotated(colors="4-7"))
    three = plan(KRIA, held=holding(one), **annotated(colors="3-4"))
    assert regions(one, "RAM") == regions(two, "RAM") == [(0x3ED0_0000, 0, MIB)]
    # 1 MiB of 4 colours in 16 spreads over 4 MiB, which a common colour keeps out
    assert regions(three, "RAM") == [(0x3ED0_0000 + 4 * MIB, 0, MIB)]
    (ram,) = [region for region in one.cell.regions if region.what == "RAM"]
    assert (ram.colors, Flag.COLORED in ram.flags) == (0b1111, True)
    cache = boards.Cache(way_size=Size(128 * KIB), colors="0-31")
    image = msgspec.structs.replace(R5, segments=(Segment(0x3ED1_0000, 0x3ED1_1000),))
    text = refusal(board=changed(KRIA, cache=cache), image=image, rpu=True, **annotated(colors="0-3"))
    assert "cannot colour memory at 0x3ed10000: coloured memory starts at a multiple of 0x20000" in text
    plain = plan(KRIA, held=holding(one))
    assert regions(plain, "RAM") == [(0x3ED0_0000 + 4 * MIB, 0, MIB)]


# Section: devices, console, network


def test_a_port_of_its_own_has_input_and_interrupt() -> None:
    assert ZCU.template.inmate is not None
    inmate = msgspec.structs.replace(ZCU.template.inmate, console="uart1")
    board = changed(ZCU, template=msgspec.structs.replace(ZCU.template, inmate=inmate))
    found = plan(board)
    assert (found.cell.console.name, found.cell.console.input) == ("uart1", True)
    assert (found.cell.uart.type, [chip.pins for chip in found.cell.chips]) == ("xuartps", [(54,)])
    second = plan(board, held=holding(found))
    assert second.cell.console.source is Source.VIRTUAL
    assert any("output only" in line and "('first' has uart1, the usual one)" in line for line in second.explain)
    text = refusal(board=board, held=holding(found), **annotated(console_port="uart1"))
    assert "cannot give device uart1 at 0xff010000 to 'c1': 'first' has device uart1 at 0xff010000" in text
    shared = plan(board, held=holding(found), **annotated(console_port="uart0"))
    assert (shared.cell.console.tty, shared.cell.console.input, shared.cell.chips) == ("/dev/ttyPS0", False, ())


def test_a_console_in_shared_memory() -> None:
    board = changed(
        QEMU,
        ivshmem=(
            *QEMU.ivshmem,
            boards.Ivshmem(name="con0", protocol="console", bdf="00:02.0", base=0x7FC0_0000, rw=Size(0xF000)),
        ),
    )
    found = plan(board, **annotated(net="net0"), **annotated(console_port="con0"))
    assert [(d.name, d.first_region, d.protocol) for d in found.cell.devices] == [("net0", 0, 1), ("con0", 4, 0x8003)]
    assert [chip.pins for chip in found.cell.chips] == [(141, 142)]
    console = found.cell.console
    assert (console.source, console.input, console.pci, console.peer) == (Source.VIRTIO, True, "0001:00:02.0", 1)
    # both output sections are of no size
    assert [region.size for region in found.cell.regions[4:8]] == [0x1000, 0xF000, 0, 0]
    assert "console 'con0': it would not be alone there; 'first' has 1; delete that container" in refusal(
        board=board, held=holding(found), **annotated(console_port="con0")
    )
    assert plan(board, **LINUX, **annotated(console_port="con0")).cell.cmdline == "console=hvc0"


def test_a_byte_ring_needs_its_device_alone() -> None:
    found = plan(**annotated(console_port="shm0"))
    console = found.cell.console
    assert (console.source, console.size, console.peer, console.pci) == (Source.IVSHMEM, 32 * KIB, 1, "0001:00:00.0")
    assert any("a byte ring of 32 KiB, both ways" in line for line in found.explain)
    assert "console 'shm0': it would not be alone there; 'first' has 1-2" in refusal(
        held=holding(found), **annotated(console_port="shm0")
    )
    small = msgspec.structs.replace(QEMU.ivshmem[0], rw=Size(0))
    assert "its read/write section has 0 bytes; a byte ring needs 4096" in refusal(
        board=changed(QEMU, ivshmem=(small,)), **annotated(console_port="shm0")
    )
    assert "a Linux kernel has no console on a byte ring" in refusal(**LINUX, **annotated(console_port="shm0"))
    assert QEMU.template.inmate is not None
    usual = msgspec.structs.replace(QEMU.template.inmate, console="shm0")
    board = changed(QEMU, template=msgspec.structs.replace(QEMU.template, inmate=usual))
    assert plan(board).cell.console.source is Source.IVSHMEM
    other = plan(board, held=holding(found))
    assert other.cell.console.source is Source.VIRTUAL
    assert any("('first' has shm0, the usual one)" in line for line in other.explain)


def test_networks_are_taken_in_order_until_none_is_left() -> None:
    one = plan(KRIA, **annotated(net="yes"))
    two = plan(KRIA, **annotated(net="yes"), held=holding(one))
    assert [d.name for p in (one, two) for d in p.cell.devices] == ["net0", "net1"]
    assert (one.cell.vpci_irq_base, two.cell.vpci_irq_base) == (108, 112)
    both = (*holding(one), *holding(two, "second"))
    text = refusal(board=KRIA, **annotated(net="1"), held=both)
    assert "every place is taken; net0: 'first' has 1; net1: 'second' has 1" in text
    assert plan(KRIA, **annotated(net="no")).cell.devices == plan(KRIA, **annotated(net="none")).cell.devices == ()


def test_devices_are_given_by_their_node() -> None:
    gpio = boards.Device(
        name="gpio",
        nodes=("/dev/uio4",),
        memory=(boards.Memory(start=0xFF0A_0000, size=Size(4096)),),
        irqs=(48,),
    )
    found = plan(changed(KRIA, device=(gpio,)), devices=("/dev/uio4", "/dev/fuse", "/dev/ttyPS1"))
    assert "dev: /dev/ttyPS1 is uart1, which the root system uses: left out" in found.explain
    assert regions(found, "gpio") == [(0xFF0A_0000, 0xFF0A_0000, 4096)]
    assert [chip.pins for chip in found.cell.chips] == [(48,)]
    assert "dev: /dev/fuse is no device of board 'kria-kv260': left out" in found.explain
    assert {claim.kind for claim in found.claims if claim.what == "gpio"} == {Kind.DEVICE, Kind.IRQ}


def test_channels_lie_in_memory_that_is_there() -> None:
    there = Channel("log", 32 * KIB, "/dev/uio0:2")
    found = plan(channels=(there,), console="log")
    assert (found.channels, found.console) == ((there,), "log")
    assert "comm: channel log is the console" in found.explain
    assert "cannot give the cell channel 'x': nothing can be added" in refusal(channels=(Channel("x", 4096),))


def test_an_active_region_keeps_its_time_limit() -> None:
    active = changed(QEMU, comm=boards.Comm(passive=False, reply_timeout=5))
    assert (plan(active).cell.passive, plan(active).cell.reply_timeout) == (False, 5)


GUEST: dict[str, Any] = {
    "image": KERNEL,
    "kind": GuestKind.LINUX,
    "inmate": None,
    "process": ProcessSpec(("sh", "-c", "exit 3"), terminal=True),
    "facts": {"kernel": "/k/Image", "initrd": "/k/init", "sizes": {**SIZES, "/k/init": 700_000}},
}


def test_a_linux_guest_of_the_image_carries_its_rootfs() -> None:
    found = plan(**GUEST, **annotated(console_port="virtual"))
    cell = found.cell
    assert [load.form for load in cell.loads] == [Form.RAW, Form.TEXT, Form.RAW, Form.ROOTFS, Form.DTB]
    assert (cell.loads[0].size, cell.loads[3].source, cell.loads[4].source) == (0x10000, "/r", tree.FILE)
    assert cell.cmdline == "console=jailhouse quiet loglevel=2 printk.time=0 printk.devkmsg=on"
    assert found.initrd == "/k/init"
    records = found.conf_init.split(b"\0")
    assert records[-5:] == [b"rootfs=ramdisk", b"own-mounts=1", b"console=kmsg", b"comm=0x80000000", b""]
    assert any("init makes lines of the kernel's log" in line for line in found.explain)
    made = fdt.parse(found.files[tree.FILE]).root
    assert [node.name for node in made.children[1].children] == ["cpu@1"]
    assert made.child("serial") is None


def test_a_linux_guest_on_a_port_of_its_own_is_told_so() -> None:
    found = plan(ZCU, **GUEST, **annotated(net="net1"))
    assert found.cell.cmdline == "console=ttyPS0,115200 quiet loglevel=1"
    assert b"console=/dev/ttyPS0\0" in found.conf_init
    made = fdt.parse(found.files[tree.FILE]).root
    serial, pci = made.child("serial"), made.child("pci")
    assert serial is not None
    assert pci is not None
    assert serial.props["interrupts"] == fdt.cells(0, 22, 4)
    assert fdt.cells(0, 0, 0, 1, 1, 0, found.cell.vpci_irq_base, 1) in pci.props["interrupt-map"]
    assert made.child("memory") is None  # that comes with the RAM disk's size, when the cell is made


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (annotated(console_port="uart0"), "console 'uart0': its processes cannot print there without its interrupt"),
        (
            {"ramdisk": "/k/initrd"},
            "cannot use RAM disk /k/initrd: a Linux guest on the image",
        ),
        ({"process": None}, "the container has no process"),
        ({"facts": {**GUEST["facts"], "initrd": None}}, "set jailhouse.initrd"),
        (
            {"facts": {**GUEST["facts"], "sizes": {**SIZES, "/k/init": 1, "/r": 70 * MIB}}},
            "unpack a root file system of",
        ),
    ],
)
def test_what_a_linux_guest_cannot_have_is_refused(asked: dict[str, Any], words: str) -> None:
    assert words in refusal(**{**GUEST, **asked})


# Section: names


@pytest.mark.parametrize("name", ["demo", "_x", "a" * 31, "web-1.2_3", "busybox@2"])
def test_a_name_that_the_tool_can_take_is_kept(name: str) -> None:
    assert generator.cell_name(name, {"other"}) == name


@pytest.mark.parametrize("name", ["42", "0x10", "a" * 32, "0123456789abcdef" * 4, "-x", "+1", "7up", "ä"])
def test_other_names_are_replaced(name: str) -> None:
    found = generator.cell_name(name, set())
    assert found != name
    assert len(found.encode()) <= 31
    assert found[0].isalpha()
    assert found == generator.cell_name(name, {"other"})
    assert generator.cell_name(name, {found}) not in (name, found)


@given(st.sets(st.text("0123456789abcdefx@-+._,", min_size=1, max_size=70), min_size=2, max_size=8))
def test_no_two_cells_have_one_name(names: set[str]) -> None:
    used: set[str] = {"root"}
    for name in sorted(names):
        cell = generator.cell_name(name, used)
        assert cell not in used
        assert 0 < len(cell.encode()) <= 31
        with pytest.raises(ValueError, match="invalid literal"):
            int(cell, 0)
        used.add(cell)


def test_the_root_cells_name_is_taken() -> None:
    assert plan(id="qemu-arm64").cell.name.startswith("qemu-arm64-")
    assert plan(id="first", held=holding(plan(id="x"), "first")).cell.name == "first"


# Section: any guests in any order

GUESTS = st.fixed_dictionaries(
    {
        "memory_limit": st.one_of(st.none(), st.integers(64 * KIB, 60 * MIB)),
        "cpu_quota": st.sampled_from([None, 50_000, 200_000]),
        "net": st.sampled_from([None, NetWish(True)]),
        "load_address": st.sampled_from([None, 0, 0x7000_0000, 0x1000_0000]),
        "color": st.sampled_from(["", "", "0-3", "4-7", "2-5"]),
        "linux": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([QEMU, KRIA, ZCU]), st.lists(st.tuples(GUESTS, st.booleans()), max_size=8))
def test_cells_never_meet(board: Board, guests: list[tuple[dict[str, Any], bool]]) -> None:
    living: dict[str, JailhousePlan] = {}
    for number, (guest, remove) in enumerate(guests):
        held = tuple(held for name, found in living.items() for held in holding(found, name))
        asked = {key: value for key, value in guest.items() if key not in ("color", "linux")}
        if guest["linux"]:
            asked = {**asked, **LINUX, "load_address": None}
        if guest["color"] and board.cache is not None:
            asked |= annotated(colors=guest["color"])
        asked["console_port"] = board.uart[0].name if board is not QEMU else "virtual"
        with suppress(PlanError):  # the board is full, or RAM would cover the serial port
            living[f"c{number}"] = plan(board, held=held, **{"image": FLAT, **asked, "id": f"c{number}"})
        if remove and living:
            living.pop(next(iter(living)))
        check_apart(board, list(living.values()))


def check_apart(board: Board, plans: list[JailhousePlan]) -> None:
    root = ranges.merged(part.range for part in board.ram)
    lent = ranges.merged(part.range for part in board.memory)
    for found in plans:
        cell = found.cell
        assert set(cell.cpus) <= set(board.cpus.lent())
        for region in cell.regions:
            if Flag.LOADABLE in region.flags and region.what != "tcm":
                assert any(Range(region.phys, region.phys + region.size).within(part) for part in root)
                assert any(Range(region.phys, region.phys + region.size).within(part) for part in lent)
        shown = [region.guest for region in cell.regions if region.size]
        assert not any(one.overlaps(two) for one, two in combinations(shown, 2))
    for one, two in combinations(plans, 2):
        assert not set(one.cell.cpus) & set(two.cell.cpus)
        assert not any(a.excludes(b) for a in one.claims for b in two.claims)
        assert one.cell.name != two.cell.name
        pins = [{pin for chip in p.cell.chips for pin in chip.pins} for p in (one, two)]
        assert not pins[0] & pins[1]
        for a in one.cell.regions:
            for b in two.cell.regions:
                if {Flag.LOADABLE} <= set(a.flags) & set(b.flags) and not (a.colors and b.colors):
                    assert not Range(a.phys, a.phys + a.size).overlaps(Range(b.phys, b.phys + b.size))


# Section: for people


def test_a_plan_survives_json_and_is_readable() -> None:
    found = plan(**annotated(net="yes"))
    assert msgspec.json.decode(msgspec.json.encode(found), type=JailhousePlan) == found
    lines = conf.render(found).splitlines()
    assert "memory.1 = - # net0, read/write section, of no size" in lines
    assert "ivshmem.0 = 0001:00:01.0 peer 1 of 2, protocol 0x0001 # net0" in lines
    assert not any(line.startswith("argv") for line in lines)


def test_an_images_words_cannot_move_a_terminal() -> None:
    text = conf.render(plan(**annotated(net="yes"), netconf="\x1b[2J\nbackend = qemu", cmdline="\x07"))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert text.splitlines().count("backend = qemu") == 0
    assert "# net: settings '\\x1b[2J\\nbackend = qemu' are for the guest itself" in text


def test_claims_are_enough_for_the_ledger() -> None:
    found = plan(**annotated(net="yes"), cpu_quota=200_000)
    assert set(units(Kind.CPU, (1, 2))) <= set(found.claims)
    assert Claim(Kind.IVSHMEM, 1, 2, "net0") in found.claims
    assert {claim.kind for claim in found.claims} == {Kind.CPU, Kind.MEMORY, Kind.IVSHMEM, Kind.DEVICE, Kind.IRQ}


def test_the_page_shows_what_the_planner_makes() -> None:
    page = Path("docs/reference/boards.md").read_text()
    assert page.endswith(examples.page()), "run python -m backends.jailhouse.examples and put it at the page's end"
    assert {example.board for example in examples.EXAMPLES} == set(loading.shipped())


def test_the_map_in_the_docs_is_current() -> None:
    shown = Path("docs/images/map-kria-kv260.svg").read_text()
    assert shown == examples.picture(), "run python -m backends.jailhouse.examples picture > docs/images/map-…"


def test_the_page_is_printed() -> None:
    out = subprocess.run([sys.executable, "-m", "backends.jailhouse.examples"], capture_output=True, check=True)
    assert out.stdout.decode() == examples.page()
