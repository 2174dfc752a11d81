# SPDX-License-Identifier: Apache-2.0
"""The words between the init of a Linux guest and its driver, whatever carries them: a port, XenStore, the console.

The init says that it is there (``init``, ``ready``), answers (``echo``), tells how many bytes its process printed
(``written``) and how that ended (``exit``), or why it cannot run (``error``). It is told ``signal``, ``winsize``,
``eof`` and ``echo``. A next supervisor hears again what an earlier one acted on; ``backends/guest/init`` has the other
end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runphi_async import digits

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.ending import Ending

#: Any of them says that the kernel has come as far; an older init does not say ``init``.
_WORDS: Final = frozenset(("init", "ready", "error", "written", "exit", "echo"))
_ERROR_MAX: Final = 400


class InitWords:
    """What one guest's init has said so far.

    :ivar reached: the guest's kernel has come as far as our init.
    :ivar answers: that init answers to ``echo``.
    :ivar echo: what it answered last.
    :ivar written: how many bytes its process printed.
    :ivar exit: the process's exit code.
    :ivar error: why the process cannot be run.
    """

    def __init__(self) -> None:
        self.reached = False
        self.answers = False
        self.echo = ""
        self.written = 0
        self.exit: int | None = None
        self.error: str | None = None

    def word(self, line: bytes) -> str:
        """Hear a line; return its word when it is news, "" when it is not."""
        word, _, rest = line.decode("utf-8", "replace").partition(" ")
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


class InitChannel:
    """Acts on what the init says, and tells it things.

    :param ending: who is told how the process ended.
    :param send: carries a line to the init.
    :ivar replaying: what is heard now, an earlier supervisor has heard before; people are not told twice.
    """

    def __init__(self, ending: Ending, send: Callable[[str], None]) -> None:
        self.said = InitWords()
        self.replaying = False
        self._ending = ending
        self._send = send

    def hear(self, line: bytes) -> None:
        """Hear a line, and act on it."""
        self.act(self.said.word(line), self.said)

    def act(self, word: str, said: InitWords) -> None:
        """Act on a word that is news."""
        told = self._ending.told
        if told is None:
            return
        if word == "exit":
            told.done(said.written)
        elif word == "error" and not self.replaying:
            told.say(said.error or "")

    async def deliver(self, signal: int) -> bool:
        """Have the init pass a signal to the container's process."""
        self._send(f"signal {signal}")
        return True

    def unheard(self) -> float | None:
        """Return None: whether it has taken it, nobody can know."""
        return None

    def ask(self, word: str) -> None:
        """Have it say a word again, behind all that it was told before."""
        self._send(f"echo {word}")

    def resize(self, rows: int, cols: int) -> None:
        """Tell it how large the terminal is."""
        self._send(f"winsize {rows} {cols}")

    def end_of_input(self, total: int) -> None:
        """Tell it that nothing is typed behind so many bytes; the number keeps the word from overtaking them."""
        self._send(f"eof {total}")
