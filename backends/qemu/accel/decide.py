# SPDX-License-Identifier: Apache-2.0
"""What the runs of a proof mean. Nothing here does I/O.

A guest of the proof says names of steps, each when it begins it; the last name is where it came to."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec

from runphi_async.errors import BackendError, RunphiError

Wish = Literal["auto", "kvm", "tcg"]

#: what QEMU prints when KVM gives up on a guest, and then it stands still
INTERNAL_ERROR: Final = "KVM internal error"
#: what the probe says behind the name of a step: a result was not what it must be; an exception that nobody asked for
WRONG: Final = "wrong"
TRAP: Final = "trap"
#: the timed step, and the one behind it
STRETCH: Final = "stretch"
AFTER_STRETCH: Final = "end-of-stretch"
#: steps of the probe that no processor leaves out; the last one ends the machine
STEPS: Final = {
    "x86_64": (
        *("start", "long-mode", "exceptions", "page-tables", "address-spaces", "self-modified", "exchange", "sse"),
        *("timer-interrupt", "apic-timer", "user-mode", STRETCH, AFTER_STRETCH, "reset"),
    ),
    "aarch64": (
        *("start", "translation", "exceptions", "page-tables", "no-execute", "self-modified", "exclusive", "simd"),
        *("timer-interrupt", "user-mode", STRETCH, AFTER_STRETCH, "off"),
    ),
}
#: what our init says on the control port when it has got so far as to look for the program, which is not there
INIT: Final = ("exit 127",)


class Accel(msgspec.Struct, frozen=True):
    """The accelerator, and why; with what was measured, in seconds."""

    name: Literal["kvm", "tcg"]
    reason: str
    #: the whole run on KVM and in software
    kvm: float | None = None
    tcg: float | None = None


class Unfinished(RunphiError):
    """Nothing was found out: software itself did not get done. Nothing to keep."""


class Mark(NamedTuple):
    """The guest said something, so many seconds after its start."""

    name: str
    at: float


class Run(NamedTuple):
    """What became of a guest of the proof.

    :ivar status: exit status of QEMU, negative for a signal; None: it had not ended and was killed.
    """

    status: int | None
    seconds: float
    marks: tuple[Mark, ...] = ()
    stderr: str = ""


def fault(run: Run, steps: tuple[str, ...]) -> str:
    """Say why a run does not count, "" when it does: all steps in their order, and the end."""
    names = [mark.name for mark in run.marks]
    where = f" in step '{names[-1]}'" if names else " before its first step"
    if names and names[-1] in (WRONG, TRAP):
        step = names[-2] if len(names) > 1 else "start"
        what = "a wrong result" if names[-1] == WRONG else "an exception nobody asked for"
        return f"{what} in step '{step}'"
    error = next((line for line in run.stderr.splitlines() if INTERNAL_ERROR in line), None)
    if error is not None:
        return f"{_short(error)}{where}"
    if run.status is None:
        return f"no end after {run.seconds:.2f} s{where}"
    if run.status != 0:
        lines = run.stderr.strip().splitlines()
        how = f"signal {-run.status}" if run.status < 0 else f"status {run.status}"
        return f"QEMU ended with {how}{where}{': ' + _short(lines[-1]) if lines else ''}"
    if not names or names[-1] != steps[-1]:
        return f"it ended{where}"
    done = iter(names)
    missing = next((step for step in steps if step not in done), None)
    if missing is not None:
        return f"it ended without step '{missing}'"
    return ""


def stretch(run: Run) -> float:
    """Return how long the timed step took."""
    at = {mark.name: mark.at for mark in run.marks}
    return at[AFTER_STRETCH] - at[STRETCH]


def judge(tcg: Run, kvm: Run, arch: str) -> Accel:
    """Decide from the probe guest's runs in software and on KVM; ``Accel.kvm`` is None when KVM did not get done.

    :raises Unfinished: software did not get done, so there is nothing to compare with.
    """
    check_software(tcg, arch)
    problem = fault(kvm, STEPS[arch])
    if problem:
        compared = f"in software the probe takes {tcg.seconds:.2f} s"
        return Accel("tcg", f"KVM is there but fails its proof: {problem}; {compared}", None, tcg.seconds)
    loops = f"a loop of a kernel's took {_ms(stretch(kvm))} on KVM and {_ms(stretch(tcg))} in software"
    whole = f"the whole probe {_ms(kvm.seconds)} and {_ms(tcg.seconds)}"
    if stretch(kvm) < stretch(tcg) and kvm.seconds < tcg.seconds:
        return Accel("kvm", f"KVM is proven: {loops}, {whole}", kvm.seconds, tcg.seconds)
    return Accel("tcg", f"KVM works but is not faster: {loops}, {whole}", kvm.seconds, tcg.seconds)


def check_software(tcg: Run, arch: str) -> None:
    """Check that the probe ran in software.

    :raises Unfinished: it did not.
    """
    problem = fault(tcg, STEPS[arch])
    if problem:
        raise Unfinished(f"KVM is there but not proven: the probe does not get done in software: {problem}")


def judge_linux(tcg: Run | None, kvm: Run | None, last_words: str = "") -> Accel:
    """Decide from a race of the guest kernel in software and on KVM; None: it was still on its way at the other's end.

    :param last_words: the last line of the kernel on KVM.
    :raises Unfinished: neither came to its end.
    """
    software = "no end by then" if tcg is None else fault(tcg, INIT)
    if kvm is not None and not fault(kvm, INIT):
        reason = f"KVM is proven: the guest kernel came to our init and ended in {kvm.seconds:.2f} s; in software: "
        if tcg is None or software:
            return Accel("kvm", reason + software, kvm.seconds)
        return Accel("kvm", f"{reason}{tcg.seconds:.2f} s", kvm.seconds, tcg.seconds)
    said = f"; its last line: {_short(last_words)}" if last_words else ""
    if kvm is not None and (kvm.status is not None or not software):
        return Accel("tcg", f"KVM runs our probe but not the guest kernel: {fault(kvm, INIT)}{said}")
    if software or tcg is None:
        raise Unfinished(f"KVM is not proven for Linux guests: their kernel does not end in software: {software}")
    took = f"in software it came to our init and ended in {tcg.seconds:.2f} s, on KVM not by then"
    return Accel("tcg", f"KVM runs our probe but is slow with the guest kernel: {took}{said}", None, tcg.seconds)


def choose(wish: Wish, proof: Accel) -> Accel:
    """Bring the configuration's wish and the proof together.

    :raises BackendError: when KVM is demanded and was not proven.
    """
    if wish == "tcg":
        return Accel("tcg", "the configuration says so")
    if wish == "kvm" and proof.name != "kvm":
        raise BackendError(f"cannot use KVM: {proof.reason}", 'set accel = "auto" under [qemu] in the configuration')
    return proof


def _short(line: str) -> str:
    return line[:160]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
