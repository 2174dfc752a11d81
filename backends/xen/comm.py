# SPDX-License-Identifier: Apache-2.0
"""Xen half of the channels: the PV console, XenStore for the init's control lines, extra channels by annotation.

A vchan is memory that the guest grants to dom0, with a server of the guest's own; the record says where it will be. An
extra channel is /dev/hvcN in the guest. Both are named streams here: attach and logs have them by their names. A device
model serves the extra channels on unix sockets of the record directory, so they need qemu-system-xen in dom0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from backends.xen import fields
from backends.xen.dev import need_device_model
from consoles.sharedmem.vchan import NAME_MAX
from runphi_async.errors import PlanError
from runphi_async.partition import comm
from runphi_async.partition.channels import MAX_CHANNELS, Channel

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts
    from backends.xen.wishes import XenWishes
    from backends.xen.xlcfg import Value
    from runphi_async.partition.spec import GuestSpec

#: Source: unix(7), sun_path
_SOCKET_PATH_MAX: Final = 108
#: xl 4.17 drops the first channel that it is told: give it one to drop.
_DROPPED: Final = "connection=pty,name=runphi-first"


class DomainComm(msgspec.Struct, frozen=True):
    """The channels decided, and why.

    :ivar extra: PV channels beside those that every backend knows.
    """

    extra: tuple[Channel, ...]
    explain: tuple[str, ...]


def choose(spec: GuestSpec, wishes: XenWishes, facts: HostFacts) -> DomainComm:
    """Decide which channels lead into the domain.

    :raises PlanError: one cannot be had here.
    """
    control = comm.decide(spec).control
    _check(spec, facts)
    extra = _extra(spec, wishes, facts)
    explain = (
        "comm: PV console" + (", control lines in xenstore" if control else ""),
        *(f"comm: channel {channel.name}: {channel.text()}" for channel in spec.channels),
        *(f"comm: PV channel {channel.name}, a console of the guest's" for channel in extra),
    )
    return DomainComm(extra, explain)


def _check(spec: GuestSpec, facts: HostFacts) -> None:
    """Refuse channels in shared memory that this Xen cannot have.

    xl 4.17 has no key for memory of dom0's in a guest on x86; by grants it would end with the supervisor.

    :raises PlanError: naming the channel.
    """
    for channel in spec.channels:
        problem, hint = None, None
        if channel.made:
            problem = "xl shares no memory of dom0 with a guest here"
            hint = "use vchan, which the guest serves from its own memory, or org.runphi.xen.channel for a PV channel"
        elif channel.vchan and len(channel.name) > NAME_MAX:
            problem = f"libxenvchan reaches names of up to {NAME_MAX} characters only"
        elif channel.vchan and channel.name == spec.console:
            problem = "a vchan cannot be the console"
        elif channel.vchan and facts.no_vchan:
            problem, hint = facts.no_vchan, "use org.runphi.xen.channel for a PV channel"
        if problem is not None:
            raise PlanError(f"cannot make channel {channel.name}: {problem}", hint)


def _extra(spec: GuestSpec, wishes: XenWishes, facts: HostFacts) -> tuple[Channel, ...]:
    """Extra channels; each is a named stream, so its name must be no other's.

    :raises PlanError: a name is taken, or nothing in dom0 could serve them.
    """
    wanted = wishes.channel
    if wanted:
        need_device_model("extra channels", facts)
    if len(wanted) + len(spec.channels) > MAX_CHANNELS:
        raise PlanError(f"cannot give a guest {len(wanted) + len(spec.channels)} channels: {MAX_CHANNELS} is the most")
    taken = {channel.name for channel in spec.channels}
    for name in wanted:
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
        if not fields.PATH.fullmatch(path):
            raise PlanError(
                f"cannot make channel {path}: xl takes its path apart", "use no comma in the container's id"
            )
        if len(path.encode()) >= _SOCKET_PATH_MAX:
            raise PlanError(f"cannot make channel {path}: a socket's path is shorter than {_SOCKET_PATH_MAX} bytes")
    sockets = tuple(f"connection=socket,name={name},path={path}" for name, path in paths.items())
    return {"channel": (_DROPPED, *sockets)} if sockets else {}
