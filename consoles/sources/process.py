# SPDX-License-Identifier: Apache-2.0
"""A console that a command prints, such as ``jailhouse console -f``: started again whenever it has ended.

The command has a session of its own and dies with the supervisor (``setpriv --pdeathsig``), so none is left behind
when that is killed. What a crash costs: what the command had printed and we had not stored, a pipe full (64 KiB) at
most; what it printed before may come again when the next supervisor starts it, for commands that begin with the past.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Final

from consoles.errors import SourceError
from consoles.sources.link import Backoff, Link, Returning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Seconds a command has to end after SIGTERM, and after SIGKILL: one stuck in the kernel cannot be waited for.
TERM_GRACE: Final = 2.0
KILL_GRACE: Final = 2.0
#: Seconds between the end of a command's output and its own end, or the other way round.
LINGER: Final = 0.5
#: Bytes of its stderr that are kept: enough for the reason.
STDERR_MAX: Final = 4096
#: A command that fails is started again after a second at first, later twice a minute.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0


class Command:
    """One run of the command; a ``Connection`` of ``consoles.sources.link``."""

    def __init__(
        self, argv: Sequence[str], stdin: bool, received: Callable[[bytes], None], lost: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._errors = b""
        self._exited = asyncio.Event()
        with contextlib.ExitStack() as theirs:
            ours: list[int] = []

            def pipe(mine: int) -> int:
                ends = os.pipe2(os.O_CLOEXEC)
                ours.append(ends[mine])
                os.set_blocking(ends[mine], False)
                theirs.callback(os.close, ends[1 - mine])
                return ends[1 - mine]

            try:
                self._process = subprocess.Popen(
                    [*tether(), *argv],
                    stdin=pipe(1) if stdin else subprocess.DEVNULL,
                    stdout=pipe(0),
                    stderr=pipe(0),
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as exc:
                for fd in ours:
                    os.close(fd)
                raise SourceError(f"cannot run {argv[0]}: {exc.strerror}") from exc
        self._stderr = ours[-1]
        self._link = Link(ours[-2], ours[0] if stdin else -1, received, lost)
        try:
            # Our own child, not waited for yet: its pid cannot be anybody else's.
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for fd in ours:
                os.close(fd)
            raise
        self._late: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._stderr, self._read_stderr)
        self._loop.add_reader(self._pidfd, self._ended)

    def _read_stderr(self) -> None:
        try:
            data = os.read(self._stderr, STDERR_MAX)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._stderr)
        self._errors = (self._errors + data)[-STDERR_MAX:]

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        # Whatever it left behind in its session's group goes with it, while the number is still its own: not reaped.
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._exited.set()
        self._late = self._loop.call_later(LINGER, self._link.lose, "it has ended")

    def _signal(self, number: int) -> None:
        if not self._exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    @property
    def reason(self) -> str:
        """How the command ended and the last it said about it."""
        code = self._process.returncode
        if code is None:
            how = self._link.reason or "it does not end"
        elif code < 0:
            how = f"it was ended by signal {-code}"
        else:
            how = f"it ended with status {code}"
        said = [line.strip() for line in self._errors.decode("utf-8", "replace").splitlines() if line.strip()]
        return f"{how}: {said[-1]}" if said else how

    def pause(self) -> None:
        """Let the command wait with its output."""
        self._link.pause()

    def resume(self) -> None:
        """Read the command's output."""
        self._link.resume()

    def write(self, data: bytes) -> int:
        """Write to the command's stdin; without one the bytes go nowhere."""
        return self._link.write(data)

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once the command's stdin takes more."""
        self._link.when_writable(wake)

    async def close(self) -> None:
        """End the command: by asking, then by force."""
        if self._link.reason:  # its output has ended: it is about to end as well
            await self._wait(LINGER)
        self._signal(signal.SIGTERM)
        if not await self._wait(TERM_GRACE):
            self._signal(signal.SIGKILL)
            await self._wait(KILL_GRACE)
        if self._late is not None:
            self._late.cancel()
        with contextlib.suppress(OSError):
            self._errors = (self._errors + os.read(self._stderr, STDERR_MAX))[-STDERR_MAX:]
        for fd in (self._stderr, self._pidfd):
            self._loop.remove_reader(fd)
            os.close(fd)
        await self._link.close()

    async def _wait(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exited.wait()
        return self._exited.is_set()


def tether() -> tuple[str, ...]:
    """Return the words that make a command die with us, where util-linux knows them (2.38 and later)."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv is not None else ()


class ProcessSource(Returning):
    """What a command prints.

    :param argv: the command; never a shell line.
    :param stdin: whether the command reads what is typed.
    """

    def __init__(self, argv: Sequence[str], *, stdin: bool = False, backoff: Backoff | None = None) -> None:
        super().__init__(backoff or Backoff(FIRST_PAUSE, LONGEST_PAUSE))
        self._argv = tuple(argv)
        self._stdin = stdin

    async def _connect(self) -> Command:
        if shutil.which(self._argv[0]) is None:
            raise SourceError(f"cannot run {self._argv[0]}: there is no such program in PATH")
        return Command(self._argv, self._stdin, self._deliver, self._lost.set)
