# SPDX-License-Identifier: Apache-2.0
"""QEMU half of the channels: console, control, kernel log and the two QMP monitors.

All names are relative to the record directory, QEMU's working directory, so a long run directory cannot
exceed what a socket address holds. FIFO pairs are held open by the init stub: QEMU outlives the supervisor
and loses nothing meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from consoles.sharedmem.shmfiles import LINK
from runphi_async.lifeline import stub
from runphi_async.partition import comm

if TYPE_CHECKING:
    from runphi_async.partition.comm import Channels
    from runphi_async.partition.spec import GuestSpec

#: FIFO pairs <name>.in and <name>.out
CONSOLE: Final = "con"
EVENTS: Final = "ev"
CONTROL: Final = "ctl"
#: descriptor of the listening QMP socket in QEMU: the first of ours
QMP_FD: Final = stub.FIRST_EXTRA
QMP_SOCKET: Final = "qmp.sock"
#: names of the virtio ports our init opens
CONSOLE_PORT: Final = "org.runphi.console"
CONTROL_PORT: Final = "org.runphi.control"
KERNEL_LOG: Final = "klog"
#: a boot's worth of kernel messages; a power of two, as the ring needs
KERNEL_LOG_BYTES: Final = 65536


def choose(spec: GuestSpec) -> Channels:
    """Decide which channels lead into the guest.

    :raises PlanError: one cannot be had here.
    """
    comm.refuse_vchan(spec)
    return comm.decide(spec)


def args(channels: Channels, transport: str, qmp_fd: int | None = None) -> list[str]:
    """Channels and what listens to them.

    :param transport: suffix of virtio devices on this machine, "device" (MMIO) or "pci".
    :param qmp_fd: the listening QMP socket as QEMU inherits it; None = QEMU makes it.
    """
    qmp = f"path={QMP_SOCKET}" if qmp_fd is None else f"fd={qmp_fd}"
    out = [
        "-chardev", f"pipe,id={CONSOLE},path={CONSOLE}",
        "-chardev", f"pipe,id={EVENTS},path={EVENTS}",
        "-mon", f"chardev={EVENTS},mode=control",
        "-chardev", f"socket,id=qmp,{qmp},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
    ]  # fmt: skip
    if channels.serial_console:
        out += ["-serial", f"chardev:{CONSOLE}"]
    elif channels.kernel_log:
        out += [
            "-chardev", f"ringbuf,id={KERNEL_LOG},size={KERNEL_LOG_BYTES}",
            "-serial", f"chardev:{KERNEL_LOG}",
        ]  # fmt: skip
    if channels.control:
        out += [
            "-device", f"virtio-serial-{transport},id=vser,max_ports=4",
            # not virtconsole: it drops what does not fit into a full FIFO, a port makes the guest wait
            "-device", f"virtserialport,bus=vser.0,chardev={CONSOLE},name={CONSOLE_PORT}",
            "-chardev", f"pipe,id={CONTROL},path={CONTROL}",
            "-device", f"virtserialport,bus=vser.0,chardev={CONTROL},name={CONTROL_PORT}",
        ]  # fmt: skip
    for channel in channels.shared:
        ident = f"ch-{channel.name}"
        out += [
            "-object",
            f"memory-backend-file,id={ident},mem-path={LINK}{channel.name},size={channel.size},share=on",
            "-device", f"ivshmem-plain,memdev={ident}",
        ]  # fmt: skip
    return out
