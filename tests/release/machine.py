# SPDX-License-Identifier: Apache-2.0
"""A machine of a release under QEMU: its own kernel, its own systemd, cgroups of version 2 and nothing else.

A root that runs on this machine's kernel has this machine's cgroups, hybrid as they may be. The machine boots from a
disk made of the same layers; the checkout, with its environment made, is a second disk, so it needs no network. All is
emulated in software, the guests twice: it is for the few things that depend on the kernel.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from typing import TYPE_CHECKING, Final

from tests.release.room import Room, copy_checkout
from tests.release.roots import STORE, WARM, Downloads, Kind, RootError, Roots, environment, say

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: What a machine needs beside the suites' packages, and what it does when it is up: it runs the second disk's command,
#: whose words and status go to a serial port each, and powers off.
BOOTS: Final = Kind(
    "machine",
    ("bin/lib.sh",),
    """set -e
. bin/lib.sh
apt_need linux-image-cloud-amd64 initramfs-tools systemd-sysv udev
cat >/etc/systemd/system/runphi-test.service <<'END'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStartPre=/bin/mount /dev/vdb /root/runphi
ExecStart=/bin/bash /root/runphi/.machine
ExecStopPost=/bin/systemctl poweroff --force
[Install]
WantedBy=multi-user.target
END
mkdir -p /root/runphi
systemctl enable runphi-test.service
echo '/dev/vda / ext4 defaults 0 1' >/etc/fstab
echo virtio_blk >>/etc/initramfs-tools/modules
echo ext4 >>/etc/initramfs-tools/modules
update-initramfs -u
""",
)  # fmt: skip
#: The disk, sparse: all layers without what is mounted in the room, kernel and RAM disk beside it.
DISK: Final = """set -e
mkdir -p /mnt/root && mount --bind / /mnt/root
mke2fs -q -t ext4 -m 0 -E root_owner=0:0 -d /mnt/root /mnt/out/disk 8G
cp /boot/vmlinuz-* /mnt/out/vmlinuz
cp /boot/initrd.img-* /mnt/out/initrd
"""
#: How much longer than on a machine that is not emulated itself answers may take there, and a guest's kernel.
PATIENCE: Final = 15
CONFIG: Final = f"[qemu.init_seconds]\ntcg = {120 * PATIENCE}\nkvm = {120 * PATIENCE}\n"
#: What the machine runs. Its words go through a pipe: a serial port is a terminal, and programs draw on terminals.
COMMAND: Final = """cd /root/runphi
export HOME=/root LANG=C.UTF-8 TERM=dumb {variables}
{{ {command}
}} </dev/null 2>&1 | cat >/dev/ttyS1
echo ${{PIPESTATUS[0]}} >/dev/ttyS2
"""
#: The checkout's disk.
CHECKOUT_DISK: Final = """set -e
(. bin/lib.sh && need_venv && need_venv dev)
mke2fs -q -t ext4 -m 0 -E root_owner=0:0 -d /root/runphi /mnt/out/checkout 3G
"""
PLACE: Final = "/root/runphi"
#: Seconds for what is done to make a disk.
DISK_SECONDS: Final = 1200.0
#: Seconds between two looks at what a machine says.
POLL: Final = 0.2
#: How much of the console is shown when a machine fails.
TAIL: Final = 3000


def disk(roots: Roots) -> Path:
    """Return the directory with disk, kernel and RAM disk of a release."""
    layers = roots.warm((*WARM, BOOTS))

    def make(made: Path) -> None:
        with Room(layers, roots.release, STORE / "rooms") as room:
            room.bind(made, "/mnt/out", readonly=False)
            if room.run(["/bin/bash", "-c", DISK], environment(room), DISK_SECONDS) != 0:
                raise RootError(f"cannot make the disk of a machine with {roots.release}")

    return roots.derived("disk", layers[0].name + DISK, make)


def run(roots: Roots, command: str, seconds: float, sink: Callable[[bytes], object]) -> int:
    """Run a command of bash in the checkout on a machine; return its status, 1 when the machine does not come so far.

    :param seconds: for all of it, with the machine's start.
    :param sink: is given what the command prints.
    """
    files = disk(roots)
    with Room(roots.warm(), roots.release, STORE / "rooms") as room, Downloads(roots.store, room):
        out = room.scratch / "out"
        out.mkdir()
        room.bind(out, "/mnt/out", readonly=False)
        copy_checkout(room.place(PLACE))
        (room.place(PLACE) / ".machine.toml").write_text(CONFIG)
        variables = {name: value for name, value in os.environ.items() if name.startswith("RUNPHI_")}
        variables |= {"RUNPHI_PATIENCE": str(PATIENCE), "RUNPHI_CONFIG": f"{PLACE}/.machine.toml"}
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        (room.place(PLACE) / ".machine").write_text(COMMAND.format(variables=words, command=command))
        say("making the checkout's disk")
        if room.run(["/bin/bash", "-c", CHECKOUT_DISK], environment(room), DISK_SECONDS, cwd=PLACE) != 0:
            raise RootError("cannot make the checkout's disk")
        say("booting, in software emulation")
        return _boot(files, out, seconds, sink)


def _boot(files: Path, out: Path, seconds: float, sink: Callable[[bytes], object]) -> int:
    """Boot a machine and read its serial ports until it is off."""
    console, words, status = out / "console", out / "words", out / "status"
    argv = [
        "qemu-system-x86_64",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
        "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2", "-m", "4096",
        "-kernel", str(files / "vmlinuz"), "-initrd", str(files / "initrd"),
        "-append", "root=/dev/vda rw console=ttyS0 quiet mitigations=off net.ifnames=0",
        "-drive", f"file={files}/disk,format=raw,if=virtio,snapshot=on",
        "-drive", f"file={out}/checkout,format=raw,if=virtio",
        *(word for file in (console, words, status) for word in ("-serial", f"file:{file}")),
        "-device", "virtio-rng-pci",
    ]  # fmt: skip
    deadline = time.monotonic() + seconds
    read = 0
    with open(out / "qemu.log", "wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            ended = False
            while not ended and time.monotonic() < deadline:
                ended = process.poll() is not None
                data = words.read_bytes()[read:] if words.exists() else b""
                read += len(data)
                if data:
                    sink(data.replace(b"\r\n", b"\n"))
                time.sleep(0 if ended else POLL)
        finally:
            process.kill()
            process.wait()
    said = status.read_text().strip() if status.exists() else ""
    if not said.isdigit():
        tail = console.read_bytes()[-TAIL:].decode(errors="replace") if console.exists() else ""
        say(f"the machine ended without a result:\n{(out / 'qemu.log').read_text()}{tail}")
        return 1
    return int(said)
