# SPDX-License-Identifier: Apache-2.0
"""The command ``runphid`` of a wheel; see ``runphi_async.client.launch``."""

import sys

from runphi_async.supervisor.daemon import main


def runphid() -> int:
    """Be the supervisor."""
    return main(sys.argv[1:])
