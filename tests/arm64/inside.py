# SPDX-License-Identifier: Apache-2.0
"""What runs on the arm64 machine: the product's own proof, by its KVM and by software."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.qemu import accel
from backends.qemu.accel import Question, decide, linuxproof, proof

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QEMU: Final = "/usr/bin/qemu-system-aarch64"
HERE: Final = Path(__file__).resolve().parent.parent.parent
#: stlxp w2, x3, x4, [x20], and mov w2, #0: it says it was done, and nothing was
EXCHANGE: Final = bytes.fromhex("839222c8")
NOTHING: Final = bytes.fromhex("02008052")
#: Seconds: this machine is emulated, so all takes a hundred times as long as on a processor.
PATIENCE: Final = 600.0


def say(text: str) -> None:
    """Print a line that the other side looks for."""
    sys.stdout.write(f"[{time.monotonic():6.1f}] {text}\n")
    sys.stdout.flush()


async def main() -> int:
    """Return how much was not as it must be.

    Which accelerator is taken is not asked: starting QEMU on an emulated processor takes seconds, and on KVM more of
    them, so a short guest is slower there as a whole. That every step is right on a real KVM is, and that the guest's
    own work is faster there, and that a kernel comes to our init first.
    """
    here = "is there" if os.path.exists(proof.DEVICE) else "is missing"
    say(f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}, {proof.DEVICE} {here}")
    # the bounds are for machines that are not emulated; what they bound is tested elsewhere
    proof.TCG_LIMIT = proof.KVM_LEAST = linuxproof.LIMIT = PATIENCE  # type: ignore[misc]
    failed = [problem async for problem in _problems()]
    for problem in failed:
        say(f"FAILED {problem}")
    return len(failed)


async def _problems() -> AsyncIterator[str]:
    arch, image = os.uname().machine, proof.image()
    on_kvm = await proof.run(proof.argv(QEMU, str(image), arch, "kvm"), PATIENCE)
    say(f"the probe on KVM: {' '.join(mark.name for mark in on_kvm.marks)}; {on_kvm.seconds:.1f} s")
    if problem := decide.fault(on_kvm, decide.STEPS[arch]):
        yield f"the probe on KVM: {problem} {on_kvm.stderr}"
    broken = Path("/tmp/broken.elf")
    broken.write_bytes(image.read_bytes().replace(EXCHANGE, NOTHING))
    found = decide.fault(await proof.run(proof.argv(QEMU, str(broken), arch, "kvm"), PATIENCE), decide.STEPS[arch])
    say(f"a probe whose exchange does nothing, on KVM: {found}")
    if found != "a wrong result in step 'exclusive'":
        yield "it was not noticed"
    bare = await accel.find("auto", Question(QEMU))
    say(f"bare-metal guests: {bare.name}: {bare.reason}")
    if bare.kvm is None or bare.tcg is None:
        yield "KVM did not get done"
    figures = re.search(r"took (\d+) ms on KVM and (\d+) ms in software", bare.reason)
    if figures is None or int(figures[1]) >= int(figures[2]):
        yield "the guest's own work was not faster on KVM"
    linux = await linuxproof.prove(QEMU, str(HERE / "Image"), str(HERE / "guest-initrd"))
    say(f"Linux guests: {linux.name}: {linux.reason}")
    if linux.name != "kvm":
        yield "the kernel did not come to our init on KVM first"


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
