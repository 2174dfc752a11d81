# SPDX-License-Identifier: Apache-2.0
"""QEMU half of the devices: shared rootfs, exit code port, panic device, random numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.qemu.machine import Machine
from runphi_async.partition import dev as devices

if TYPE_CHECKING:
    from runphi_async.partition.dev import Devices
    from runphi_async.partition.spec import GuestSpec

#: the guest writes its exit code here, one byte …
EXIT_CODE_PORT: Final = 0x4F0
#: … then anything here, which ends QEMU
EXIT_PORT: Final = 0xF4
EXIT_FILE: Final = "guest.exit"
PANIC_PORT: Final = 0x505
#: where virtiofsd listens, relative to the record directory
FS_SOCKET: Final = "fs.sock"
FS_TAG: Final = "rootfs"


def choose(spec: GuestSpec) -> Devices:
    """Decide which devices the guest has."""
    return devices.decide(spec)


def args(decided: Devices, machine: Machine, transport: str, accel: str) -> list[str]:
    """Devices; ``transport`` as in ``comm.args``."""
    out: list[str] = []
    if machine is Machine.MICROVM and decided.share_rootfs:
        # vhost-user devices speak modern virtio only
        out += ["-global", "virtio-mmio.force-legacy=false"]
    if decided.share_rootfs:
        out += [
            "-chardev", f"socket,id=fs,path={FS_SOCKET}",
            "-device", f"vhost-user-fs-{transport},chardev=fs,tag={FS_TAG}",
        ]  # fmt: skip
    # x86 CPUs have an instruction for it, in software too
    if decided.random and machine is Machine.VIRT:
        out += ["-device", f"virtio-rng-{transport}"]
    if machine is Machine.VIRT:
        if decided.exit_port and accel == "tcg":
            # target=gdb: with "native" a guest could open files of the host
            out += ["-semihosting-config", "enable=on,target=gdb"]
        if decided.panic and not decided.exit_port:
            out += ["-device", "pvpanic-pci"]
        return out
    if decided.exit_port:
        out += [
            "-chardev", f"file,id=exit,path={EXIT_FILE}",
            "-device", f"isa-debugcon,iobase={EXIT_CODE_PORT:#x},chardev=exit",
            "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4",
        ]  # fmt: skip
    if decided.panic:
        out += ["-device", f"pvpanic,ioport={PANIC_PORT}"]
    return out


def explain(decided: Devices, machine: Machine, accel: str) -> list[str]:
    """Say where a program without an operating system leaves its exit code."""
    if not decided.exit_port:
        return []
    if machine is not Machine.VIRT:
        ports = f"exit code by port {EXIT_CODE_PORT:#x}, end by port {EXIT_PORT:#x}"
        return [f"dev: {ports}, panic by port {PANIC_PORT:#x}"]
    if accel == "tcg":
        return ["dev: exit code by semihosting SYS_EXIT_EXTENDED, power-off and reset by PSCI"]
    return ["dev: power-off and reset by PSCI; no exit code, as semihosting needs software emulation"]
