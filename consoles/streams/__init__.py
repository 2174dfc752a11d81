# SPDX-License-Identifier: Apache-2.0
"""From a source to everybody who listens: FIFO, journal, hub, input queue, sinks, logs, rules, screen.

Where bytes come from, when it is no FIFO, is in ``consoles.sources``. Whose console it is, nobody knows here.
"""
