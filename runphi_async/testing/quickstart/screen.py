# SPDX-License-Identifier: Apache-2.0
"""What quickstart prints: its own words, and a guest's so that they can be read and act on no terminal."""

from __future__ import annotations

import codecs
import os
import re
import sys
from typing import Final

from runphi_async.operations.timeline import safe

#: in front of what a guest prints
MARGIN: Final = "    | "
#: a pseudo terminal puts a carriage return of its own before the guest's
_NEWLINE: Final = re.compile("\r*\n")


class OutputGone(Exception):
    """Raised once when nobody reads any more: the pipe was closed, or the terminal hung up."""


def say(text: str) -> None:
    """Prints a line of our own."""
    write(text + "\n")


def write(text: str) -> None:
    """Prints text as it is.

    :raises OutputGone: the first time that it cannot be; from then on there is silence.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as exc:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        raise OutputGone from exc


class Shown:
    """A guest's console, shown as it comes: each of its lines behind a margin, control characters spelled out.

    :param mute: print nothing.
    """

    def __init__(self, *, mute: bool = False) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._mute = mute
        self._inside = False
        self._held = ""

    def feed(self, data: bytes) -> None:
        """Shows what came; the start of a line at once, as a prompt has no end."""
        text = self._held + self._decoder.decode(data)
        self._held = ""
        if text.endswith("\r"):  # a newline may follow
            whole, text = text, text.rstrip("\r")
            self._held = whole[len(text) :]
        lines = _NEWLINE.split(text)
        out = ""
        for number, line in enumerate(lines):
            if number:
                out += ("" if self._inside else MARGIN.rstrip()) + "\n"
                self._inside = False
            if line:
                out += ("" if self._inside else MARGIN) + safe(line)
                self._inside = True
        self._write(out)

    def typed(self, text: str) -> None:
        """Says what is typed now."""
        self.end()
        self._write(f"  > types: {safe(text)}\n")

    def end(self) -> None:
        """Begins a new line where the guest left one open."""
        self._held = ""
        if self._inside:
            self._write("\n")
            self._inside = False

    def _write(self, text: str) -> None:
        if text and not self._mute:
            write(text)
