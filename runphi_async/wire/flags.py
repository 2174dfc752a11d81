# SPDX-License-Identifier: Apache-2.0
"""The flags in the first byte of an ATTACH frame. Loaded by the thin client only when a console is shown."""

TERMINAL = 1


STDIN = 2


FORWARD = 4


#: the byte behind the flags is the escape key
ESCAPE = 8


#: an `attach`: it is told of others, and marks what runPHI says
PEOPLE = 16


SAFE = 64
