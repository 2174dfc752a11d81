# SPDX-License-Identifier: Apache-2.0
"""A machine with Xen and a Debian dom0, in software emulation: booted from rig/build.sh's files, driven by lines.

KVM is not used: Xen needs nested virtualisation there, which few of the machines that test have.
``python -m tests.xen.machine`` boots one and keeps it until its input ends; each line of input runs in dom0.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds from power-on to a dom0 that answers: eleven on an idle machine, more where much else runs.
BOOT_SECONDS: Final = 600.0
#: Seconds a powered-off machine may take to be gone.
OFF_SECONDS: Final = 60.0
DIRECTORY: Final = Path(os.environ.get("RUNPHI_XEN_RIG", "/var/lib/runphi/xen-rig"))


class MachineError(Exception):
    """Raised when the machine does not come up, or ends while it is needed."""


def write(text: str) -> None:
    """Show what dom0 prints, as it prints."""
    sys.stdout.write(text)
    sys.stdout.flush()


class Machine:
    """One booted machine.

    :param share: the directory that dom0 sees as /host.
    """

    def __init__(self, share: Path, memory_mib: int = 3072, dom0_mib: int = 1280) -> None:
        self._work = tempfile.TemporaryDirectory(prefix="xen-")
        self.console = Path(self._work.name) / "console.log"
        agent = f"{self._work.name}/agent.sock"
        self._log = open(f"{self._work.name}/qemu.log", "w+")  # noqa: SIM115 - closed with the machine
        xen = f"com1=115200,8n1 console=com1 dom0_mem={dom0_mib}M,max:{dom0_mib}M dom0_max_vcpus=2"
        linux = "console=hvc0 quiet loglevel=5 mitigations=off nokaslr"
        argv = [
            "qemu-system-x86_64",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "pc",
            # Not "max": dom0 dies on its first page fault with SMEP and SMAP, which Xen then uses.
            "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64,+svm,+npt",
            "-smp", "2", "-m", str(memory_mib),
            "-kernel", str(DIRECTORY / "xen"), "-append", xen,
            "-initrd", f"{DIRECTORY}/vmlinux-dom0 {linux},{DIRECTORY}/initrd-dom0",
            "-chardev", f"file,id=serial,path={self.console}", "-serial", "chardev:serial",
            "-drive", f"file={DIRECTORY}/disk,format=raw,if=none,id=disk,snapshot=on",
            "-device", "virtio-blk-pci,drive=disk",
            "-chardev", f"socket,id=agent,path={agent},server=on,wait=off",
            "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,nr=1",
            "-fsdev", f"local,id=share,path={share},security_model=none",
            "-device", "virtio-9p-pci,fsdev=share,mount_tag=host",
        ]  # fmt: skip
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        self._link: socket.socket | None = None
        self._agent = agent
        self._rest = b""

    def boot(self) -> None:
        """Wait until dom0 runs commands."""
        end = time.monotonic() + BOOT_SECONDS
        while self._link is None:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                link.connect(self._agent)
                self._link = link
            except OSError:
                link.close()
                self._check(end, "QEMU makes no socket")
                time.sleep(0.05)
        while "dom0 is ready" not in (self.console.read_text(errors="replace") if self.console.exists() else ""):
            self._check(end, "dom0 does not come up")
            time.sleep(0.1)
        status = self.run("test -d /proc/xen", 60, lambda text: None)
        if status:
            raise MachineError(f"dom0 is not under Xen\n{self.tail()}")

    def _check(self, end: float, what: str) -> None:
        if self.process.poll() is not None or time.monotonic() > end:
            raise MachineError(f"{what}\n{self.tail()}")

    def tail(self) -> str:
        """Return the end of what QEMU, Xen and dom0 said."""
        self._log.seek(0)
        said = self._log.read()
        if self.console.exists():
            said += self.console.read_text(errors="replace")
        return said[-3000:]

    def run(self, command: str, seconds: float, out: Callable[[str], None] = write) -> int:
        """Run ``command`` by bash in dom0; return its status, 124 when it did not end within ``seconds``."""
        assert self._link is not None
        self._link.sendall(json.dumps({"run": command, "seconds": seconds}).encode() + b"\n")
        # dom0 keeps the deadline; a machine that hangs as a whole is given up a little later
        self._link.settimeout(seconds + 60)
        while True:
            while b"\n" not in self._rest:
                data = self._link.recv(1 << 16)
                if not data:
                    raise MachineError(f"the machine ended while it ran {command!r}\n{self.tail()}")
                self._rest += data
            line, _, self._rest = self._rest.partition(b"\n")
            message = json.loads(line)
            if "status" in message:
                return int(message["status"])
            out(message["out"])

    def close(self) -> None:
        """Power off, or pull the plug."""
        if self._link is not None and self.process.poll() is None:
            with contextlib.suppress(OSError, MachineError):
                self.run("(sleep 0.2; busybox poweroff -f) >/dev/null 2>&1 &", 20, lambda text: None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(OFF_SECONDS)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self._link is not None:
            self._link.close()
        self._log.close()
        self._work.cleanup()


def main() -> None:
    """Run lines of standard input in dom0."""
    share = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="xen-share-"))
    machine = Machine(share)
    try:
        begun = time.monotonic()
        machine.boot()
        write(f"dom0 answers after {time.monotonic() - begun:.1f} s; it sees {share} as /host\n")
        for line in sys.stdin:
            begun = time.monotonic()
            status = machine.run(line, 600)
            write(f"[{status}, {time.monotonic() - begun:.2f} s]\n")
    finally:
        machine.close()


if __name__ == "__main__":
    main()
