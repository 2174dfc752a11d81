# SPDX-License-Identifier: Apache-2.0
"""What was heard of one VMM and of its guest's init, line by line. A next supervisor hears all of it again."""

from __future__ import annotations

from typing import Final

import msgspec

from runphi_async import digits

#: Words of a guest's init. Any of them says that the kernel has come as far; an older one does not say ``init``.
_WORDS: Final = frozenset(("init", "ready", "error", "written", "exit", "echo"))
_ERROR_MAX: Final = 400


class Heard:
    """Both channels' evidence.

    :ivar events: (name, data) in the order QEMU sent them.
    :ivar reached: the guest's kernel has come as far as our init.
    :ivar answers: that init answers to ``echo``.
    :ivar echo: what it answered last.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.reached = False
        self.answers = False
        self.echo = ""
        self.written = 0
        self.exit: int | None = None
        self.error: str | None = None

    def event(self, line: bytes) -> str:
        """Hear a line of QEMU; return the event's name, "" when it is none."""
        try:
            message = msgspec.json.decode(line, type=dict[str, object])
        except msgspec.MsgspecError:
            return ""  # a line cut short by QEMU's death
        name, data = message.get("event"), message.get("data")
        if not isinstance(name, str):
            return ""
        self.events.append((name, data if isinstance(data, dict) else {}))
        return name

    def word(self, line: bytes) -> str:
        """Hear a line of the guest's init; return its word when it is news, "" when it is not."""
        word, _, rest = line.decode("ascii", "replace").partition(" ")
        number = digits.whole(rest)
        if word in _WORDS:
            self.reached = True
        if word == "written" and number is not None:
            self.written = number
        elif word == "exit" and number is not None and self.exit is None:
            self.exit = number & 0xFF
        elif word == "error" and self.error is None:
            self.error = rest[:_ERROR_MAX]
        elif word == "echo":
            self.echo = rest
        elif word == "init":
            self.answers = True
        else:
            return ""
        return word

    @property
    def started(self) -> bool:
        """Whether the guest was ever let go."""
        return any(name == "RESUME" for name, _ in self.events)
