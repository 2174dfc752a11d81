# SPDX-License-Identifier: Apache-2.0
"""runphid: the process that composes all rooms, and the server that answers the thin clients.

``daemon`` starts and ends it, ``server`` reads calls. Nothing may import from here.
"""

from runphi_async.supervisor.daemon import main

__all__ = ["main"]
