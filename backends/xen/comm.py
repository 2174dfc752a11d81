# SPDX-License-Identifier: Apache-2.0
"""Xen half of the channels: the PV console, XenStore for the init's control lines, extra channels by annotation.

An extra channel is /dev/hvcN in the guest and a named stream here: attach and logs have it by its name. A device model
serves it on a unix socket of the record directory, so it needs qemu-system-xen in dom0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.xen.dev import need_device_model
from backends.xen.machine import wishes
from runphi_async.errors import PlanError
from runphi_async.partition.channels import MAX_CHANNELS, Channel, check_name

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts
    from backends.xen.xlcfg import Value
    from runphi_async.partition.comm import Channels
    from runphi_async.partition.spec import GuestSpec

#: Source: unix(7), sun_path
_SOCKET_PATH_MAX: Final = 108
#: xl 4.17 drops the first channel that it is told: give it one to drop.
_DROPPED: Final = "connection=pty,name=runphi-first"


def check(channels: Channels) -> None:
    """Refuse rings in memory that dom0 and a guest share.

    xl 4.17 has no key for such memory on x86. libxenvchan, callable by ctypes in dom0, has it of one side's pages by
    grants: if they were ours, they would end with the supervisor, and if they are the guest's, it must bring a server.

    :raises PlanError: naming the channel.
    """
    for channel in channels.shared:
        raise PlanError(
            f"cannot make channel {channel.name}: xl shares no memory of dom0 with a guest here, "
            "and libxenvchan would need a server in the guest",
            "use org.runphi.xen.channel for a PV channel, or a source",
        )


def extra(spec: GuestSpec, facts: HostFacts) -> tuple[Channel, ...]:
    """Extra channels; each is a named stream, so its name must be no other's.

    :raises PlanError: a name is unfit, or nothing in dom0 could serve them.
    """
    wanted = wishes(spec, "channel")
    if wanted:
        need_device_model("extra channels", facts)
    if len(wanted) + len(spec.channels) > MAX_CHANNELS:
        raise PlanError(f"cannot give a guest {len(wanted) + len(spec.channels)} channels: {MAX_CHANNELS} is the most")
    taken = {channel.name for channel in spec.channels}
    for name in wanted:
        try:
            check_name(name)
        except ValueError as exc:
            raise PlanError(f"cannot make a channel: {exc}") from None
        if name in taken:
            raise PlanError(f"cannot make channel {name}: there is another one of that name")
        taken.add(name)
    return tuple(Channel(name, socket=f"channel-{name}.sock") for name in wanted)


def keys(channels: tuple[Channel, ...], directory: str) -> dict[str, Value]:
    """Extra channels of a guest whose record is in ``directory``.

    :param channels: all of the guest's; those that are no PV channels are left out.
    """
    paths = {channel.name: f"{directory}/{channel.socket}" for channel in channels if channel.socket}
    for path in paths.values():
        if len(path.encode()) >= _SOCKET_PATH_MAX:
            raise PlanError(f"cannot make channel {path}: a socket's path is shorter than {_SOCKET_PATH_MAX} bytes")
    sockets = tuple(f"connection=socket,name={name},path={path}" for name, path in paths.items())
    return {"channel": (_DROPPED, *sockets)} if sockets else {}
