# SPDX-License-Identifier: Apache-2.0
"""What ``runphi doctor`` says of Xen: dom0, tools, daemons, memory, cpupools, what Linux guests need."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.base import Finding, Level
from backends.guest import nics
from backends.xen import net
from runphi_async import digits
from runphi_async.units import MIB, human

if TYPE_CHECKING:
    from collections.abc import Sequence

AREA: Final = "xen"
#: Less free memory than this holds no Linux guest.
SCANTY: Final = 96 * MIB
_KEEP: Final = b"--overflow-data=keep"


class Daemon(NamedTuple):
    """A running process: its command line."""

    argv: tuple[bytes, ...]


def runs_xen(path: str = "/sys/hypervisor/type") -> bool:
    """Whether the machine was booted with Xen."""
    try:
        with open(path) as file:
            return file.read().strip() == "xen"
    except OSError:
        return False


def find_daemon(name: str, proc: str = "/proc") -> Daemon | None:
    """Return the first process of that name (blocks)."""
    for entry in os.listdir(proc):
        if digits.whole(entry) is None:
            continue
        try:
            with open(f"{proc}/{entry}/comm") as file:
                if file.read().strip() != name:
                    continue
            with open(f"{proc}/{entry}/cmdline", "rb") as data:
                return Daemon(tuple(data.read().rstrip(b"\0").split(b"\0")))
        except OSError:
            continue  # it has just ended
    return None


def judge_consoles(daemon: Daemon | None) -> Finding:
    """Judge xenconsoled, without which no guest has a console."""
    if daemon is None:
        return Finding(Level.WARNING, AREA, "xenconsoled does not run: no guest has a console", "start it in dom0")
    words = b" ".join(daemon.argv)
    if _KEEP not in words and b"--overflow-data keep" not in words and b"-o keep" not in words:
        text = "xenconsoled drops output beyond 1 MiB that nobody reads"
        return Finding(Level.NOTE, AREA, text, "start it with --overflow-data=keep")
    return Finding(Level.OK, AREA, "xenconsoled runs and keeps what nobody reads")


def judge_memory(free: int) -> Finding:
    """Judge what Xen has left for guests."""
    text = f"{human(free)} of memory are free for guests"
    if free < SCANTY:
        return Finding(Level.WARNING, AREA, text, "give dom0 less: dom0_mem= on Xen's command line")
    return Finding(Level.OK, AREA, text)


def judge_pools(text: str) -> Finding:
    """Tell the cpupools from ``xl cpupool-list``."""
    rows = [line.split() for line in text.splitlines()[1:] if len(line.split()) >= 3]
    pools = ", ".join(f"{name} ({scheduler}, {cpus} CPUs)" for name, cpus, scheduler, *_ in rows)
    return Finding(Level.OK, AREA, f"cpupools: {pools or 'none'}")


def judge_network() -> list[Finding]:
    """Say why guests can have no network, if they cannot."""
    obstacle = net.obstacle()
    if not obstacle:
        return []
    return [Finding(Level.WARNING, AREA, f"cannot give guests a network: {obstacle}", nics.HINT)]


def missing_files(files: Sequence[tuple[str, str]]) -> list[Finding]:
    """Name files of Linux guests that are not there (blocks).

    :param files: what each is, and its path.
    """
    return [
        Finding(Level.NOTE, AREA, f"no {what} for Linux guests at {path}", "run bin/prepare-guest")
        for what, path in files
        if not os.path.isfile(path)
    ]
