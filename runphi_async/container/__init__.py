# SPDX-License-Identifier: Apache-2.0
"""A container from its making to its end: creation, adoption after a restart, hooks, and the register of all.

No parsing of command lines and no printing: that is in ``commands``. No hypervisor by name: that is in ``backends``.
"""
