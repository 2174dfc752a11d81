# SPDX-License-Identifier: Apache-2.0
"""The part of a creation that is on paper: from the bundle to a plan of a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from runphi_async.partition import channels
from runphi_async.partition.guest import guest_spec

if TYPE_CHECKING:
    from backends.base import Backend
    from runphi_async.config.schema import Config
    from runphi_async.container.order import Order
    from runphi_async.oci import spec as oci
    from runphi_async.partition.request import PartitionRequest
    from runphi_async.partition.spec import GuestSpec, PartitionPlan


class Planned(NamedTuple):
    """A guest on paper."""

    spec: GuestSpec
    backend: Backend
    plan: PartitionPlan

    async def claimed(self, name: str) -> Planned:
        """Claim what the plan needs for the record of this name; return what is to be carried out."""
        return self._replace(plan=await self.backend.claim(self.spec, self.plan, name))


def specify(order: Order, request: PartitionRequest, spec: oci.Spec, config: Config) -> GuestSpec:
    """Return what a backend is to make, with files of the host (blocks).

    :raises SpecError: it cannot be had.
    """
    channels.check_allowed(request.channels, config.channels, config.source.host_paths)
    return guest_spec(request, spec, order.id, order.bundle, config.inmate)
