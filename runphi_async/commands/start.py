# SPDX-License-Identifier: Apache-2.0
"""`runphi start`: let the guest execute its first instruction."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from runphi_async.commands.cli import find_or_pass
from runphi_async.container.document import document
from runphi_async.container.hooks import run_hooks
from runphi_async.errors import HookError

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


log = logging.getLogger(__name__)


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("id", metavar="ID")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Start the guest, then run the poststart hooks; a hook that fails there is logged, as the OCI spec says."""
    guest = find_or_pass(supervisor, given.id, options)
    async with guest.verb():
        await guest.start()
        state = document(guest.record).hook_bytes()
        try:
            await run_hooks((await guest.hooks()).poststart, state, kind="poststart", cwd=guest.record.bundle)
        except HookError as exc:
            log.warning("%s: %s", guest.record.name, exc)
