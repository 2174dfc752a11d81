# SPDX-License-Identifier: Apache-2.0
"""The plan of a guest that an earlier supervisor made, also where one of an earlier build did."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from runphi_async.partition.spec import PartitionPlan

Plan = TypeVar("Plan", bound="PartitionPlan")


def plan_of(kept: msgspec.Raw, decoder: msgspec.json.Decoder[Plan], earlier: Callable[[bytes], Plan]) -> Plan:
    """Return what a record keeps.

    :param earlier: reads what records kept before they kept plans.
    :raises msgspec.ValidationError: it is damaged; what is missing of a plan is named.
    """
    try:
        return decoder.decode(kept)
    except msgspec.ValidationError as exc:
        try:
            return earlier(kept)
        except msgspec.ValidationError:
            raise exc from None
