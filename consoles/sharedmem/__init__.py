# SPDX-License-Identifier: Apache-2.0
"""Memory that two sides share: regions, devices, rings and queues, and their files.

Layout and order of accesses only. What makes a console of one is in ``consoles.sources``.
"""
