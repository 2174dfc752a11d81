# SPDX-License-Identifier: Apache-2.0
"""What the engine tests use to drive ``ctr``: a private containerd, terminals and pipes, unique names.

``conftest.py`` makes one :class:`Engine` a session and hands it to each test through a fixture that checks
that the test left nothing behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pexpect

from runphi_async.testing.containerd import PLAIN_ENV, RUNPHI, PrivateContainerd

if TYPE_CHECKING:
    from collections.abc import Mapping

#: in /usr/sbin on Debian 12, in /usr/bin on 13
RUNC: Final = Path(shutil.which("runc", path=PLAIN_ENV["PATH"]) or "/usr/sbin/runc")
DEMO: Final = "runphi/demo:latest"
BUSYBOX: Final = "runphi/busybox:latest"
INMATE: Final = {"INMATE": "/boot/inmate.elf"}
#: what the demo guest prints when it waits for a command
PROMPT: Final = rb"> $"
BANNER: Final = rb"runPHI demo inmate, [^\r\n]+\r+\n"
#: longest time a guest may take for one answer: software emulation on two busy cores
ANSWER: Final = 40.0


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A runtime to run the same Linux scenario with: in a plain container or in a guest."""

    name: str
    binary: Path
    env: Mapping[str, str]


PLAIN_RUNC: Final = Runtime("runc", RUNC, {})
LINUX_GUEST: Final = Runtime("guest", RUNPHI, {"LINUX": "1"})
PLAIN_RUNPHI: Final = Runtime("passed-through", RUNPHI, {})


class Engine(PrivateContainerd):
    """The session's containerd with the shorthands of the tests."""

    def __init__(self, store: Path, run: Path, namespace: str, env: Mapping[str, str]) -> None:
        super().__init__(store, run, namespace, env=env)
        self._numbers = itertools.count(1)
        self._open: list[pexpect.spawn | Piped] = []

    def name(self, stem: str = "c") -> str:
        """A container name no other test uses."""
        return f"{stem}-{next(self._numbers)}"

    def run_args(
        self,
        image: str,
        name: str,
        *command: str,
        runtime: Path = RUNPHI,
        tty: bool = False,
        detach: bool = False,
        env: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
    ) -> list[str]:
        """Arguments of ``ctr run``; a container that is not detached is removed when it ends."""
        words = ["run", "-d" if detach else "--rm", "--runc-binary", str(runtime), *options]
        if tty:
            words.append("-t")
        for key, value in (env or {}).items():
            words += ["--env", f"{key}={value}"]
        return [*words, image, name, *(command or ("/x",))]

    def spawn(self, *args: str, size: tuple[int, int] = (24, 80)) -> pexpect.spawn:
        """Starts ``ctr`` on a pseudo terminal of the given rows and columns."""
        return self.spawn_command(self.command(*args), size=size)

    def spawn_command(self, command: list[str], size: tuple[int, int] = (24, 80)) -> pexpect.spawn:
        """Starts any command on a pseudo terminal."""
        child = pexpect.spawn(command[0], command[1:], env=self.client_env, dimensions=size, timeout=ANSWER, echo=False)
        child.delaybeforesend = None
        self._open.append(child)
        return child

    def pipe(self, *args: str) -> Piped:
        """Starts ``ctr`` with pipes as its stdin and stdout."""
        child = Piped(self.command(*args), self.client_env)
        self._open.append(child)
        return child

    def demo(self, name: str, *, tty: bool = True, runtime: Path = RUNPHI) -> pexpect.spawn:
        """The demo guest in the foreground on a terminal, at its prompt."""
        child = self.spawn(*self.run_args(DEMO, name, runtime=runtime, tty=tty, env=INMATE))
        child.expect(BANNER)
        child.expect(PROMPT)
        return child

    def start_detached(self, name: str) -> None:
        """Starts the demo guest with ``-d``."""
        # ctr asks for a terminal of its own even when it detaches at once
        starter = self.spawn(*self.run_args(DEMO, name, tty=True, detach=True, env=INMATE))
        assert exit_code(starter) == 0, starter.before

    def demo_detached(self, name: str) -> pexpect.spawn:
        """The demo guest started with ``-d``; returns ``ctr task attach`` on it, at its prompt."""
        self.start_detached(name)
        return self.attach(name)

    def attach(self, name: str) -> pexpect.spawn:
        """``ctr task attach`` on a demo guest, at its prompt; when it ends, ctr deletes the task and its FIFOs."""
        child = self.spawn("tasks", "attach", name)
        # the banner may have gone to the ctr that started the guest: it reads the same FIFO until it ends
        child.send(b"echo attached\r")
        child.expect(rb"\nattached\r+\n")
        child.expect(PROMPT)
        return child

    def runphi(self, *args: str, timeout: float = ANSWER) -> subprocess.CompletedProcess[str]:
        """Calls the runtime itself, as a person would."""
        return subprocess.run(
            [str(RUNPHI), *args],
            env=self.client_env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def tasks(self) -> dict[str, tuple[int, str]]:
        """Name -> pid and status of every task."""
        rows = [line.split() for line in self.must("tasks", "list").splitlines()[1:]]
        return {row[0]: (int(row[1]), row[2]) for row in rows}

    def status(self, name: str) -> str | None:
        """Status of a task, None when there is none."""
        return self.tasks().get(name, (0, None))[1]

    def delete_task(self, name: str) -> int:
        """Deletes a stopped task; returns the exit code that containerd kept for it."""
        done = self.ctr("tasks", "delete", name)
        assert done.returncode == 0, done.stderr
        found = re.search(r"exit with non-zero exit code (\d+)", done.stderr)
        return int(found[1]) if found else 0

    def metrics(self, name: str) -> dict[str, Any]:
        """What ``ctr task metrics`` reports."""
        found: dict[str, Any] = json.loads(self.must("tasks", "metrics", "--format", "json", name))
        return found

    def guests(self) -> list[int]:
        """Process ids of the virtual machines of this engine."""
        return [pid for pid, words in self.processes() if re.match(r"\S*qemu-system", words)]

    def shims(self, name: str) -> list[int]:
        """Process ids of the shim that serves a container."""
        wanted = f"-id {name} "
        return [pid for pid, words in self.processes() if "containerd-shim" in words and wanted in f"{words} "]

    def strays(self) -> list[str]:
        """Processes that should not be there when no container is; the supervisor and its guardian may."""
        known = {self.pid, self.supervisor_pid()}
        return [
            f"{pid}: {words}" for pid, words in self.processes() if pid not in known and "runphid-guardian" not in words
        ]

    def sweep(self) -> None:
        """Ends what a test left open and removes its containers."""
        for child in self._open:
            child.close(force=True)
        self._open.clear()
        self.remove_containers()


class Piped:
    """A command on pipes; stderr goes to stdout so that a failure shows why."""

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self.seen = b""

    def send(self, data: bytes) -> None:
        self._in.write(data)
        self._in.flush()

    def end_input(self) -> None:
        self._in.close()

    def _read(self, deadline: float, what: str) -> bool:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([self._out], [], [], left)[0]:
            raise AssertionError(f"no {what} in time; the last bytes were {self.seen[-300:]!r}")
        data = os.read(self._out.fileno(), 65536)
        self.seen += data
        return bool(data)

    def expect(self, pattern: bytes, timeout: float = ANSWER) -> None:
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.seen):
            assert self._read(deadline, repr(pattern)), f"ended without {pattern!r}: {self.seen[-300:]!r}"

    def finish(self, timeout: float = ANSWER) -> int:
        """Reads to the end; returns the exit code."""
        deadline = time.monotonic() + timeout
        while self._read(deadline, "end of output"):
            pass
        return self.process.wait(timeout)

    def close(self, *, force: bool = True) -> None:
        if force:
            self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self._in.close()
        self._out.close()


def exit_code(child: pexpect.spawn) -> int:
    """Waits for the end of a terminal's command; returns its exit code."""
    child.expect(pexpect.EOF)
    child.wait()
    return -int(child.signalstatus) if child.exitstatus is None else int(child.exitstatus)


def command(child: pexpect.spawn, text: bytes) -> bytes:
    """Types a command at the demo guest's prompt; returns what it printed until the next prompt."""
    child.send(text + b"\r")
    child.expect(re.escape(text) + rb"\r+\n")
    child.expect(PROMPT)
    return bytes(child.before)


def spam_lines(output: bytes) -> list[int]:
    """The numbers of the lines ``spam`` printed, in their order."""
    return [int(x) for x in re.findall(rb"line (\d{7})\r+\n", output)]
