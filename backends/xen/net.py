# SPDX-License-Identifier: Apache-2.0
"""Xen half of the network decision: a paravirtual card for each interface of the container whose place it takes.

Annotation ``org.runphi.xen.vif`` asks for cards on bridges instead, which the administrator must allow.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from backends.xen import fields
from backends.xen.machine import wishes
from runphi_async.errors import PlanError
from runphi_async.partition import net
from runphi_async.partition.net import NetMode, Network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.xen.machine import HostFacts
    from backends.xen.xlcfg import Value
    from runphi_async.partition.spec import GuestSpec

#: there when dom0's kernel can make the back ends of cards
_BACK_ENDS: Final = "/sys/bus/xen-backend/drivers/vif"
#: xl wants to run a hotplug script; ours has nothing to do, see ``vifs.py``
_SCRIPT: Final = "/bin/true"


def obstacle() -> str:
    """Return why no card can be made here, "" when one can."""
    return "" if os.path.isdir(_BACK_ENDS) else "dom0's kernel has no driver for guests' cards: modprobe xen-netback"


def decide(spec: GuestSpec, facts: HostFacts) -> Network:
    """Decide whether the guest gets the container's interfaces.

    :raises PlanError: it asks for a network that it cannot have.
    """
    cards = wishes(spec, "vif")
    if cards:
        return Network(NetMode.NONE, (f"net: {'; '.join(cards)}",))
    return net.decide(spec, facts.links, facts.no_vifs)


def keys(spec: GuestSpec, bridges: Sequence[str], network: Network) -> dict[str, Value]:
    """Network cards.

    :raises PlanError: the bridge is not allowed, or the specification says more than it may.
    """
    cards = [fields.parse("network device", text, fields.VIF) for text in wishes(spec, "vif")]
    for card in cards:
        if card.get("bridge") not in bridges:
            raise PlanError(
                f"cannot use network device {fields.written(card)!r}: the configuration allows no such bridge",
                "add it to bridges under [xen]",
            )
    return {
        "vif": tuple(map(fields.written, cards))
        or tuple(f"mac={mac},type=vif,script={_SCRIPT}" for mac in network.macs)
    }
