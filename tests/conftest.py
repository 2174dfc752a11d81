# SPDX-License-Identifier: Apache-2.0
"""Settings and fixtures of all suites.

Property tests draw the same examples in each run, so that a red run can be run again.
``RUNPHI_FUZZ=1`` draws new ones, for whoever looks for what nobody has seen yet.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.checkout import OpenCheckout

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.register_assert_rewrite("runphi_async.testing.conformance")
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile("fuzz" if os.environ.get("RUNPHI_FUZZ") else "same")


@pytest.fixture(scope="session")
def open_checkout() -> Iterator[OpenCheckout]:
    """A copy of the checkout for tests that are another user: everybody can reach it, wherever the checkout lies."""
    with tempfile.TemporaryDirectory(prefix="open-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield OpenCheckout(Path(name) / "checkout")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name the tests that are another user, so that they can be run from a place where such tests would fail.

    Those of files that may take long come first: at the end one long test would keep one worker alone.
    """
    longest: dict[Path, float] = {}
    for item in items:
        if "open_checkout" in getattr(item, "fixturenames", ()):
            item.add_marker("another_user")
        mark = item.get_closest_marker("timeout")
        seconds = float(mark.args[0]) if mark is not None and mark.args else 0.0
        longest[item.path] = max(seconds, longest.get(item.path, 0.0))
    items.sort(key=lambda item: -longest[item.path])
