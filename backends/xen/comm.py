# SPDX-License-Identifier: Apache-2.0
"""Xen half of the channels: the PV console, XenStore for the init's control lines, extra channels by annotation.

An extra channel is a unix socket of the record directory here and /dev/hvcN in the guest; its end here is served by
a device model, so it needs qemu-system-xen in dom0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from backends.xen.dev import need_device_model
from backends.xen.machine import wishes
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts
    from backends.xen.xlcfg import Value
    from runphi_async.partition.comm import Channels
    from runphi_async.partition.spec import GuestSpec

#: Source: unix(7), sun_path
_SOCKET_PATH_MAX: Final = 108
_NAME: Final = re.compile(r"[\w.-]{1,32}", re.ASCII)
#: xl 4.17 drops the first channel that it is told: give it one to drop.
_DROPPED: Final = "connection=pty,name=runphi-first"


def check(channels: Channels) -> None:
    """Refuse what Xen has not: memory shared with a guest is Xen's to give, and xl 4.17 on x86 gives none.

    :raises PlanError: naming the channel.
    """
    for channel in channels.shared:
        raise PlanError(
            f"cannot make channel {channel.name}: Xen guests have no shared memory with dom0 here",
            "use a source, or org.runphi.xen.channel for a PV channel",
        )


def names(spec: GuestSpec, facts: HostFacts) -> tuple[str, ...]:
    """Names of the extra channels.

    :raises PlanError: a name is unfit, or nothing in dom0 could serve them.
    """
    wanted = wishes(spec, "channel")
    if wanted:
        need_device_model("extra channels", facts)
    for name in wanted:
        if not _NAME.fullmatch(name):
            raise PlanError(f"cannot name a channel {name!r}: use letters, digits, and . _ -")
    return wanted


def keys(channels: tuple[str, ...], directory: str) -> dict[str, Value]:
    """Extra channels of a guest whose record is in ``directory``."""
    if not channels:
        return {}
    paths = [f"{directory}/channel-{name}.sock" for name in channels]
    for path in paths:
        if len(path.encode()) >= _SOCKET_PATH_MAX:
            raise PlanError(f"cannot make channel {path}: a socket's path is shorter than {_SOCKET_PATH_MAX} bytes")
    sockets = (f"connection=socket,name={n},path={p}" for n, p in zip(channels, paths, strict=True))
    return {"channel": (_DROPPED, *sockets)}
