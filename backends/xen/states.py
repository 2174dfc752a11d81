# SPDX-License-Identifier: Apache-2.0
"""What Xen says of a domain, read from ``xl list -v`` or from libxenctrl's Python module: pure functions.

``xl list -l`` is JSON but holds the configuration only, neither state nor shutdown reason.
"""

from __future__ import annotations

import re
import uuid
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backends.xen.machine import Pool
from runphi_async import digits
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Reason(IntEnum):
    """Why a domain shut itself down. Source: xen/include/public/sched.h; 6 to 254 are the guest's own."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


class Domain(NamedTuple):
    """One domain as the hypervisor sees it.

    :ivar ran: whether it has ever executed an instruction; None: the source cannot tell.
    :ivar reason: shutdown reason, None while it has not shut down.
    """

    domid: int
    uuid: str
    paused: bool
    shutdown: bool
    dying: bool
    reason: int | None
    ran: bool | None


#: Name, id, memory and vCPUs; a tab; six letters of state; a tab; seconds of CPU; uuid; reason; label. The name may
#: hold blanks or be "(null)", for a domain whose create was cut short.
_ROW: Final = re.compile(
    r".*?\s+(?P<domid>\d+)\s+\d+\s+\d+\s+(?P<state>[r-][b-][p-][s-]\S[d-])\s+(?P<time>[\d.]+)"
    r"\s+(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s+(?P<reason>[0-9a-f]+|-)(?:\s.*)?"
)
_HEADER: Final = "Name "


def parse_list(text: str) -> list[Domain]:
    """Read the output of ``xl list -v``; each letter of the state has its own place, so they are looked at singly.

    :raises BackendError: a line is no row of that table.
    """
    return [_row(line) for line in text.splitlines() if line.strip() and not line.startswith(_HEADER)]


def _row(line: str) -> Domain:
    match = _ROW.fullmatch(line.rstrip())
    if match is None:
        raise BackendError(f"cannot understand what xl list -v says: {line[:200]!r}")
    state = match["state"]
    shutdown = state[3] == "s"
    # 0.0 may be 49 ms, and unsaid seconds prove nothing
    ran = True if state[2] == "-" or float(match["time"]) > 0 else None
    return Domain(
        domid=int(match["domid"]),
        uuid=match["uuid"],
        paused=state[2] == "p",
        shutdown=shutdown,
        dying=state[5] == "d",
        reason=int(match["reason"], 16) if shutdown and match["reason"] != "-" else None,
        ran=ran,
    )


def from_xc(info: Mapping[str, Any]) -> Domain:
    """Read one dictionary of ``xen.lowlevel.xc.xc().domain_getinfo()``; a crash is a shutdown of its own there."""
    shutdown = bool(info["shutdown"] or info["crashed"])
    paused = bool(info["paused"])
    return Domain(
        domid=int(info["domid"]),
        uuid=str(uuid.UUID(bytes=bytes(info["handle"]))),
        paused=paused,
        shutdown=shutdown,
        dying=bool(info["dying"]),
        reason=(Reason.CRASH if info["crashed"] else int(info["shutdown_reason"])) if shutdown else None,
        ran=int(info["cpu_time"]) > 0 or not paused,
    )


def parse_pools(table: str, cpus: str) -> tuple[Pool, ...]:
    """Read the output of ``xl cpupool-list`` and of ``xl cpupool-list -c``; a name may hold blanks."""
    places = dict(line.rstrip().rsplit(maxsplit=1) for line in cpus.splitlines()[1:] if len(line.split()) > 1)
    rows = (line.rstrip().rsplit(maxsplit=4) for line in table.splitlines()[1:] if line.strip())
    return tuple(Pool(row[0], row[2], _cpus(places.get(row[0], ""))) for row in rows if len(row) == 5)


def _cpus(text: str) -> tuple[int, ...]:
    found = (digits.whole(number) for number in text.split(","))
    return tuple(number for number in found if number is not None)
