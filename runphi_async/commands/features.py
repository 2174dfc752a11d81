# SPDX-License-Identifier: Apache-2.0
"""`runphi features`: what this runtime can do, for engines and people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends import detect
from runphi_async.oci.features import features
from runphi_async.version import VERSION

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """The verb has no options."""


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Print the OCI features document."""
    await call.out(features(VERSION, backends=sorted(detect.BACKENDS)))
