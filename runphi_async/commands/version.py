# SPDX-License-Identifier: Apache-2.0
"""`runphi version`: which version this is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.oci.state import OCI_VERSION
from runphi_async.version import VERSION

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """The verb has no options."""


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Print the version in runc's form, which engines read."""
    await call.out(f"runphi version {VERSION}\nspec: {OCI_VERSION}\n")
