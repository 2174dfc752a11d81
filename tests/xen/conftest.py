# SPDX-License-Identifier: Apache-2.0
"""These tests run in dom0 of the machine that ``python -m tests.xen`` boots; elsewhere nothing is collected."""

from __future__ import annotations

from backends.xen.hypervisor import is_dom0

collect_ignore_glob = [] if is_dom0() else ["dom0/*"]
