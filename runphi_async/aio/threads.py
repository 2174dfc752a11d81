# SPDX-License-Identifier: Apache-2.0
"""Ending a process although a thread of it does not end, such as one that reads sysfs of a board that hangs.

The interpreter waits for all its threads, and whoever stops a service or runs a command waits with it. Called last by
the supervisor and by ``start_jailhouse``.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import Final

log = logging.getLogger(__name__)

#: Seconds that threads may take to end by themselves.
GRACE: Final = 2.0


def let_go(status: int) -> int:
    """Return the status when every thread has ended, else end the process with it now."""
    deadline = time.monotonic() + GRACE
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    held = [thread for thread in others if thread.is_alive() and not thread.daemon]
    if held:
        log.warning("ends although %d thread(s) have not come back", len(held))
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
