# SPDX-License-Identifier: Apache-2.0
"""QEMU half of the network decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.partition.net import NetMode

if TYPE_CHECKING:
    from runphi_async.partition.net import Network


def args(network: Network) -> list[str]:
    """``-nodefaults`` already leaves QEMU's default network card out, so none takes an explicit word only
    for readers.
    """
    return ["-nic", "none"] if network.mode is NetMode.NONE else []
