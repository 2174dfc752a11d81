# SPDX-License-Identifier: Apache-2.0
"""Xen half of the network decision: a paravirtual card for each interface of the container whose place it takes.

Annotation ``org.runphi.xen.vif`` asks for cards on bridges instead, which the administrator must allow.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from backends.xen import fields
from runphi_async.errors import PlanError
from runphi_async.partition import net
from runphi_async.partition.net import NetMode, Network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.xen.machine import HostFacts
    from backends.xen.wishes import XenWishes
    from backends.xen.xlcfg import Value
    from runphi_async.partition.spec import GuestSpec

#: there when dom0's kernel can make the back ends of cards
_BACK_ENDS: Final = "/sys/bus/xen-backend/drivers/vif"
#: xl wants to run a hotplug script; ours has nothing to do, see ``vifs.py``
_SCRIPT: Final = "/bin/true"


def obstacle() -> str:
    """Return why no card can be made here, "" when one can."""
    return "" if os.path.isdir(_BACK_ENDS) else "dom0's kernel has no driver for guests' cards: modprobe xen-netback"


def choose(spec: GuestSpec, wishes: XenWishes, facts: HostFacts) -> Network:
    """Decide whether the guest gets the container's interfaces.

    :raises PlanError: it asks for a network that it cannot have.
    """
    if wishes.vif:
        return Network(NetMode.NONE, (f"net: {'; '.join(map(fields.written, wishes.vif))}",))
    return net.decide(spec, facts.links, facts.no_vifs)


def keys(wishes: XenWishes, bridges: Sequence[str], network: Network) -> dict[str, Value]:
    """Network cards.

    :raises PlanError: the bridge is not allowed.
    """
    for card in wishes.vif:
        if card.get("bridge") not in bridges:
            raise PlanError(
                f"cannot use network device {fields.written(card)!r}: the configuration allows no such bridge",
                "add it to bridges under [xen]",
            )
    return {
        "vif": tuple(map(fields.written, wishes.vif))
        or tuple(f"mac={mac},type=vif,script={_SCRIPT}" for mac in network.macs)
    }
