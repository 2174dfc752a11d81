# SPDX-License-Identifier: Apache-2.0
"""The suite ``arm64`` of bin/test: the proof of an accelerator on an arm64 machine whose KVM is real.

``python -m tests.arm64`` makes the machine (once: it downloads packages for arm64), boots it in software emulation and
runs ``tests.arm64.inside`` there, with each kind of interrupt controller; the status is 0 when everything was as it
must be. Takes five minutes.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from tests.arm64.rig import RigError, make

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: interrupt controllers of arm64 machines; KVM gives guests the kind that its machine has
GICS = (3, 2)

#: Seconds for the whole run of the machine, a bound against hanging: several times what an idle host needs.
SECONDS = 1800.0
LAST = "[status "


def main() -> int:
    """Return 0 when the machine said so."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    begun = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - begun:4.0f}s] {text}\n")
        sys.stdout.flush()

    qemu = shutil.which("qemu-system-aarch64")
    if qemu is None:
        say("there is no qemu-system-aarch64; apt-get install qemu-system-arm")
        return 1
    try:
        kernel, ramdisk = make(say)
    except RigError as exc:
        say(f"cannot make the machine: {exc}")
        return 1
    return max(boot(version, qemu, kernel, ramdisk, say) for version in GICS)


def boot(gic: int, qemu: str, kernel: Path, ramdisk: Path, say: Callable[[str], None]) -> int:
    """Run the tests on a machine with this interrupt controller; returns 0 when all was well."""
    argv = [
        qemu,
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", f"virt,virtualization=on,gic-version={gic}",
        # without pointer authentication, which costs a third of the speed in software
        "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,pauth=off", "-smp", "2", "-m", "2G",
        "-kernel", str(kernel), "-initrd", str(ramdisk),
        "-append", "console=ttyAMA0 quiet loglevel=4 panic=-1 rdinit=/init",
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
    ]  # fmt: skip
    say(f"booting an arm64 machine with EL2 and a GICv{gic}, in software emulation")
    machine = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace")
    late = threading.Timer(SECONDS, machine.kill)
    late.start()
    status = None
    try:
        assert machine.stdout is not None
        for line in machine.stdout:
            say(line.rstrip())
            if line.startswith(LAST):
                status = int(line.removeprefix(LAST).strip("]\r\n "))
    finally:
        late.cancel()
        machine.kill()
        machine.wait()
    said = {None: "FAILED: the machine ended before its tests", 0: "all is well"}.get(
        status, f"FAILED: {status} of them"
    )
    say(f"arm64 with a GICv{gic}: {said}")
    return 0 if status == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
