# SPDX-License-Identifier: Apache-2.0
"""Xen half of the network decision: paravirtual cards on bridges the administrator allows, none by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.xen.machine import wishes
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.xen.xlcfg import Value
    from runphi_async.partition.spec import GuestSpec

#: What a container may say of its card; a script would run in dom0 as root.
_FIELDS: Final = ("bridge", "mac", "ip", "type", "model", "rate")


def keys(spec: GuestSpec, bridges: Sequence[str]) -> dict[str, Value]:
    """Network cards.

    :raises PlanError: the bridge is not allowed, or the specification says more than it may.
    """
    cards = wishes(spec, "vif")
    for card in cards:
        fields = dict(part.partition("=")[::2] for part in card.split(","))
        for field in fields:
            if field not in _FIELDS:
                raise PlanError(f"cannot use network device {card!r}: {field} is not one of {', '.join(_FIELDS)}")
        if fields.get("bridge") not in bridges:
            raise PlanError(
                f"cannot use network device {card!r}: the configuration allows no such bridge",
                "add it to bridges under [xen]",
            )
    return {"vif": cards}


def explain(entries: dict[str, Value]) -> list[str]:
    """Say which cards there are."""
    cards = entries["vif"]
    assert isinstance(cards, tuple)
    return [f"net: {'; '.join(cards)}"] if cards else []
