# SPDX-License-Identifier: Apache-2.0
"""These tests run in dom0 of the machine that ``python -m tests.xen`` boots; elsewhere nothing is collected."""

from __future__ import annotations

import pytest

from backends.xen.hypervisor import is_dom0

# what the suite of all drivers asserts is to be read in a failure; the conftest.py of the whole is not there in dom0
pytest.register_assert_rewrite("runphi_async.testing.conformance")
collect_ignore_glob = [] if is_dom0() else ["dom0/*"]
