# SPDX-License-Identifier: Apache-2.0
"""From what is known of a failure to its cause, and from the cause to what mends it. Pure.

A cause is recognised by structured facts first: how the guest's record says it ended, what the hypervisor's monitor
answers, what ``doctor`` found, an error number. Texts come last, as they change from version to version. The first
row of ``CAUSES`` that fits decides, so the more particular ones stand further up.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.base import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: what QEMU's run states are called that no guest comes out of by itself. Source: QEMU's qapi/run-state.json
BROKEN_STATES: Final = ("internal-error", "io-error", "guest-panicked", "shutdown")
#: the check that needs a kernel of ours, and a file server
LINUX: Final = "Linux guest"
OUT_OF_MEMORY: Final = 137
_KVM_LINES: Final = re.compile(r"KVM internal error|KVM: entry failed|kvm run failed|failed to initialize kvm", re.I)
_PANIC: Final = re.compile(r"Kernel panic - not syncing|Unable to mount root fs")


class Facts(NamedTuple):
    """All that is known of a failure; what is not known is empty.

    :ivar what: the check that failed, such as ``Linux guest``.
    :ivar error: what was wrong with it.
    :ivar said: what the engine's client printed, its errors included.
    :ivar late: it did not end, or answer, in time.
    :ivar number: error number of a system call of ours that failed.
    :ivar reason: why the guest ended, by its record; "" while it runs.
    :ivar code: exit code of its record.
    :ivar events: kinds of its events.
    :ivar accel: the accelerator it ran on.
    :ivar vmm_state: the hypervisor's run state, as its monitor says.
    :ivar kernel: the last words of the guest's own kernel.
    :ivar release: number of the Debian release, "" for another system.
    """

    what: str
    error: str = ""
    said: str = ""
    late: bool = False
    number: int = 0
    reason: str = ""
    code: int | None = None
    events: tuple[str, ...] = ()
    accel: str = ""
    vmm_state: str = ""
    vmm_log: str = ""
    kernel: str = ""
    findings: tuple[Finding, ...] = ()
    supervisor_log: str = ""
    engine_log: str = ""
    release: str = ""

    @property
    def texts(self) -> str:
        """Everything that anybody said."""
        return "\n".join((self.error, self.said, self.reason, self.vmm_log, self.supervisor_log, self.engine_log))

    @property
    def answer(self) -> str:
        """What the engine and the runtime answered, without logs that may hold older troubles."""
        return "\n".join((self.error, self.said, self.reason))

    def found(self, area: str, *words: str) -> bool:
        """Whether ``doctor`` has something to say of an area that holds all the words."""
        return any(
            finding.area == area and finding.level is not Level.OK and all(word in finding.text for word in words)
            for finding in self.findings
        )


class Cause(NamedTuple):
    """One row.

    :ivar says: what it is, in one line.
    :ivar mend: what to do about it; with ``by_release`` a package differs from release to release.
    """

    name: str
    fits: Callable[[Facts], bool]
    says: str
    mend: str
    by_release: Mapping[str, str] = {}


class Diagnosis(NamedTuple):
    """What a failure means."""

    name: str
    says: str
    mend: str


def diagnose(facts: Facts) -> Diagnosis:
    """Return the first cause that fits."""
    cause = next(cause for cause in CAUSES if cause.fits(facts))
    mend = cause.by_release.get(facts.release, cause.mend)
    return Diagnosis(cause.name, cause.says.format(what=facts.what), mend)


# Section: recognising


def _says(pattern: str) -> Callable[[Facts], bool]:
    wanted = re.compile(pattern, re.IGNORECASE)
    return lambda facts: bool(wanted.search(facts.answer))


def _kvm_broke(facts: Facts) -> bool:
    on_kvm = facts.accel in ("", "kvm")
    stopped = facts.vmm_state == "internal-error" or bool(re.search(r"internal[- ]error", facts.reason))
    return on_kvm and (stopped or bool(_KVM_LINES.search(f"{facts.vmm_log}\n{facts.reason}")))


def _kvm_slow(facts: Facts) -> bool:
    """A guest on KVM that runs and gets nowhere."""
    late = facts.late or "did not reach init" in facts.reason
    return facts.accel == "kvm" and late and facts.vmm_state not in BROKEN_STATES


def _kvm_refused(facts: Facts) -> bool:
    return bool(re.search(r"cannot use KVM", facts.answer)) or facts.found("qemu", "cannot use KVM")


def _panicked(facts: Facts) -> bool:
    told = facts.vmm_state == "guest-panicked" or facts.reason == "guest panicked"
    return told or bool(_PANIC.search(facts.kernel))


def _no_init(facts: Facts) -> bool:
    linux = facts.what == LINUX
    return "did not reach init" in facts.reason or (linux and facts.late and facts.vmm_state in ("running", ""))


def _no_kernel(facts: Facts) -> bool:
    if facts.what != LINUX:
        return False
    told = facts.found("qemu", "no kernel at") or facts.found("qemu", "no initial ramdisk at")
    pattern = r"its RAM disk with our init is missing|cannot (?:use|read|find).*(?:vmlinux|initrd)"
    return told or bool(re.search(pattern, facts.answer))


def _no_file_server(facts: Facts) -> bool:
    return facts.what == LINUX and (facts.found("qemu", "file server") or "virtiofsd" in facts.answer)


def _in_use(facts: Facts) -> bool:
    return facts.number == errno.EADDRINUSE or bool(
        re.search(r"address already in use|another one answers", facts.answer, re.IGNORECASE)
    )


def _vmm_failed(facts: Facts) -> bool:
    broken = facts.vmm_state in BROKEN_STATES or facts.reason.startswith(("VMM", "the VMM"))
    return broken or bool(re.search(r"cannot start the guest|QEMU has ended or cannot be reached", facts.answer))


def _full(facts: Facts) -> bool:
    return facts.number in (errno.ENOSPC, errno.EDQUOT) or bool(
        re.search(r"no space left on device|disk quota exceeded", facts.texts, re.IGNORECASE)
    )


def _no_permission(facts: Facts) -> bool:
    return facts.number in (errno.EPERM, errno.EACCES) or bool(
        re.search(r"permission denied|operation not permitted", facts.answer, re.IGNORECASE)
    )


def _out_of_memory(facts: Facts) -> bool:
    killed = facts.code == OUT_OF_MEMORY and "out of memory" in facts.reason
    return killed or facts.number == errno.ENOMEM or bool(re.search(r"cannot allocate memory", facts.texts, re.I))


_SCRIPT: Final = "bin/quickstart"
_REPORTED: Final = "attach the report below to a bug; the last words above say where it stopped"
CAUSES: Final[tuple[Cause, ...]] = (
    # what kept everything from starting
    Cause(
        "configuration", lambda f: f.found("runphi", "cannot use the configuration"),
        "the configuration file cannot be used", "correct the key that doctor names, or unset RUNPHI_CONFIG",
    ),
    Cause(
        "disk full", _full,
        "there is no space left where containers or logs are written",
        "make room in /var/lib, /run and /tmp (df -h), then run bin/quickstart again",
    ),
    Cause(
        "address in use", _in_use,
        "somebody else uses a socket that is needed",
        "end the other quickstart, or name this one differently: RUNPHI_QUICKSTART=runphi-second bin/quickstart",
    ),
    Cause(
        "Python environment", _says(r"no Python environment|ModuleNotFoundError|No module named"),
        "the Python environment of this checkout is missing or damaged",
        "rm -rf .venv in the checkout, then run bin/quickstart again",
    ),
    Cause(
        "supervisor", _says(r"cannot (?:start|reach) (?:the|a) supervisor|the supervisor ended or fell silent"),
        "the supervisor does not start or ended",
        "the last line of its log above says why; `runphi doctor` looks further",
    ),
    Cause(
        "engine", _says(r"cannot start containerd|containerd to answer"),
        "containerd does not start", "its last lines above say why; apt-get install --reinstall containerd",
    ),
    Cause(
        "images", _says(r"images import"),
        "the demo images cannot be imported",
        "remove the directory that quickstart keeps (/var/lib/runphi-quickstart), then run bin/quickstart again",
    ),
    # the accelerator
    Cause(
        "KVM demanded", _kvm_refused,
        "the configuration demands KVM, and KVM was not proven here",
        'set accel = "auto" under [qemu] in the configuration, or leave it out',
    ),
    Cause(
        "KVM internal error", _kvm_broke,
        "KVM of this machine cannot run this guest: it stopped with an internal error",
        'set accel = "tcg" under [qemu] in the configuration, or RUNPHI_ACCEL=tcg for this run',
    ),
    Cause(
        "KVM too slow", _kvm_slow,
        "KVM of this machine is there and the guest gets nowhere on it",
        'set accel = "tcg" under [qemu] in the configuration, or RUNPHI_ACCEL=tcg for this run',
    ),
    # what a guest needs
    Cause(
        "no QEMU", lambda f: f.found("qemu", "cannot find QEMU") or f.found("qemu", "no QEMU for x86_64"),
        "there is no QEMU for this guest", "apt-get install qemu-system-x86, or set qemu.x86_64 in the configuration",
    ),
    Cause(
        "guest kernel", _no_kernel,
        "the kernel of Linux guests, or its RAM disk, is missing or damaged",
        "rm -r /var/lib/runphi/guest; bin/prepare-guest",
    ),
    Cause(
        "file server", _no_file_server,
        "virtiofsd is missing or fails: it shares the image with a Linux guest",
        "install virtiofsd, or set qemu.virtiofsd in the configuration",
        {"12": "apt-get install qemu-system-common", "13": "apt-get install virtiofsd"},
    ),
    Cause(
        "no network device", lambda f: _says(r"/dev/net/tun|cannot give the guest a network")(f),
        "the guest's network cannot be made: there is no /dev/net/tun",
        "modprobe tun; in a container of your own, give it the device /dev/net/tun",
    ),
    Cause(
        "cgroups", lambda f: f.found("host", "cgroups:") or _says(r"cgroup")(f),
        "the cgroups that containers need are not there or refuse",
        "mount them (systemd does), and boot with cgroup_enable=memory and without cgroup_disable=",
    ),
    Cause(
        "memory", _out_of_memory,
        "there was too little memory for the guest",
        "free memory, or raise the container's limit (--memory-limit); a Linux guest needs 96 MiB and QEMU's own",
    ),
    Cause(
        "memory limit", _says(r"cannot give the guest .* of memory"),
        "the container's memory limit is below what this guest needs", "raise it, or set org.runphi.memory",
    ),
    Cause(
        "panic", _panicked,
        "the guest's kernel panicked",
        "rm -r /var/lib/runphi/guest; bin/prepare-guest (a damaged RAM disk is the usual cause)",
    ),
    Cause(
        "init not reached", _no_init,
        "the guest's kernel did not reach our init",
        "is the machine overloaded (top)? else attach the report below to a bug: it has the kernel's last words",
    ),
    Cause(
        "no permission", _no_permission,
        "something was not allowed", "run it as root, and outside of containers that lack CAP_SYS_ADMIN",
    ),
    Cause(
        "VMM hangs", _says(r"QEMU did not answer"),
        "QEMU was started and does not answer",
        "`qemu-system-x86_64 --version` must answer at once; apt-get install --reinstall qemu-system-x86",
    ),
    Cause(
        "VMM failed", _vmm_failed,
        "QEMU failed", "its last words above say why; apt-get install --reinstall qemu-system-x86 qemu-system-common",
    ),
    Cause(
        "no runc", _says(r"there is no runc|runc: (?:no such file|executable file not found)"),
        "there is no runc for ordinary containers", "apt-get install runc, or set runc in the configuration",
    ),
    Cause(
        "silent guest", lambda f: f.late,
        "the {what} does not answer", "is the machine overloaded (top)? else " + _REPORTED,
    ),
    Cause("unknown", lambda f: True, "the {what} did not do what it should", _REPORTED),
)  # fmt: skip
