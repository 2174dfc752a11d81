# SPDX-License-Identifier: Apache-2.0
"""For clients that an upgrade left running: those of the layout without rooms look here for the start of a supervisor.

Such a client shows a console and asks for this module when the old supervisor ends. It has a ``runphi_async.client``
that is no package yet, which makes room for the one that is. To be removed with the release after the next.
"""

import sys

sys.modules.pop("runphi_async.client", None)

from runphi_async.client.start import start  # noqa: E402

__all__ = ["start"]
