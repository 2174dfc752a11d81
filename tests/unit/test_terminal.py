# SPDX-License-Identifier: Apache-2.0
"""Ptys for engines: raw, sized, nobody's controlling terminal."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from consoles.streams import terminal
from consoles.streams.terminal import Size

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    ends = terminal.open_pty(Size(31, 99))
    yield ends
    for fd in ends:
        os.close(fd)


def test_the_size_is_told_and_can_be_changed_from_the_other_end(pty: tuple[int, int]) -> None:
    master, slave = pty
    assert terminal.get_size(slave) == terminal.get_size(master) == Size(31, 99)
    terminal.set_size(master, Size(50, 132))
    assert terminal.get_size(slave) == Size(50, 132)


@pytest.mark.parametrize("size", [None, Size(0, 0), Size(0, 80), Size(24, 0)])
def test_a_size_nobody_told(size: Size | None) -> None:
    master, slave = terminal.open_pty(size)
    assert terminal.get_size(master) == Size(0, 0)
    os.close(master)
    os.close(slave)


def test_every_byte_passes_untouched_both_ways(pty: tuple[int, int]) -> None:
    master, slave = pty
    every = bytes(range(256))
    os.write(master, every)
    assert os.read(slave, 1000) == every
    os.write(slave, every)
    assert os.read(master, 1000) == every  # no echo, no CR before NL
    assert not select.select([master, slave], [], [], 0)[0]


def test_the_slave_is_raw(pty: tuple[int, int]) -> None:
    iflag, oflag, _, lflag, *_ = termios.tcgetattr(pty[1])
    assert not iflag & (termios.ICRNL | termios.IXON | termios.ISTRIP)
    assert not oflag & termios.OPOST
    assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)


def test_nobody_gets_a_controlling_terminal() -> None:
    script = (
        "import os\n"
        "from consoles.streams import terminal\n"
        "os.setsid()\n"
        "terminal.open_pty(None)\n"
        "try:\n"
        "    os.open('/dev/tty', os.O_RDWR)\n"
        "except OSError as exc:\n"
        "    print(exc.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "6\n"  # ENXIO: no such terminal


def test_descriptors_without_a_terminal_say_so() -> None:
    with open(os.devnull) as null, pytest.raises(OSError, match="ioctl"):
        terminal.get_size(null.fileno())
