# SPDX-License-Identifier: Apache-2.0
"""The conversations: what quickstart says to each kind of guest by itself, and what has to be answered."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Final

from runphi_async.testing.containerd import RUNPHI, EngineError, PrivateContainerd
from runphi_async.testing.quickstart.screen import Shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

DEMO_ARGS: Final = ("--env", "INMATE=/boot/inmate.elf", "runphi/demo:latest")
#: by what a machine that is emulated itself multiplies the two times below
PATIENCE: Final = float(os.environ.get("RUNPHI_PATIENCE") or 1)
#: longest time one answer of a guest may take; software emulation on a busy machine is slow
ANSWER: Final = 60.0 * PATIENCE
#: longest time all conversations may take together, and what each gets even so: "about a minute" in all
WHOLE: Final = 80.0 * PATIENCE
LEAST: Final = 10.0


class CheckFailure(Exception):
    """Raised when a guest answers something else than it should, or nothing.

    :ivar late: it did not answer in time.
    """

    def __init__(self, text: str, *, late: bool = False) -> None:
        super().__init__(text)
        self.late = late


def cell_args(inmate: Path) -> tuple[str, ...]:
    """The arguments of ``ctr`` for a cell on the simulated board."""
    return (
        *("--annotation", "org.runphi.backend=jailhouse"),
        *("--annotation", "org.runphi.console-port=port1"),
        *("--env", f"INMATE=host:{inmate}"),
        "runphi/demo:latest",
    )


def run_args(*args: str, tty: bool) -> list[str]:
    """The arguments of ``ctr`` that run a container with this checkout's runtime."""
    return ["run", "--rm", *(["-t"] if tty else []), "--runc-binary", str(RUNPHI), *args]


class Stage:
    """Where conversations take place.

    :param show: print the conversation as it goes.
    """

    def __init__(self, engine: PrivateContainerd, *, show: bool) -> None:
        self.engine = engine
        self.show = show
        self._until = time.monotonic() + WHOLE
        self._open: list[Client] = []

    def client(self, *args: str, tty: bool) -> Client:
        """Starts ``ctr run``; it is ended by :meth:`clear`."""
        patience = min(ANSWER, max(LEAST, self._until - time.monotonic()))
        client = Client(self.engine, run_args(*args, tty=tty), patience, Shown(mute=not self.show), tty=tty)
        self._open.append(client)
        return client

    def said(self) -> str:
        """What the clients have printed, errors included."""
        return "\n".join(client.text() for client in self._open)

    def clear(self) -> None:
        """Ends clients and containers, in whatever state they are."""
        unfinished = [client for client in self._open if not client.ended]
        for client in self._open:
            client.close()
        self._open.clear()
        if unfinished:
            with contextlib.suppress(EngineError, subprocess.TimeoutExpired):
                self.engine.remove_containers()


class Client:
    """A ``ctr run`` on a pseudo terminal of its own or on a pipe, driven like a person would."""

    def __init__(
        self, engine: PrivateContainerd, args: Sequence[str], patience: float, shown: Shown, *, tty: bool
    ) -> None:
        self._patience = patience
        self._shown = shown
        self._seen = b""
        self._all = b""
        self.ended = False
        self._begun = time.monotonic()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed with the client
        command, env = engine.command(*args), engine.client_env
        if tty:
            self._pid, self._fd = pty.fork()
            if self._pid == 0:
                os.execvpe(command[0], command, env)
        else:
            self._fd, inner = os.pipe()
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=inner, stderr=self._errors, start_new_session=True
            )
            os.close(inner)
            self._pid = process.pid
            process.returncode = 0  # it is reaped below, by its pid, as the other kind is

    def text(self) -> str:
        """All that was printed."""
        self._errors.seek(0)
        return (self._all[-4096:] + self._errors.read(4096)).decode(errors="replace")

    def _read(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([self._fd], [], [], left)[0]:
            raise CheckFailure(f"no answer for {self._patience:.0f} s; seen so far: {self._seen[-300:]!r}", late=True)
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO is how a pty says that the other side closed
            data = b""
        self._seen += data
        self._all = (self._all + data)[-65536:]
        self._shown.feed(data)
        return bool(data)

    def expect(self, pattern: bytes) -> float:
        """Waits until the pattern was seen; returns the seconds since the start."""
        deadline = time.monotonic() + self._patience
        while not re.search(pattern, self._seen):
            if not self._read(deadline):
                raise CheckFailure(f"ended without {pattern!r}; seen: {self._seen[-300:]!r}")
        return time.monotonic() - self._begun

    def type(self, line: str) -> None:
        """Types a line."""
        self._seen = b""
        self._shown.typed(line)
        os.write(self._fd, line.encode() + b"\r")

    def finish(self, code: int) -> bytes:
        """Waits for the end, which must have this exit code; returns what was printed since the last line typed."""
        deadline = time.monotonic() + self._patience
        while self._read(deadline):
            pass
        self._shown.end()
        self.ended = True
        got = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if got != code:
            raise CheckFailure(f"exit code is {got}, should be {code}; seen: {self.text()[-300:]!r}")
        return self._seen

    def close(self) -> None:
        """Ends the client if it still runs."""
        self._shown.end()
        os.close(self._fd)
        self._errors.close()
        if not self.ended:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)


def _demo(stage: Stage) -> str:
    client = stage.client(*DEMO_ARGS, "demo", "/x", tty=True)
    first = client.expect(rb"\S")
    client.expect(rb"(?is)runphi.*\n> ")
    client.type("hello quickstart")
    client.expect(rb"hello quickstart(?s:.*)\n> ")
    client.type("exit 3")
    client.finish(3)
    return f"first byte after {first * 1000:.0f} ms, echo, exit code 3"


def _words(stage: Stage, name: str, script: str, code: int, wanted: list[bytes], *env: str) -> None:
    client = stage.client(*env, "runphi/busybox:latest", name, "/bin/sh", "-c", script, tty=False)
    words = client.finish(code).split()
    if words != wanted:
        raise CheckFailure(f"output is {words!r}, should be {wanted!r}")


def _linux(stage: Stage) -> str:
    _words(stage, "linux", "echo hi; uname -s; exit 7", 7, [b"hi", b"Linux"], "--env", "LINUX=1")
    return "output, exit code 7"


def _plain(stage: Stage) -> str:
    _words(stage, "plain", "echo hi; exit 5", 5, [b"hi"])
    return "output, exit code 5"


class Talk:
    """One conversation.

    :ivar container: the name its container has.
    """

    def __init__(self, title: str, container: str, shown: str, run: Callable[[Stage], str]) -> None:
        self.title, self.container, self.shown, self.run = title, container, shown, run


#: what quickstart shows without a terminal and checks with --check
TALKS: Final = (
    Talk("bare-metal guest", "demo", "ctr run -t --env INMATE=/boot/inmate.elf runphi/demo:latest demo", _demo),
    Talk("Linux guest", "linux", "ctr run --env LINUX=1 runphi/busybox:latest linux sh -c …", _linux),
    Talk("plain container", "plain", "ctr run runphi/busybox:latest plain sh -c …", _plain),
)


def cell_talk(inmate: Path) -> Talk:
    """The conversation with a cell on the simulated board."""

    def run(stage: Stage) -> str:
        client = stage.client(*cell_args(inmate), "cell", "/x", tty=True)
        client.expect(rb"demo inmate in cell \"cell\", CPU 1\r")
        client.type("hello quickstart")
        client.expect(rb"> hello quickstart\r")
        client.type("exit")
        client.finish(0)
        return "greeting, answer, exit code 0"

    return Talk("cell", "cell", "ctr run -t --annotation org.runphi.backend=jailhouse … cell", run)
