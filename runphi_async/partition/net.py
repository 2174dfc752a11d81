# SPDX-License-Identifier: Apache-2.0
"""How a guest is connected to a network: the decision every backend shares. Today: not at all."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from runphi_async.partition import units

if TYPE_CHECKING:
    from runphi_async.partition.spec import GuestSpec


class NetMode(StrEnum):
    """The kinds of network."""

    NONE = "none"


class Network(msgspec.Struct, frozen=True):
    """The network decided, and why."""

    mode: NetMode
    explain: tuple[str, ...]


def decide(spec: GuestSpec) -> Network:
    """No guest has a network device yet; the sentence tells people so."""
    return Network(NetMode.NONE, (f"net: none for {spec.id}",))


def wish(spec: GuestSpec) -> tuple[bool, str | None]:
    """Return whether the container asks for a network, and for which one by name (None: any)."""
    if spec.net is None:
        return False, None
    try:
        return units.parse_bool(spec.net), None
    except ValueError:
        word = spec.net.strip()
        return word.lower() != NetMode.NONE, word
