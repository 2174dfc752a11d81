# SPDX-License-Identifier: Apache-2.0
"""Terminal settings the supervisor makes on the ptys it owns (a person's own terminal is the client's business)."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import tty
from typing import NamedTuple


class Size(NamedTuple):
    """Rows and columns of a terminal, in characters."""

    rows: int
    cols: int


def open_pty(size: Size | None) -> tuple[int, int]:
    """Make a pty pair whose slave passes every byte untouched; return (master, slave).

    The slave stands in for a guest's UART: left cooked it would echo twice, turn ctrl-c into a signal and
    newlines into pairs (docs/reference/engines.md). Neither end becomes anybody's controlling terminal.
    """
    master, slave = os.openpty()
    make_raw(slave)
    if size is not None and size.rows and size.cols:
        set_size(master, size)
    return master, slave


def make_raw(fd: int) -> None:
    """Switch all input and output processing of a terminal off."""
    tty.setraw(fd, termios.TCSANOW)


def set_size(fd: int, size: Size) -> None:
    """Tell a terminal how large it is shown. Source: ioctl_tty(2), TIOCSWINSZ."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.cols, 0, 0))


def get_size(fd: int) -> Size:
    """Return how large a terminal is shown (0 × 0: never told)."""
    rows, cols, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    return Size(rows, cols)
