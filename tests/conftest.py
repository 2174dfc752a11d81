# SPDX-License-Identifier: Apache-2.0
"""Settings of all suites: property tests draw the same examples in each run, so that a red run can be run again.

``RUNPHI_FUZZ=1`` draws new ones, for whoever looks for what nobody has seen yet.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile("fuzz" if os.environ.get("RUNPHI_FUZZ") else "same")
