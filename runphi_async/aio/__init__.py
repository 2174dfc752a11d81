# SPDX-License-Identifier: Apache-2.0
"""How this process waits, uses threads and keeps its memory.

No word of containers, consoles or Linux's own things: those are one floor up, in ``host``.
"""
