# SPDX-License-Identifier: Apache-2.0
"""The QEMU config generator: what a container asks against the command line it gets, without a QEMU."""

from __future__ import annotations

import re
import shlex
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.qemu.plan import QemuPlan
from runphi_async.errors import PlanError
from runphi_async.host.nic import Link
from runphi_async.partition import conf
from runphi_async.partition.image import Handed, ImageFacts, Segment
from runphi_async.partition.spec import GuestKind, PartitionPlan
from runphi_async.partition.wishes import NetWish
from runphi_async.units import MIB
from tests.unit.qemukit import (
    ARM,
    ARM_IMAGE,
    BZIMAGE,
    FACTS,
    FLAT,
    LINUX,
    MULTIBOOT,
    PVH,
    option,
    options,
    plan,
)
from tests.unit.wishkit import annotated

# Section: what is the same for all


@pytest.mark.parametrize(
    "found",
    [
        plan(),
        plan(MULTIBOOT),
        plan(ARM),
        plan(PVH, **LINUX),
        plan(BZIMAGE, kind=GuestKind.KERNEL, inmate=None, kernel="/r/k", ramdisk="/r/rd"),
    ],
    ids=["pvh", "multiboot", "arm", "linux", "kernel"],
)
def test_every_guest_is_confined_and_waits(found: PartitionPlan) -> None:
    for flag in ("-nodefaults", "-no-user-config", "-no-reboot", "-S"):
        assert flag in found.argv
    assert option(found, "-display") == "none"
    assert option(found, "-sandbox").startswith("on,obsolete=deny,elevateprivileges=deny,spawn=deny")
    assert "stdio" not in " ".join(found.argv)
    assert options(found, "-mon") == ["chardev=ev,mode=control", "chardev=qmp,mode=control"]
    chardevs = options(found, "-chardev")
    assert {"pipe,id=con,path=con", "pipe,id=ev,path=ev"} <= set(chardevs)
    assert "socket,id=qmp,path=qmp.sock,server=on,wait=off" in chardevs
    assert all("path=/" not in chardev for chardev in chardevs)
    assert {sentence.partition(":")[0] for sentence in found.explain} == {
        "boot",
        "memory",
        "cpu",
        "dev",
        "net",
        "comm",
    }


def test_an_inherited_qmp_socket() -> None:
    found = plan(facts=msgspec.structs.replace(FACTS, qmp_fd=10))
    assert "socket,id=qmp,fd=10,server=on,wait=off" in options(found, "-chardev")


def test_plans_compare_by_value_and_survive_the_record() -> None:
    assert plan() == plan()
    assert msgspec.json.decode(msgspec.json.encode(plan()), type=QemuPlan) == plan()


# Section: what boots


@pytest.mark.parametrize(
    ("image", "machine", "program"),
    [
        (PVH, "microvm,x-option-roms=off,acpi=off", "qemu-system-x86_64"),
        (MULTIBOOT, "microvm,acpi=off", "qemu-system-x86_64"),
        (ARM, "virt", "qemu-system-aarch64"),
    ],
)
def test_inmates(image: ImageFacts, machine: str, program: str) -> None:
    found = plan(image)
    assert found.argv[0] == program
    assert option(found, "-machine") == machine
    assert option(found, "-kernel") == "image"
    assert found.handed == (Handed("image", "/r/i", image, anew=True),)
    assert option(found, "-serial") == "chardev:con"
    assert (found.share, found.files) == (None, {})


def test_exit_codes_of_inmates() -> None:
    assert "file,id=exit,path=guest.exit" in options(plan(), "-chardev")
    assert "isa-debug-exit,iobase=0xf4,iosize=4" in options(plan(), "-device")
    assert option(plan(ARM), "-semihosting-config") == "enable=on,target=gdb"
    on_arm = msgspec.structs.replace(FACTS, arch="aarch64", accel="kvm")
    assert options(plan(ARM, on_arm), "-semihosting-config") == []


@pytest.mark.parametrize("name", ["colors", "console-port"])
def test_what_only_boards_have_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match=f"annotation org.runphi.{name} says: only boards have that"):
        plan(**annotated(**{name: "1"}))


def test_what_an_image_asks_of_a_board() -> None:
    with pytest.raises(PlanError, match="a remote processor"):
        plan(rpu=True)


# Section: network

ETH0 = Link(2, "eth0", "aa:bb:cc:00:00:01", 1500)
ETH1 = Link(3, "net1", "aa:bb:cc:00:00:02", 9000)


def test_a_linux_guest_gets_an_interface_for_each_of_its_container() -> None:
    facts = msgspec.structs.replace(LINUX["facts"], links=(ETH0, ETH1), qmp_fd=10)
    found = plan(PVH, **{**LINUX, "facts": facts}, netns="/run/netns/x")
    assert options(found, "-netdev") == ["tap,id=net0,fd=11,vhost=off", "tap,id=net1,fd=12,vhost=off"]
    assert f"virtio-net-pci,netdev=net0,mac={ETH0.mac},romfile=" in options(found, "-device")
    assert (found.netns, found.macs) == ("/run/netns/x", (ETH0.mac, ETH1.mac))
    assert b"net=1\0" in found.files["initrd"]
    assert "net: in the place of eth0, net1 of the container's network namespace" in found.explain


def test_an_interface_may_come_later() -> None:
    facts = msgspec.structs.replace(LINUX["facts"], links=())
    found = plan(PVH, **{**LINUX, "facts": facts}, netns="")
    assert len(found.macs) == 1
    assert found.macs[0].startswith("02:")
    assert found == plan(PVH, **{**LINUX, "facts": facts}, netns="")


@pytest.mark.parametrize(
    ("asked", "links", "obstacle", "sentence"),
    [
        ({}, None, "", "net: none, as the container uses the host's, and a guest cannot"),
        (annotated(net="no"), (ETH0,), "", "net: none, as the container says"),
        (annotated(net="none"), (ETH0,), "", "net: none, as org.runphi.net says"),
        ({}, (), "there is no /dev/net/tun", "net: none, as there is no /dev/net/tun"),
    ],
)
def test_a_linux_guest_without_a_network(
    asked: dict[str, Any], links: tuple[Link, ...] | None, obstacle: str, sentence: str
) -> None:
    facts = msgspec.structs.replace(LINUX["facts"], links=links, no_taps=obstacle)
    found = plan(PVH, **{**LINUX, "facts": facts}, netns="/n", **asked)
    assert option(found, "-nic") == "none"
    assert (found.netns, found.macs) == (None, ())
    assert b"net=1" not in found.files["initrd"]
    assert sentence in found.explain


@pytest.mark.parametrize(
    ("asked", "links", "obstacle", "text"),
    [
        ({"net": NetWish(True)}, None, "", "the container uses the host's.*; give the container a network namespace"),
        (annotated(net="shm1"), (ETH0,), "", "to 'shm1': only boards have that"),
        ({}, (ETH0,), "there is no tun", "a network: there is no tun; org.runphi.net=no"),
        ({"net": NetWish(True)}, (), "there is no tun", "a network: there is no tun"),
    ],
)
def test_a_network_that_cannot_be_had(
    asked: dict[str, Any], links: tuple[Link, ...] | None, obstacle: str, text: str
) -> None:
    facts = msgspec.structs.replace(LINUX["facts"], links=links, no_taps=obstacle)
    with pytest.raises(PlanError, match=text):
        plan(PVH, **{**LINUX, "facts": facts}, netns="/n", **asked)


def test_an_inmate_gets_a_network_when_it_asks() -> None:
    facts = msgspec.structs.replace(FACTS, links=(ETH0, ETH1))
    assert option(plan(facts=facts, netns="/n"), "-nic") == "none"
    # the name is a board's: elsewhere any network will do
    for image, asked in ((PVH, NetWish(True)), (ARM, NetWish(True, "shm1"))):
        found = plan(image, facts, netns="/n", net=asked, netconf="10.0.0.2")
        assert option(found, "-netdev") == "tap,id=net0,fd=10,vhost=off"
        assert f"virtio-net-device,netdev=net0,mac={ETH0.mac}" in options(found, "-device")
        assert option(found, "-global") == "virtio-mmio.force-legacy=false"
        assert "net: the guest sets itself up by 10.0.0.2" in found.explain
    kernel = plan(BZIMAGE, facts, kind=GuestKind.KERNEL, inmate=None, kernel="/r/k", netns="/n", net=NetWish(True))
    assert f"virtio-net-pci,netdev=net0,mac={ETH0.mac},romfile=" in options(kernel, "-device")


def test_machine_by_annotation() -> None:
    assert option(plan(**annotated(machine="q35")), "-machine").startswith("q35,")
    for wrong in ("virt", "pc-1.0,foo=on"):
        with pytest.raises(PlanError, match=f"cannot use machine '{wrong}' for x86_64; one of: microvm, q35, pc"):
            plan(**annotated(machine=wrong))


def test_flat_images() -> None:
    found = plan(FLAT, arch="aarch64")
    assert option(found, "-kernel") == "image"
    assert plan(FLAT, arch="aarch64", load_address=0x40080000).argv == found.argv
    found = plan(FLAT, arch="aarch64", load_address=0x40200000, inmate="/r/a,b")
    assert options(found, "-kernel") == []
    assert "loader,file=image,addr=0x40200000,force-raw=on,cpu-num=0" in options(found, "-device")


def test_commas_in_names() -> None:
    assert option(plan(id="a,b"), "-name") == "guest=a,,b"


def no_nul(text: str) -> str:
    return text.replace("\0", "")


PATHS = st.text(max_size=30).map(lambda text: f"/r/{no_nul(text)}")


@given(inmate=PATHS, ramdisk=PATHS, dtb=PATHS, cmdline=st.text(max_size=60).map(no_nul))
@example(inmate="/r/i,1", ramdisk="/boot/x y", dtb="/r/d,-chardev", cmdline="-chardev file,id=p,path=/host")
def test_no_text_of_an_image_is_more_than_one_word(inmate: str, ramdisk: str, dtb: str, cmdline: str) -> None:
    """Whatever an image or an annotation says: the same options, and its words in none but the guest's own line."""
    cases: tuple[tuple[ImageFacts, dict[str, Any]], ...] = (
        (MULTIBOOT, {"ramdisk": ramdisk}),
        (PVH, {"ramdisk": ramdisk}),
        (ARM, {"ramdisk": ramdisk, "dtb": dtb}),
        (FLAT, {"arch": "aarch64", "dtb": dtb}),
    )
    for image, asked in cases:
        same: dict[str, Any] = {name: value if name == "arch" else "/r/x" for name, value in asked.items()}
        plain = plan(image, cmdline="x", **same)
        found = plan(image, inmate=inmate, cmdline=cmdline or "x", **asked)
        assert [word for word in found.argv if word != (cmdline or "x")] == [word for word in plain.argv if word != "x"]
        assert option(found, "-append") == (cmdline or "x")
        assert next(file.source for file in found.handed) == inmate
        assert all(re.fullmatch("[a-z]+", file.name) for file in found.handed)


def test_linux_guest_in_software() -> None:
    found = plan(PVH, **LINUX)
    assert option(found, "-machine") == "pc,smm=off,usb=off,memory-backend=mem"
    assert "vhost-user-fs-pci,chardev=fs,tag=rootfs" in options(found, "-device")


def test_linux_guest_on_kvm() -> None:
    found = plan(PVH, **{**LINUX, "facts": msgspec.structs.replace(LINUX["facts"], accel="kvm")})
    assert option(found, "-machine") == "microvm,x-option-roms=off,acpi=on,memory-backend=mem"
    assert "memory-backend-memfd,id=mem,size=256M,share=on" in options(found, "-object")
    assert (option(found, "-kernel"), option(found, "-initrd")) == ("/var/vmlinux", "initrd")
    assert option(found, "-serial") == "chardev:klog"
    devices = options(found, "-device")
    assert "vhost-user-fs-device,chardev=fs,tag=rootfs" in devices
    assert "virtserialport,bus=vser.0,chardev=con,name=org.runphi.console" in devices
    assert "virtserialport,bus=vser.0,chardev=ctl,name=org.runphi.control" in devices
    assert options(found, "-global") == ["virtio-mmio.force-legacy=false"]
    assert found.share is not None
    assert found.share.path == "/r"
    assert found.files["initrd"].startswith(b"base")
    assert b"arg=sh\0" in found.files["initrd"]
    assert b"own-mounts=1\0" in found.files["initrd"]
    arm = plan(ARM_IMAGE, **LINUX, arch="aarch64")
    assert option(arm, "-machine") == "virt,memory-backend=mem"
    assert "vhost-user-fs-pci,chardev=fs,tag=rootfs" in options(arm, "-device")


def test_kernel_with_its_own_ramdisk() -> None:
    asked: dict[str, Any] = {"kind": GuestKind.KERNEL, "inmate": None, "kernel": "/r/k", "ramdisk": "/r/rd"}
    found = plan(BZIMAGE, **asked, cmdline="quiet")
    assert option(found, "-machine").startswith("q35,")
    assert (option(found, "-kernel"), option(found, "-initrd")) == ("image", "ramdisk")
    assert option(found, "-append") == "console=ttyS0 panic=-1 quiet"
    assert option(found, "-serial") == "chardev:con"
    arm = plan(ARM_IMAGE, **asked, dtb="/r/d")
    assert option(arm, "-append").startswith("console=ttyAMA0")
    assert option(arm, "-dtb") == "dtb"
    assert [(file.name, file.source) for file in arm.handed] == [
        ("image", "/r/k"),
        ("ramdisk", "/r/rd"),
        ("dtb", "/r/d"),
    ]


@pytest.mark.parametrize(
    ("image", "asked", "text"),
    [
        (FLAT, {}, "it is a flat binary, and an x86 machine has no place"),
        (msgspec.structs.replace(PVH, pvh_entry=None), {}, "without PVH note or multiboot header"),
        (msgspec.structs.replace(PVH, multiboot=True), {}, "multiboot takes 32-bit images only"),
        (BZIMAGE, {}, "it is a Linux kernel; name it with KERNEL="),
        (msgspec.structs.replace(PVH, arch="riscv"), {}, "it is for riscv, and QEMU guests are"),
        (msgspec.structs.replace(ARM, bits=32), {}, "64-bit images only"),
        (ARM, {"arch": "x86_64"}, "cannot boot /r/i as x86_64: it is an image for aarch64"),
        (ARM, {"load_address": 0x40200000}, "an ELF image says itself where it lies"),
        (ARM, {"facts": msgspec.structs.replace(FACTS, binaries={})}, "apt-get install qemu-system-arm"),
        (PVH, {"dtb": "/r/d"}, "an x86 machine takes none"),
        (
            FLAT,
            {"arch": "aarch64", "load_address": 0x1000},
            "cannot load /r/i at 0x1000: RAM starts at 0x40000000",
        ),
        (
            FLAT,
            {"arch": "aarch64", "load_address": 0x40000000},
            "the device tree lies there; load it at 0x40080000",
        ),
        (FLAT, {"arch": "aarch64", "load_address": 0x40200000, "cmdline": "x"}, "leave the load address out"),
        (
            FLAT,
            {"arch": "aarch64", "load_address": 0x41F00000},
            "ends at 0x42200000, .*the guest needs 34 MiB",
        ),
        (FLAT, {"kind": GuestKind.KERNEL, "kernel": "/k"}, "it is flat, not bzimage or elf"),
        (PVH, {**LINUX, "process": None}, "the container has no process"),
        (PVH, {**LINUX, "ramdisk": "/r/rd"}, "a Linux guest on the image's rootfs starts from ours"),
        (PVH, {"kind": GuestKind.KERNEL, "kernel": None}, "there is no guest kernel; run bin/prepare-guest"),
        (
            PVH,
            {**LINUX, "facts": msgspec.structs.replace(FACTS, kernel="/k")},
            "its RAM disk with our init is missing",
        ),
        (
            msgspec.structs.replace(PVH, segments=(Segment(0x100000, 0x4000001),)),
            {},
            r"cannot place /r/i in guest memory: it ends at 0x4000001, .*the guest needs 65 MiB",
        ),
        (
            msgspec.structs.replace(ARM, segments=(Segment(0x0, 0x1000),)),
            {},
            "it wants 0x0, RAM is at 0x40000000",
        ),
    ],
)
def test_what_cannot_be_planned(image: ImageFacts, asked: dict[str, Any], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        plan(image, **asked)


# Section: memory and CPUs


@pytest.mark.parametrize(
    ("limit", "size"), [(None, 32 * MIB), (4 * MIB, 4 * MIB), (64 * MIB + 5, 64 * MIB), (1 << 31, 1 << 31)]
)
def test_memory(limit: int | None, size: int) -> None:
    found = plan(memory_limit=limit)
    assert found.memory_bytes == size
    assert option(found, "-m") == f"{size // MIB}M"


def test_too_little_memory() -> None:
    with pytest.raises(PlanError, match="cannot give the guest 1 MiB of memory: one of kind inmate needs 4 MiB; raise"):
        plan(memory_limit=MIB)
    with pytest.raises(PlanError, match="one of kind linux needs 96 MiB"):
        plan(PVH, **LINUX, memory_limit=8 * MIB)


@pytest.mark.parametrize(
    ("asked", "vcpus", "pins"),
    [
        ({}, 1, ()),
        ({"cpu_quota": 50_000, "cpu_period": 100_000}, 1, ()),
        ({"cpu_quota": 150_000, "cpu_period": 100_000}, 2, ()),
        ({"cpu_quota": 150_000}, 2, ()),
        ({"cpu_quota": 9_000_000, "cpu_period": 100_000}, 4, ()),
        ({"cpuset": (1, 3)}, 2, (1, 3)),
        ({"cpuset": (1, 3), "cpu_quota": 50_000}, 1, (1,)),
        ({"cpuset": (2,), "cpu_quota": 400_000}, 1, (2,)),
        ({"cpuset": (1, 3), **annotated(vcpus="3")}, 3, (1, 3, 1)),
        (annotated(vcpus="8"), 8, ()),
    ],
)
def test_cpus(asked: dict[str, Any], vcpus: int, pins: tuple[int, ...]) -> None:
    found = plan(**asked)
    assert (found.vcpus, found.pins) == (vcpus, pins)
    assert option(found, "-smp") == str(vcpus)


def test_a_cpu_that_is_not_there() -> None:
    with pytest.raises(PlanError, match="cannot pin the guest to CPU 7: it is not online; online: 0, 1, 2, 3"):
        plan(cpuset=(1, 7))


def test_kvm_only_for_the_hosts_own_architecture() -> None:
    facts = msgspec.structs.replace(FACTS, accel="kvm")
    found = plan(facts=facts)
    assert (option(found, "-accel"), option(found, "-cpu")) == ("kvm", "host")
    assert option(plan(ARM, facts), "-accel") == "tcg"
    assert any("as the guest is aarch64 and the host x86_64" in line for line in plan(ARM, facts).explain)


# Section: for people


def test_conf_is_readable_and_pastable() -> None:
    found = plan(inmate="/r/with space", id="c 1")
    text = conf.render(found)
    lines = text.splitlines()
    assert lines[0] == "# boot: /r/with space, elf for x86_64 (its elf header says so)"
    assert f"memory = {32 * MIB} # 32 MiB" in lines
    command = text.split("\nargv = ")[1].replace("\\\n", " ")
    assert tuple(shlex.split(command)) == found.argv
