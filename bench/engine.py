# SPDX-License-Identifier: Apache-2.0
"""What a person at ``ctr run -t`` notices: the time to the first byte, and the echo of a key."""

from __future__ import annotations

import itertools
import os
import pty
import select
import statistics
import time
from typing import TYPE_CHECKING, Final

from bench.measure import BenchError, in_turns
from bench.table import Row, compared

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.place import Place

BOOT_GOAL: Final = 1.5
ECHO_GOAL: Final = 1.2
#: echoes of one side before it is the other's turn
BLOCK: Final = 50
_PATIENCE: Final = 30.0
_SILENCE: Final = 0.3
_numbers = itertools.count(1)


class Terminal:
    """``ctr run -t`` on a pseudo terminal of its own."""

    def __init__(self, place: Place, runtime: str, image: str, *command: str, env: tuple[str, ...] = ()) -> None:
        engine = place.containerd()
        options = [word for pair in env for word in ("--env", pair)]
        self.name = f"b{next(_numbers)}"
        argv = engine.command("run", "--rm", "-t", "--runc-binary", runtime, *options, image, self.name, *command)
        client_env = engine.client_env
        self._begun = time.perf_counter()
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execvpe(argv[0], argv, client_env)

    def read(self) -> bytes:
        """What has come, b"" at the end."""
        if not select.select([self._fd], [], [], _PATIENCE)[0]:
            raise BenchError("a container on a terminal says nothing")
        try:
            return os.read(self._fd, 65536)
        except OSError:  # EIO is how a pty says that the other side closed
            return b""

    def first(self) -> float:
        """Milliseconds from the start of ctr to the first byte."""
        data = self.read()
        taken = time.perf_counter() - self._begun
        if not data:
            raise BenchError("a container on a terminal ended without a word")
        return taken * 1000

    def expect(self, text: bytes) -> None:
        """Reads up to ``text``."""
        seen = b""
        while text not in seen:
            data = self.read()
            if not data:
                raise BenchError(f"a container ended without {text!r}; it said {seen!r}")
            seen += data

    def settle(self) -> None:
        """Throws away what comes until nothing comes any more: the end of a line has an unknown number of bytes."""
        while select.select([self._fd], [], [], _SILENCE)[0]:
            if not self.read():
                raise BenchError("a container on a terminal ended too early")

    def write(self, data: bytes) -> None:
        """Types."""
        os.write(self._fd, data)

    def echo(self) -> float:
        """Microseconds from typing one byte to reading it."""
        begun = time.perf_counter()
        os.write(self._fd, b"x")
        data = os.read(self._fd, 64)
        taken = time.perf_counter() - begun
        if data != b"x":
            raise BenchError(f"the echo of b'x' is {data!r}")
        return taken * 1e6

    def close(self) -> None:
        """Waits for the end."""
        while self.read():
            pass
        os.close(self._fd)
        os.waitpid(self._pid, 0)


def _guest(place: Place) -> Terminal:
    return Terminal(place, place.runphi, "runphi/demo:latest", "/x", env=("INMATE=/boot/inmate.elf",))


def _plain(place: Place, command: str) -> Terminal:
    return Terminal(place, place.runc, "runphi/busybox:latest", "/bin/sh", "-c", command)


def boot(place: Place) -> list[Row]:
    """From ``ctr run -t`` to the first byte."""

    def guest() -> float:
        terminal = _guest(place)
        taken = terminal.first()
        terminal.write(b"exit 0\r")
        terminal.close()
        return taken

    def plain() -> float:
        terminal = Terminal(place, place.runc, "runphi/busybox:latest", "/bin/echo", "hello")
        taken = terminal.first()
        terminal.close()
        return taken

    candidates: dict[str, Callable[[], float]] = {"guest": guest, "plain": plain}
    medians = in_turns(8 if place.quick else 30, candidates)
    return [compared("`ctr run -t` to the first byte", medians["guest"], medians["plain"], "runc", BOOT_GOAL)]


def echo(place: Place) -> list[Row]:
    """One byte there and back, in blocks in turns."""
    guest, plain = _guest(place), _plain(place, "stty raw -echo; echo ready; exec cat")
    try:
        guest.expect(b"> ")
        guest.write(b"raw\r")
        guest.expect(b"ctrl-d ends")
        plain.expect(b"ready")
        for terminal in (guest, plain):
            terminal.settle()
        times: dict[Terminal, list[float]] = {guest: [], plain: []}
        for turn in range((600 if place.quick else 3000) // BLOCK + 1):
            for terminal, values in times.items():
                taken = [terminal.echo() for _ in range(BLOCK)]
                values += taken if turn else []
    finally:
        guest.write(b"\x04exit 0\r")
        for terminal in (guest, plain):
            place.engine.ctr("tasks", "kill", "-s", "KILL", terminal.name)
            terminal.close()
    ours, theirs = (statistics.median(values) for values in times.values())
    rows = [compared("one-byte echo through `ctr run -t`, p50", ours, theirs, "runc, `cat`", ECHO_GOAL, "µs")]
    ours, theirs = (statistics.quantiles(values, n=100)[98] for values in times.values())
    return [*rows, compared("the same, p99", ours, theirs, "runc, `cat`", None, "µs")]
