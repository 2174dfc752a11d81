# SPDX-License-Identifier: Apache-2.0
"""The names of the runtime's own events, which no rule for a console may have."""

from __future__ import annotations

from typing import Final

RESERVED: Final = frozenset({
    "create", "start", "exit", "pause", "resume", "signal", "delete", "update", "log-error",
    "attach", "detach", "take", "share", "observe",
})  # fmt: skip
