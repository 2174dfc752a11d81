# SPDX-License-Identifier: Apache-2.0
"""How a guest is connected to a network: the decision every backend shares.

A Linux guest takes the place of its container's interfaces whenever the container has a network namespace of its own;
any other guest gets a network device when it asks for one. Annotation ``org.runphi.net`` says no, or yes.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from runphi_async.errors import PlanError
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.host.nic import Link
    from runphi_async.partition.spec import GuestSpec

#: the annotation
NET: Final = "org.runphi.net"


class NetMode(StrEnum):
    """The kinds of network."""

    NONE = "none"
    #: a tap in the container's network namespace, in the place of its interfaces
    TAP = "tap"


class Network(msgspec.Struct, frozen=True):
    """The network decided, and why."""

    mode: NetMode
    explain: tuple[str, ...]
    #: MAC address of each of the guest's interfaces
    macs: tuple[str, ...] = ()


def decide(spec: GuestSpec, links: Sequence[Link] | None, obstacle: str = "") -> Network:
    """Decide whether the guest gets interfaces, and how many.

    :param links: the interfaces in the container's network namespace so far; None: it uses the host's.
    :param obstacle: why no network device can be made on this host.
    :raises PlanError: it asks for a network that it cannot have.
    """
    asked = spec.net is not None and spec.net.wanted
    if spec.net is not None and spec.net.annotated and spec.net.name is not None:
        if asked:
            raise PlanError(
                f"cannot connect the guest to '{spec.net.name}': only boards have that", f"set {NET} to yes or no"
            )
        return Network(NetMode.NONE, (f"net: none, as {NET} says",))
    if spec.net is not None and not asked:
        return Network(NetMode.NONE, ("net: none, as the container says",))
    if spec.kind is not GuestKind.LINUX and not asked:
        return Network(NetMode.NONE, (f"net: none for {spec.id}; it asks for none",))
    if links is None:
        if asked:
            raise PlanError(
                "cannot give the guest a network: the container uses the host's, and a guest has interfaces of its own",
                "give the container a network namespace",
            )
        return Network(NetMode.NONE, ("net: none, as the container uses the host's, and a guest cannot",))
    if obstacle:
        if asked or links:
            raise PlanError(f"cannot give the guest a network: {obstacle}", f"{NET}=no gives the guest none")
        return Network(NetMode.NONE, (f"net: none, as {obstacle}",))
    if spec.kind is not GuestKind.LINUX:
        links = links[:1]
    macs = tuple(link.mac for link in links) or (_mac(spec.id),)
    if links:
        names = ", ".join(link.name for link in links)
        return Network(NetMode.TAP, (f"net: in the place of {names} of the container's network namespace",), macs)
    return Network(NetMode.TAP, ("net: in the place of what is plugged in before start",), macs)


def _mac(id: str) -> str:
    """Return a MAC address for a guest whose container has no interface yet: local, and always the same."""
    return b"".join((b"\x02", hashlib.sha256(id.encode()).digest()[:5])).hex(":")


def explain_netconf(spec: GuestSpec) -> tuple[str, ...]:
    """Return what the image says of its own settings, which are the guest's own affair."""
    return (f"net: the guest sets itself up by {spec.netconf}",) if spec.netconf else ()
