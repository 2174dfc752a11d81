# SPDX-License-Identifier: Apache-2.0
"""Which backend this machine has: ``configure -a`` takes the first that is there, in the original's order.

The order is docker, jailhouse, xen, and behind them qemu, which the original did not have. **docker** stands for
ordinary containers. It is there as soon as a docker daemon is installed, so a machine that has both docker and a
hypervisor is set up for ordinary containers, and only those that name a hypervisor by ``org.runphi.backend`` become
partitions. That is the original's order and it is kept; the answer says so, and ``-c`` chooses otherwise.
"""

from __future__ import annotations

import os
import shutil
from typing import Final, NamedTuple

#: Where programs are looked for; we may be called without any PATH.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ORDER: Final = ("docker", "jailhouse", "xen", "qemu")
#: What each backend does with a container that asks for a partition and names no backend.
MEANING: Final = {
    "docker": "ordinary containers; only those that name a hypervisor by org.runphi.backend become partitions",
    "jailhouse": "partitions are Jailhouse cells",
    "xen": "partitions are Xen domains",
    "qemu": "partitions are QEMU guests",
}
_EMULATORS: Final = ("qemu-system-x86_64", "qemu-system-aarch64")


class Machine(NamedTuple):
    """What tells the backends, as read; a program that is not there is ""."""

    dockerd: str
    jailhouse_tool: str
    #: the module's file ``enabled``: "1", "0", or "" without the module
    jailhouse_enabled: str
    xl: str
    #: the hypervisor that the kernel runs on, such as "xen"
    hypervisor: str
    #: whether this is the domain that controls the others
    dom0: bool
    qemu: str


class Answer(NamedTuple):
    """Whether a backend is there, and why."""

    backend: str
    available: bool
    why: str


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def read(root: str = "") -> Machine:
    """Look at the machine.

    :param root: put in front of every path.
    """
    places = os.pathsep.join(root + place for place in PATH.split(":"))

    def program(*names: str) -> str:
        found = next((path for name in names if (path := shutil.which(name, path=places))), "")
        return found.removeprefix(root)

    return Machine(
        dockerd=program("dockerd"),
        jailhouse_tool=program("jailhouse"),
        jailhouse_enabled=_text(root + "/sys/devices/jailhouse/enabled"),
        xl=program("xl"),
        hypervisor=_text(root + "/sys/hypervisor/type"),
        dom0="control_d" in _text(root + "/proc/xen/capabilities"),
        qemu=program(*_EMULATORS),
    )


def judge(machine: Machine) -> list[Answer]:
    """Say of each backend whether it is there, in the order they are taken."""
    return [_docker(machine), _jailhouse(machine), _xen(machine), _qemu(machine)]


def choose(answers: list[Answer]) -> str | None:
    """Return the first backend that is there."""
    return next((answer.backend for answer in answers if answer.available), None)


def explain(answers: list[Answer]) -> list[str]:
    """Return a line for each backend: chosen or not, and why."""
    chosen = choose(answers)
    lines = []
    for answer in answers:
        if not answer.available:
            lines.append(f"{answer.backend}: not chosen: {answer.why}")
        elif answer.backend == chosen:
            lines.append(f"{answer.backend}: chosen: {answer.why}; {MEANING[answer.backend]}")
        else:
            lines.append(f"{answer.backend}: not chosen: {answer.why}, but {chosen} comes before it")
    others = [answer.backend for answer in answers if answer.available and answer.backend != chosen]
    if chosen == "docker" and others:
        lines.append(f"docker comes first wherever its daemon is installed; for partitions: configure -c {others[0]}")
    return lines


def _docker(machine: Machine) -> Answer:
    if machine.dockerd:
        return Answer("docker", True, f"{machine.dockerd} is installed")
    return Answer("docker", False, "there is no docker daemon (dockerd)")


def _jailhouse(machine: Machine) -> Answer:
    if not machine.jailhouse_tool:
        return Answer("jailhouse", False, "there is no program jailhouse")
    if not machine.jailhouse_enabled:
        return Answer("jailhouse", False, "the kernel module is not loaded")
    if machine.jailhouse_enabled != "1":
        return Answer("jailhouse", False, "the hypervisor is not enabled (jailhouse enable SYSCONFIG)")
    return Answer("jailhouse", True, "the hypervisor is enabled")


def _xen(machine: Machine) -> Answer:
    if machine.hypervisor != "xen":
        return Answer("xen", False, "the machine was not booted with Xen")
    if not machine.dom0:
        return Answer("xen", False, "this is a guest of Xen, not dom0")
    if not machine.xl:
        return Answer("xen", False, "there is no program xl (apt-get install xen-utils)")
    return Answer("xen", True, "this is dom0 of Xen")


def _qemu(machine: Machine) -> Answer:
    if machine.qemu:
        return Answer("qemu", True, f"{machine.qemu} is installed")
    return Answer("qemu", False, "there is no QEMU (apt-get install qemu-system-x86)")
