# SPDX-License-Identifier: Apache-2.0
"""Runs the probe guest in software and on KVM, and whatever else a proof runs: bounded, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.qemu.accel import decide
from backends.qemu.accel.decide import Accel, Mark, Run
from consoles.sources.process import tether
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICE: Final = "/dev/kvm"
#: environment variable that names another file to look for instead: a test's QEMU plays KVM where there is none
DEVICE_VARIABLE: Final = "RUNPHI_KVM"
#: Seconds that the probe may take in software, where it needs about 0.1: a machine this busy cannot compare anything.
TCG_LIMIT: Final = 2.0
#: Seconds that KVM has at least, where a good one needs less than 0.1: else as long as software took.
KVM_LEAST: Final = 0.3
#: Comparisons that a KVM without a fault may lose: whoever uses the host beside us makes now the one slower, now the
#: other, and the answer is for the whole boot.
TRIES: Final = 3
#: bytes that a guest of a proof may say, and that are kept of what QEMU prints; a flood ends at the deadline
MAX_MARKS: Final = 16 * 1024
MAX_STDERR: Final = 16 * 1024

_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
#: the machine and the processor in software that bare-metal guests get; backends.qemu.boot and .cpu say why
_MACHINES: Final = {
    "x86_64": ["-machine", "microvm,x-option-roms=off,acpi=off", "-bios", "qboot.rom"],
    "aarch64": ["-machine", "virt"],
}
_PROCESSORS: Final = {"x86_64": "max", "aarch64": "cortex-a72"}
#: where the probe says its marks, and how it ends when something is wrong
_DEVICES: Final = {
    "x86_64": [
        *("-device", "isa-debugcon,iobase=0xe9,chardev=marks"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
    ],
    "aarch64": ["-serial", "chardev:marks"],
}


def device() -> str:
    """Return the path of the device node."""
    return os.environ.get(DEVICE_VARIABLE) or DEVICE


def obstacle(binary: str) -> str:
    """Say why there is nothing to prove, "" when there is."""
    machine = os.uname().machine
    if machine not in _MACHINES:
        return f"there is no proof of a KVM for {machine}"
    try:
        os.close(os.open(device(), os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return f"cannot open {device()}: {(exc.strerror or str(exc)).lower()}"
    if not os.access(binary, os.X_OK):
        return f"there is no QEMU to prove KVM with: cannot run {binary or machine}"
    if not image().is_file():
        return f"the installation is not whole: {image()} is missing"
    return ""


def image(arch: str = "") -> Path:
    """Return the path of the probe guest."""
    return Path(str(resources.files("backends.qemu").joinpath("probe", f"{arch or os.uname().machine}.elf")))


def argv(binary: str, path: str, arch: str, accel: str) -> list[str]:
    """The command line of the probe guest: the machine, processor and firmware that real guests get."""
    return [
        binary,
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", _SANDBOX,
        *_MACHINES[arch],
        "-accel", accel,
        "-cpu", "host" if accel == "kvm" else _PROCESSORS[arch],
        "-m", "16M",
        "-kernel", path,
        "-chardev", "stdio,id=marks,signal=off",
        *_DEVICES[arch],
    ]  # fmt: skip


async def prove(binary: str) -> Accel:
    """Run the probe in software and on KVM, one after the other so that they do not slow each other down.

    :raises Unfinished: software did not get done.
    """
    arch = os.uname().machine
    path = str(image(arch))
    for _ in range(TRIES):
        tcg = await run(argv(binary, path, arch, "tcg"), TCG_LIMIT)
        decide.check_software(tcg, arch)
        kvm = await run(argv(binary, path, arch, "kvm"), max(KVM_LEAST, tcg.seconds))
        answer = decide.judge(tcg, kvm, arch)
        if answer.name == "kvm" or answer.kvm is None:
            break
    return answer


async def run(command: Sequence[str], limit: float, directory: str | None = None, typed: bytes = b"") -> Run:
    """Run a guest of a proof to its end or to the deadline; no process is left behind in any case.

    :param typed: what it reads on its standard input, a few bytes.
    :raises BackendError: QEMU cannot be started.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        transport, guest = await loop.subprocess_exec(
            lambda: _Guest(began), *tether(), *command, start_new_session=True, cwd=directory
        )
    except OSError as exc:
        raise BackendError(f"cannot run {command[0]}: {(exc.strerror or str(exc)).lower()}") from exc
    status: int | None = None
    try:
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        stdin.write(typed)
        async with asyncio.timeout(limit):
            await guest.enough.wait()
        status = transport.get_returncode()
    except TimeoutError:
        pass
    finally:
        if not guest.exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(transport.get_pid(), signal.SIGKILL)
        ending = asyncio.ensure_future(_let_go(guest, transport))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait([ending])  # it was killed: a moment
            raise
    return Run(status, loop.time() - began, tuple(guest.marks), guest.said.decode(errors="replace"))


async def _let_go(guest: _Guest, transport: asyncio.SubprocessTransport) -> None:
    # first the end: closing asks for it behind the back of who waits for it, and one of them would hear of none
    await guest.exited.wait()
    transport.close()
    await guest.over.wait()


class _Guest(asyncio.SubprocessProtocol):
    """Listens to a guest of a proof; of what says too much no more is read."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.SubprocessTransport | None = None
        self._line = b""
        self._heard = 0
        self.marks: list[Mark] = []
        self.said = bytearray()
        #: the process has ended; all that it wrote was read; there is nothing more to wait for
        self.exited = asyncio.Event()
        self.over = asyncio.Event()
        self.enough = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self._heard += len(data)
            *lines, self._line = (self._line + data[:MAX_MARKS]).split(b"\n")
            at = self._loop.time() - self._began
            self.marks += [Mark(line.decode("ascii", "replace").strip()[:80], at) for line in lines]
        else:
            self.said += data[:MAX_STDERR]
            if decide.INTERNAL_ERROR.encode() in self.said:  # QEMU stands still now, for ever
                self.enough.set()
        if self._transport is not None and (self._heard > MAX_MARKS or len(self.said) > MAX_STDERR):
            pipe = self._transport.get_pipe_transport(fd)
            if isinstance(pipe, asyncio.ReadTransport):
                pipe.pause_reading()

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()
        self.enough.set()
