# SPDX-License-Identifier: Apache-2.0
"""The command ``runphi`` of a wheel: pip makes a small script that calls this.

An installation by ``configure`` or by the Debian package has launchers of its own (``bin/``), which need no site
packages and start faster: engines are better given those.
"""

import posix
import sys

from runphi_async.client import main


def runphi() -> None:
    """Be the thin client; the environment that the wheel is in is its home."""
    posix._exit(main(sys.prefix))
