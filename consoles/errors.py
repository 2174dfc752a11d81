# SPDX-License-Identifier: Apache-2.0
"""The error of everything that opens a far end; below all rooms of this package."""

from __future__ import annotations

from runphi_async.errors import RunphiError


class SourceError(RunphiError):
    """Raised when a source cannot be opened; the text says what, where and how to mend it."""
