# SPDX-License-Identifier: Apache-2.0
"""The second half of a proof, for Linux guests: their own kernel starts once, to our init, and switches itself off.

It starts on KVM and in software at the same time. Whichever is at its end first has won: a KVM that comes to the end
after the software is not worth having, so it never takes longer than software does.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import TYPE_CHECKING, Final

from backends.guest import initrd
from backends.qemu import comm, gathering, generator
from backends.qemu.accel import decide, proof
from backends.qemu.boot import GUEST_INITRD
from backends.qemu.settings import Qemu
from runphi_async.partition.spec import GuestKind, GuestSpec, ProcessSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.qemu.accel.decide import Accel, Run

#: Seconds that both together may take, where software alone needs 3 to 5: on a machine this busy nothing is proven.
LIMIT: Final = 60.0
#: what the kernel on KVM printed, and how much of it is looked at for the reason
KERNEL_LOG: Final = "kernel.log"
KERNEL_LOG_BYTES: Final = 1 << 20
#: a program that the guest does not have: our init comes as far as looking for it, says so and waits for the end
_PROCESS: Final = ProcessSpec(args=("/no-such-program",))
#: what we say on the control port; it is read when our init listens
_END: Final = b"poweroff\n"
#: options that real guests have and this one does not: monitors, and the server of a root filesystem
_WITHOUT: Final = (
    *(f"pipe,id={comm.EVENTS},", f"chardev={comm.EVENTS},", "socket,id=qmp,", "chardev=qmp,"),
    *("socket,id=fs,", "vhost-user-fs-"),
)


async def prove(binary: str, kernel: str, ramdisk: str) -> Accel:
    """Let the kernel start on KVM and in software.

    :raises Unfinished: it came to its end on neither.
    """
    with tempfile.TemporaryDirectory(prefix="runphi-proof-") as place:
        argvs = await asyncio.to_thread(_prepare, binary, kernel, ramdisk, place)
        kvm, tcg = await _race(argvs, place)
        last = await asyncio.to_thread(_last_words, os.path.join(place, "kvm", KERNEL_LOG))
    return decide.judge_linux(tcg, kvm, last)


def _prepare(binary: str, kernel: str, ramdisk: str, place: str) -> dict[str, list[str]]:
    spec = GuestSpec(id="runphi-proof", kind=GuestKind.LINUX, rootfs="/", process=_PROCESS)
    with open(ramdisk, "rb") as file:
        base = file.read()
    data = initrd.with_conf(base, initrd.container_conf(_PROCESS, rootfs="ramdisk"))
    argvs = {}
    for accel in ("kvm", "tcg"):
        os.mkdir(os.path.join(place, accel))
        with open(os.path.join(place, accel, GUEST_INITRD), "wb") as file:
            file.write(data)
        argvs[accel] = argv(spec, accel, binary, kernel, ramdisk)
    return argvs


async def _race(argvs: dict[str, list[str]], place: str) -> tuple[Run | None, Run | None]:
    """Return what became of KVM and of software; None for the one that was still on its way when it was decided."""
    tasks = {
        accel: asyncio.create_task(proof.run(words, LIMIT, os.path.join(place, accel), _END), name=f"proof by {accel}")
        for accel, words in argvs.items()
    }
    try:
        pending = set(tasks.values())
        while pending and not _decided(tasks):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        runs = {accel: task.result() for accel, task in tasks.items() if task.done()}
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    return runs.get("kvm"), runs.get("tcg")


def _decided(tasks: dict[str, asyncio.Task[Run]]) -> bool:
    if tasks["kvm"].done():  # whatever it is
        return True
    return tasks["tcg"].done() and not decide.fault(tasks["tcg"].result(), decide.INIT)


def _last_words(path: str) -> str:
    """Return the last line that the kernel on KVM printed."""
    try:
        with open(path, "rb") as file:
            lines = file.read(KERNEL_LOG_BYTES).decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def argv(spec: GuestSpec, accel: str, binary: str, kernel: str, ramdisk: str) -> list[str]:
    """The command line that real Linux guests have on this machine, without what needs other processes."""
    binaries = {os.uname().machine: binary}
    facts = gathering.gather(spec, accel=accel, binaries=binaries, kernel=kernel, initrd_path=ramdisk)
    return adapted(generator.plan(spec, facts, Qemu()).argv)


def adapted(found: Sequence[str]) -> list[str]:
    """Make a real guest's command line one of a proof: it begins at once, and speaks by standard input and output."""
    out: list[str] = []
    words = iter(found)
    for word in words:
        if word in ("-S", "-no-shutdown"):
            continue
        value = next(words, "") if word in ("-chardev", "-mon", "-device") else None
        if value is not None and value.startswith(_WITHOUT):
            continue
        if value is not None and value.startswith(f"pipe,id={comm.CONTROL},"):
            value = f"stdio,id={comm.CONTROL},signal=off"
        elif value is not None and value.startswith(f"pipe,id={comm.CONSOLE},"):
            value = f"null,id={comm.CONSOLE}"
        elif value is not None and value.startswith(f"ringbuf,id={comm.KERNEL_LOG},"):
            value = f"file,id={comm.KERNEL_LOG},path={KERNEL_LOG}"
        out += [word] if value is None else [word, value]
    return out
