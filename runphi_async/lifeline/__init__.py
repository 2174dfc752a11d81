# SPDX-License-Identifier: Apache-2.0
"""The init process of a container: the table of its descriptors, its command line, what it leaves written.

Drivers and containers both hold on to it. Who spawns it and who is told of its end is in ``container``.
"""
