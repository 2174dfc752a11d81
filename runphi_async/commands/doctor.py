# SPDX-License-Identifier: Apache-2.0
"""`runphi doctor`: whether this machine has what containers will ask for, and how to mend what it has not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.base import Level
from runphi_async import doctor

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.call import Call
    from runphi_async.cli import Globals, Parser
    from runphi_async.supervisor import Supervisor


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--json", action="store_true", help="a list of objects instead of lines")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> int:
    """Print what was found; the status is 1 when something keeps everything from working."""
    found = await doctor.examine(supervisor)
    await call.out(doctor.as_json(found) if given.json else doctor.as_text(found))
    return int(any(finding.level is Level.ERROR for finding in found))
