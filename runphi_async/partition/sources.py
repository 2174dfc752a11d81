# SPDX-License-Identifier: Apache-2.0
"""Console sources that annotations name: what they may name, and the errors that say where they went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consoles.errors import SourceError
from consoles.sources import describe
from runphi_async.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consoles.sources.describe import Description


def from_annotation(key: str, text: str, host_paths: Sequence[str]) -> Description:
    """Read a source that an annotation names; ``describe.make`` makes it.

    :param host_paths: what the configuration allows, ``source.host_paths``.
    :raises SpecError: it cannot be understood, or may not be used.
    """
    try:
        what = describe.parse(text.strip())
    except SourceError as exc:
        raise SpecError(f"cannot understand annotation {key}: {exc}") from None
    path = "" if isinstance(what, describe.Exec) else what.path
    if not describe.is_allowed(path, host_paths):
        raise SpecError(
            f"cannot use annotation {key}: the configuration allows no source {path}",
            "list it, or its directory, under host_paths of [source] in the configuration",
        )
    return what
