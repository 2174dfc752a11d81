# SPDX-License-Identifier: Apache-2.0
"""QEMU half of booting: which machine can start the image, and the options that make it do so.

| image                          | machine | how                                                        |
|--------------------------------|---------|------------------------------------------------------------|
| x86 ELF with a PVH note        | microvm | ``-kernel``, PVH entry                                     |
| x86 multiboot, 32 bit          | microvm | ``-kernel``, multiboot                                     |
| aarch64 ELF                    | virt    | ``-kernel``, at its own addresses, entry in EL1            |
| aarch64 flat                   | virt    | ``-kernel`` at 0x40080000 with the device tree in x0, or a |
|                                |         | raw load where the container says, device tree at RAM start|
| Linux kernel, the image's rootfs | pc in software, microvm on KVM; virt | ``-kernel`` and our RAM disk |
| Linux kernel, own RAM disk     | q35 / virt | ``-kernel``, ``-initrd``, serial console                |

Annotation ``org.runphi.machine=q35`` gives an x86 image PCI, ACPI and HPET where microvm has none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.guest import initrd as initrds
from backends.qemu.machine import VIRT_DTB_END, VIRT_LOAD_ADDRESS, VIRT_RAM_BASE, Machine, value
from runphi_async.errors import PlanError
from runphi_async.partition import boot as boots
from runphi_async.partition import mem
from runphi_async.partition.image import Handed, ImageFormat
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from backends.qemu.machine import HostFacts
    from runphi_async.partition.boot import Boot
    from runphi_async.partition.image import ImageFacts
    from runphi_async.partition.mem import Memory
    from runphi_async.partition.mounts import Mounts
    from runphi_async.partition.net import Network
    from runphi_async.partition.spec import GuestSpec

#: the RAM disk of a Linux guest in the record directory: ours plus the container's own settings
GUEST_INITRD: Final = "initrd"
#: names of the image's own files there; none has a character that QEMU takes for the end of a name
IMAGE: Final = "image"
RAMDISK: Final = "ramdisk"
DTB: Final = "dtb"
HANDED: Final = (IMAGE, RAMDISK, DTB)
_LINUX_FORMATS: Final = {
    "x86_64": (ImageFormat.BZIMAGE, ImageFormat.ELF),
    "aarch64": (ImageFormat.ARM64_IMAGE, ImageFormat.GZIP),
}
#: both: end at once on a panic, as -no-reboot makes a reboot the end
_KERNEL_CMDLINE: Final = {"x86_64": "console=ttyS0 panic=-1", "aarch64": "console=ttyAMA0 panic=-1"}
#: no_timer_check: on a busy host, in software, the kernel's test of its timer fails now and then, and it panics
_GUEST_CMDLINE: Final = {
    "x86_64": "console=ttyS0 no_timer_check quiet loglevel=4 panic=-1",
    "aarch64": "console=ttyAMA0 quiet loglevel=4 panic=-1",
}


def choose(spec: GuestSpec, facts: HostFacts) -> Boot:
    """Choose image and architecture."""
    return boots.decide(spec, facts.image, facts.kernel, facts.arch)


def machine(spec: GuestSpec, boot: Boot, accel: str) -> Machine:
    """The machine that can start this image.

    :raises PlanError: when none can, with the reason.
    """
    usual = _usual_machine(spec, boot, accel)
    wished = spec.machine
    if wished is None:
        return usual
    fitting = (Machine.VIRT,) if boot.arch == "aarch64" else (Machine.MICROVM, Machine.Q35, Machine.PC)
    if wished not in fitting:
        raise PlanError(f"cannot use machine '{wished}' for {boot.arch}", f"one of: {', '.join(fitting)}")
    return Machine(wished)


def _usual_machine(spec: GuestSpec, boot: Boot, accel: str) -> Machine:
    if boot.arch not in ("x86_64", "aarch64"):
        raise PlanError(f"cannot boot {boot.image}: it is for {boot.arch}, and QEMU guests are x86_64 or aarch64")
    if spec.kind is GuestKind.INMATE:
        return _inmate_machine(boot)
    if boot.facts.format not in _LINUX_FORMATS[boot.arch]:
        wanted = " or ".join(_LINUX_FORMATS[boot.arch])
        raise PlanError(f"cannot boot {boot.image} as a Linux kernel: it is {boot.facts.format}, not {wanted}")
    if boot.facts.format is ImageFormat.ELF and boot.facts.pvh_entry is None:
        raise PlanError(
            f"cannot boot {boot.image}: an uncompressed kernel needs a PVH entry",
            "build it with CONFIG_PVH=y or use its bzImage",
        )
    if boot.arch == "aarch64":
        return Machine.VIRT
    if spec.kind is GuestKind.KERNEL:
        return Machine.Q35
    # microvm has no clock but the TSC, and Linux measures that one by the PIT: in software, on a busy host,
    # more than half of the boots hung there. KVM has a clock of its own.
    return Machine.MICROVM if accel == "kvm" else Machine.PC


def _inmate_machine(boot: Boot) -> Machine:
    facts = boot.facts
    if boot.arch == "aarch64":
        if facts.format is ImageFormat.ELF and facts.bits != 64:
            raise PlanError(f"cannot boot {boot.image}: an aarch64 machine starts 64-bit images only")
        return Machine.VIRT
    if facts.multiboot:
        # QEMU looks for multiboot before PVH, and refuses to load 64-bit images by it
        if facts.bits == 64:
            raise PlanError(
                f"cannot boot {boot.image}: multiboot takes 32-bit images only",
                "make it a 32-bit ELF (objcopy -O elf32-i386) or replace its multiboot header by a PVH note",
            )
        return Machine.MICROVM
    if facts.pvh_entry is not None:
        return Machine.MICROVM
    if facts.format is ImageFormat.BZIMAGE:
        raise PlanError(f"cannot boot {boot.image} as an inmate: it is a Linux kernel", "name it with KERNEL= instead")
    elf = facts.format is ImageFormat.ELF
    what = "an ELF image without PVH note or multiboot header" if elf else "a flat binary"
    raise PlanError(
        f"cannot boot {boot.image}: it is {what}, and an x86 machine has no place where to start it",
        "add a PVH note (Xen, type 18) or a multiboot header to the image; see docs/reference/inmates.md",
    )


def machine_options(chosen: Machine, boot: Boot, kind: GuestKind, *, pci: bool = False) -> list[str]:
    """Options of the machine: leave out what costs time at boot and no guest of the kind uses.

    :param pci: the guest has devices that need PCI, which microvm has on request only.
    """
    if chosen is Machine.MICROVM:
        # its PCI comes with ACPI only
        acpi = "acpi=off" if kind is GuestKind.INMATE and not pci else "acpi=on"
        # multiboot is started by an option ROM, PVH by the firmware itself
        options = [acpi] if boot.facts.multiboot else ["x-option-roms=off", acpi]
        return [*options, "pcie=on"] if pci else options
    if chosen is Machine.Q35:
        return ["smm=off", "sata=off", "usb=off", "smbus=off"]
    if chosen is Machine.PC:
        return ["smm=off", "usb=off"]
    return []


def check(spec: GuestSpec, boot: Boot, memory: Memory) -> None:
    """Check that the image fits into guest RAM where it wants to lie."""
    base = VIRT_RAM_BASE if boot.arch == "aarch64" else 0
    name = boot.image
    for segment in boot.facts.segments:
        if segment.start < base:
            raise PlanError(
                f"cannot place {name} in guest memory: it wants {segment.start:#x}, RAM is at {base:#x}",
                "link the image for this machine; see docs/reference/inmates.md",
            )
        mem.need(memory, segment.end, base, name)
    if boot.facts.format is ImageFormat.ELF:
        if spec.load_address is not None:
            raise PlanError(
                f"cannot load {name} at {spec.load_address:#x}: an ELF image says itself where it lies",
                "leave the load address out",
            )
    elif spec.kind is GuestKind.INMATE and boot.arch == "aarch64":
        start = VIRT_LOAD_ADDRESS if spec.load_address is None else spec.load_address
        if start < base:
            raise PlanError(f"cannot load {name} at {start:#x}: RAM starts at {base:#x}")
        if start != VIRT_LOAD_ADDRESS and start < VIRT_DTB_END:
            raise PlanError(
                f"cannot load {name} at {start:#x}: the device tree lies there",
                f"load it at {VIRT_LOAD_ADDRESS:#x} or from {VIRT_DTB_END:#x} up",
            )
        mem.need(memory, start + boot.facts.size, base, name)


def args(spec: GuestSpec, boot: Boot, chosen: Machine) -> list[str]:
    """Options that make the machine start the image."""
    out: list[str] = []
    if chosen is Machine.MICROVM:
        # half the time to the first instruction of the default, a SeaBIOS
        out += ["-bios", "qboot.rom"]
    out += _image(spec, boot)
    if spec.kind is GuestKind.LINUX:
        out += ["-initrd", GUEST_INITRD]
    elif boot.ramdisk is not None:
        out += ["-initrd", RAMDISK]
    cmdline = _cmdline(spec, boot.arch)
    if cmdline:
        out += ["-append", cmdline]
    if spec.dtb is not None:
        if chosen is not Machine.VIRT:
            raise PlanError(f"cannot use device tree {spec.dtb}: an x86 machine takes none")
        out += ["-dtb", DTB]
    return out


def handed(spec: GuestSpec, boot: Boot) -> tuple[Handed, ...]:
    """The files of the image that QEMU is given; the configuration's own kernel it opens where that lies."""
    files = []
    if _of_the_image(spec):
        files.append(Handed(IMAGE, boot.image, boot.facts, anew=True))
    if boot.ramdisk is not None:
        files.append(Handed(RAMDISK, boot.ramdisk))
    if spec.dtb is not None:
        files.append(Handed(DTB, spec.dtb))
    return tuple(files)


def files(spec: GuestSpec, facts: HostFacts, mounted: Mounts, network: Network) -> dict[str, bytes]:
    """The RAM disk of a Linux guest: our init, and what it shall run."""
    if spec.kind is not GuestKind.LINUX:
        return {}
    process, base = boots.linux_process(spec, facts.initrd, "qemu.initrd")
    conf = initrds.container_conf(process, readonly=spec.readonly_root, mounts=mounted.guest, net=bool(network.macs))
    return {GUEST_INITRD: initrds.with_conf(base, conf)}


def _of_the_image(spec: GuestSpec) -> bool:
    return spec.kind is GuestKind.INMATE or spec.kernel is not None


def _image(spec: GuestSpec, boot: Boot) -> list[str]:
    image = IMAGE if _of_the_image(spec) else boot.image
    if boot.facts.format is ImageFormat.ELF or spec.load_address in (None, VIRT_LOAD_ADDRESS):
        return ["-kernel", image]
    if boot.ramdisk or spec.cmdline or spec.dtb:
        raise PlanError(
            f"cannot load {boot.image} at {spec.load_address:#x} with RAM disk, command line or device tree",
            "leave the load address out: the image then starts at 0x40080000",
        )
    where = f"loader,file={value(image)},addr={spec.load_address:#x},force-raw=on,cpu-num=0"
    return ["-device", where]


def _cmdline(spec: GuestSpec, arch: str) -> str:
    if spec.kind is GuestKind.INMATE:
        return spec.cmdline or ""
    ours = _GUEST_CMDLINE if spec.kind is GuestKind.LINUX else _KERNEL_CMDLINE
    return f"{ours[arch]} {spec.cmdline}" if spec.cmdline else ours[arch]


def explain(boot: Boot, chosen: Machine, facts: ImageFacts) -> str:
    """Say which machine and why."""
    if facts.multiboot:
        why = "it has a multiboot header"
    elif facts.pvh_entry is not None and chosen is Machine.MICROVM:
        why = "it has a PVH entry"
    else:
        why = f"it is for {boot.arch}"
    return f"boot: machine {chosen}, as {why}"
