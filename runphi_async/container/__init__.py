# SPDX-License-Identifier: Apache-2.0
"""A container from its making to its end: creation, adoption after a restart, hooks, and the register of all.

``recorded`` is what is true of one at any time, ``container`` adds what runs and what verbs ask. What runs is put
together in ``assembly``, by ``creation`` and by ``recover`` alike, lives in ``running``, and ends in ``ending``;
``forgetting`` removes the rest.

No parsing of command lines and no printing: that is in ``commands``. No hypervisor by name: that is in ``backends``.
"""
