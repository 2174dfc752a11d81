# SPDX-License-Identifier: Apache-2.0
"""The flags in the first byte of an ATTACH frame. Loaded by the thin client only when a console is shown."""

#: the guest's console is a terminal: the person's is made raw, and its size is told
TERMINAL = 1
#: what is typed, or comes in at stdin, goes to the guest
STDIN = 2
#: a `run`: signals are the container's
FORWARD = 4
#: the byte behind the flags is the escape key
ESCAPE = 8
#: an `attach`: it is told of others, and marks what runPHI says
PEOPLE = 16
#: control sequences are shown as text
SAFE = 64
