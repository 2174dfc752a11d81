# SPDX-License-Identifier: Apache-2.0
"""The table `[fake]` of the configuration file, there when the backend for tests is."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from backends.base import STOP_SECONDS, Brings
from runphi_async.config.section import BackendSection, doc


class Fake(BackendSection, frozen=True):
    """The backend for tests, whose guests are shell scripts."""

    stop_seconds: Annotated[
        float, msgspec.Meta(ge=0), doc("How long a guest asked to stop may take before it is destroyed.")
    ] = STOP_SECONDS


BRINGS: Final = Brings(section=Fake)
