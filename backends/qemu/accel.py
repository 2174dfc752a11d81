# SPDX-License-Identifier: Apache-2.0
"""Which accelerator guests run on: KVM only after a guest really ran on it.

That ``/dev/kvm`` opens proves little: in nested and sandboxed machines guests may hang or QEMU may abort on
their first instruction. So :func:`probe` runs the smallest guest there is, a handful of instructions that
end QEMU through a port, against a deadline. The answer holds until the next boot and is kept in the run
directory (:func:`cached`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import tempfile
from typing import Final, Literal

import msgspec

from backends.guest.elf import PVH_OWNER, PVH_TYPE
from runphi_async.errors import BackendError

#: seconds; a working KVM needs about 0.1, and nobody should wait long for a broken one
PROBE_TIMEOUT: Final = 1.5
DEVICE: Final = "/dev/kvm"
CACHE: Final = "accel.json"
BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
#: what the probe guest writes to isa-debug-exit, and the status QEMU makes of it
_WORD: Final = 0x2A
_STATUS: Final = _WORD << 1 | 1

Wish = Literal["auto", "kvm", "tcg"]


class Accel(msgspec.Struct, frozen=True):
    """The accelerator, and why."""

    #: "kvm" or "tcg"
    name: str
    reason: str


class Outcome(msgspec.Struct, frozen=True):
    """What became of the probe guest."""

    #: exit status of QEMU, negative for a signal; None = it was still running at the deadline
    status: int | None
    seconds: float
    stderr: str = ""


class _Cached(msgspec.Struct, frozen=True):
    boot_id: str
    binary: str
    accel: Accel


# Section: decisions


def judge(outcome: Outcome) -> Accel:
    """Decide from what became of the probe guest."""
    if outcome.status == _STATUS:
        return Accel("kvm", f"a guest ran on KVM in {outcome.seconds:.2f} s")
    if outcome.status is None:
        return Accel("tcg", f"KVM is there but a guest did not get anywhere in {outcome.seconds:.1f} s")
    lines = outcome.stderr.strip().splitlines()
    said = f": {lines[0]}" if lines else ""
    how = f"signal {-outcome.status}" if outcome.status < 0 else f"status {outcome.status}"
    return Accel("tcg", f"KVM is there but its guest ended with {how}{said}")


def choose(wish: Wish, proof: Accel) -> Accel:
    """Bring the configuration's wish and the proof together.

    :raises BackendError: when KVM is demanded and was not proven.
    """
    if wish == "tcg":
        return Accel("tcg", "the configuration says so")
    if wish == "kvm" and proof.name != "kvm":
        raise BackendError(f"cannot use KVM: {proof.reason}", 'set accel = "auto" under [qemu] in the configuration')
    return proof


def probe_image(load: int = 0x10_0000) -> bytes:
    """A PVH image of one segment whose code ends QEMU with a known status."""
    code = b"".join(
        (
            b"\xb8" + struct.pack("<I", _WORD),  # mov eax, word
            b"\xba" + struct.pack("<I", 0xF4),  # mov edx, port
            b"\xef",  # out dx, eax
            b"\xf4\xeb\xfd",  # 1: hlt; jmp 1b
        )
    )
    header, program_header, note_at, code_at = 64, 56, 176, 208
    note = struct.pack("<III4sQ", len(PVH_OWNER), 8, PVH_TYPE, PVH_OWNER, load + code_at)
    elf = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, load + code_at, header, 0, 0, header, program_header, 2, 0, 0, 0)
    size = code_at + len(code)
    elf += struct.pack("<IIQQQQQQ", 1, 7, 0, load, load, size, size, 0x1000)
    elf += struct.pack("<IIQQQQQQ", 4, 4, note_at, load + note_at, load + note_at, len(note), len(note), 4)
    return (elf + note).ljust(code_at, b"\0") + code


def probe_argv(binary: str, image: str, accel: str = "kvm") -> list[str]:
    """The command line of the probe guest: the machine, CPU model and firmware that real guests get."""
    return [
        binary,
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "microvm,x-option-roms=off,acpi=off",
        "-bios", "qboot.rom",
        "-accel", accel,
        "-cpu", "host" if accel == "kvm" else "max",
        "-m", "16M",
        "-kernel", image,
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
    ]  # fmt: skip


# Section: I/O


async def find(wish: Wish, binary: str, run_dir: str, timeout: float = PROBE_TIMEOUT) -> Accel:
    """Answer from the configuration, the cache or a probe.

    :raises BackendError: when KVM is demanded and cannot be proven.
    """
    if wish == "tcg":
        return choose(wish, Accel("tcg", ""))
    boot_id = _boot_id()
    known = cached(run_dir, boot_id, binary)
    if known is None:
        known = await probe(binary, timeout)
        _store(run_dir, _Cached(boot_id, binary, known))
    return choose(wish, known)


async def probe(binary: str, timeout: float = PROBE_TIMEOUT) -> Accel:
    """Run the probe guest on KVM; never raises for a KVM that does not work."""
    if os.uname().machine != "x86_64":
        # isa-debug-exit is an x86 device; until there is an arm64 proof the slow way is the sure one
        return Accel("tcg", f"there is no KVM probe for {os.uname().machine}")
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return Accel("tcg", f"cannot open {DEVICE}: {(exc.strerror or str(exc)).lower()}")
    with tempfile.NamedTemporaryFile(prefix="runphi-probe-") as image:
        image.write(probe_image())
        image.flush()
        try:
            outcome = await run_probe(probe_argv(binary, image.name), timeout)
        except OSError as exc:
            return Accel("tcg", f"cannot run {binary}: {(exc.strerror or str(exc)).lower()}")
    return judge(outcome)


async def run_probe(argv: list[str], timeout: float) -> Outcome:
    """Run a probe guest to its end or to the deadline; no process is left behind in any case."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    status: int | None = None
    stderr = b""
    try:
        async with asyncio.timeout(timeout):
            _, stderr = await process.communicate()
            status = process.returncode
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    return Outcome(status, loop.time() - began, stderr.decode(errors="replace"))


def cached(run_dir: str, boot_id: str, binary: str) -> Accel | None:
    """The answer of an earlier probe of this boot and this QEMU, or None."""
    try:
        with open(os.path.join(run_dir, CACHE), "rb") as file:
            known = msgspec.json.decode(file.read(), type=_Cached)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    fresh = known.boot_id == boot_id and known.binary == binary and known.accel.name in ("kvm", "tcg")
    return known.accel if fresh else None


def _store(run_dir: str, known: _Cached) -> None:
    """Keep an answer; not being able to only costs the next start a probe."""
    path = os.path.join(run_dir, CACHE)
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(known))
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _boot_id() -> str:
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()
