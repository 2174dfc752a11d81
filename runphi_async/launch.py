# SPDX-License-Identifier: Apache-2.0
"""The commands of a wheel: pip makes small scripts that call these.

An installation by ``configure`` or by the Debian package has launchers of its own (``bin/``), which need no site
packages and start faster: engines are better given those.
"""

import posix
import sys


def runphi() -> None:
    """Be the thin client; the environment that the wheel is in is its home."""
    from runphi_async.client import main

    posix._exit(main(sys.prefix))


def runphid() -> int:
    """Be the supervisor."""
    from runphi_async.supervisor.daemon import main

    return main(sys.argv[1:])
