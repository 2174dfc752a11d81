# SPDX-License-Identifier: Apache-2.0
"""Where a console's bytes come from when it is no FIFO: ptys, serial ports, sockets, commands, shared memory.

``base`` says what a source is; each module says what a crash can cost. Hub, journal and logs are in
``consoles.streams``; the layouts in shared memory are in ``consoles.sharedmem``.
"""
