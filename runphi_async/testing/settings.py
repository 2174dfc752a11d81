# SPDX-License-Identifier: Apache-2.0
"""The table `[fake]` of the configuration file, there when the backend for tests is."""

from __future__ import annotations

from typing import Final

from backends.base import STOP_SECONDS, Brings
from runphi_async.config.section import BackendSection, StopSeconds


class Fake(BackendSection, frozen=True):
    """The backend for tests, whose guests are shell scripts."""

    stop_seconds: StopSeconds = STOP_SECONDS


BRINGS: Final = Brings(section=Fake)
