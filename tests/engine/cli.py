# SPDX-License-Identifier: Apache-2.0
"""Engines with docker's command line: what the tests of podman and docker share.

Each has its own store, state and cgroup; what it leaves elsewhere on the machine is taken away at the end unless it was
there before.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
from typing import TYPE_CHECKING, ClassVar, Final

import pexpect

from runphi_async.testing.containerd import RUNPHI, EngineError, PrivateEngine
from tests.engine.harness import ANSWER, INMATE, Piped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

DEMO: Final = "runphi/demo"
BUSYBOX: Final = "runphi/busybox"
#: name under which the engine knows this project's runtime
OURS: Final = "runphi"


class CommandLine(PrivateEngine):
    """podman or docker."""

    program: ClassVar[str]
    #: what must be installed beside it
    daemon: ClassVar[str]
    #: files and directories it makes outside its own, the inner ones first
    traces: ClassVar[Sequence[Path]] = ()

    def __init__(self, store: Path, run: Path, namespace: str, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__(store, run, namespace, env=env)
        self._numbers = itertools.count(1)
        self._open: list[pexpect.spawn | Piped] = []
        self._absent = [path for path in self.traces if not path.exists()]

    def command(self, *args: str) -> list[str]:
        """The full command line of a call."""
        raise NotImplementedError

    @property
    def client_env(self) -> dict[str, str]:
        """Environment of the client, and of ``runphi`` called by a person."""
        return {**self.env, "TERM": "xterm"}

    def call(self, *args: str, timeout: float = 60.0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the client to its end without a terminal."""
        return subprocess.run(
            self.command(*args),
            env=self.client_env,
            timeout=timeout,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    def must(self, *args: str, timeout: float = 60.0) -> str:
        """Runs the client, returns what it printed and raises when it failed."""
        done = self.call(*args, timeout=timeout)
        if done.returncode:
            raise EngineError(f"cannot run {self.program} {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def spawn(self, *args: str, size: tuple[int, int] = (24, 80)) -> pexpect.spawn:
        """Starts the client on a pseudo terminal of the given rows and columns."""
        words = self.command(*args)
        child = pexpect.spawn(words[0], words[1:], env=self.client_env, dimensions=size, timeout=ANSWER, echo=False)
        child.delaybeforesend = None
        self._open.append(child)
        return child

    def pipe(self, *args: str) -> Piped:
        """Starts the client with pipes as its stdin and stdout."""
        child = Piped(self.command(*args), self.client_env)
        self._open.append(child)
        return child

    def runphi(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Calls the runtime itself, as a person would."""
        return subprocess.run(
            [str(RUNPHI), *args], env=self.client_env, capture_output=True, text=True, timeout=ANSWER, check=False
        )

    def name(self, stem: str = "c") -> str:
        """A container name no other test uses."""
        return f"{stem}-{next(self._numbers)}"

    def run_args(
        self, image: str, name: str, *command: str, runtime: str = OURS, options: Sequence[str] = ()
    ) -> list[str]:
        """Arguments of ``run`` in the foreground, without a network."""
        network = () if any(word.startswith("--net") for word in options) else ("--network=none",)
        placed = ("--runtime", runtime, "--cgroup-parent", f"/{self.namespace}", "--name", name)
        return ["run", *placed, *network, *options, image, *command]

    def guest_args(self, name: str, *options: str) -> list[str]:
        """Arguments of ``run`` for the demo guest."""
        env = [word for key, value in INMATE.items() for word in ("-e", f"{key}={value}")]
        return self.run_args(DEMO, name, options=[*env, *options])

    def inspect(self, name: str, template: str) -> str:
        """One value of ``inspect``."""
        return self.must("inspect", "--format", template, name).strip()

    def status(self, name: str) -> str:
        """What the engine thinks of a container."""
        return self.inspect(name, "{{.State.Status}}")

    def version(self) -> str:
        """Version of the client."""
        found = re.search(r"\d+\.\d+\S*", subprocess.check_output([self.program, "--version"], text=True))
        assert found
        return found[0].rstrip(",")

    def containers(self) -> list[str]:
        """Ids of all containers."""
        return self.must("ps", "-aq").split()

    def remove_containers(self) -> None:
        """Kills and removes every container."""
        for container in self.containers():
            self.call("rm", "--force", "--volumes", container)

    def strays(self) -> list[str]:
        """Processes of containers that should not be there when no container is."""
        known = self.daemons()
        return [f"{pid}: {words}" for pid, words in self.processes() if pid not in known and "guardian" not in words]

    def daemons(self) -> set[int | None]:
        """Processes that serve all containers."""
        return {self.supervisor_pid()}

    def sweep(self) -> None:
        """Ends what a test left open and removes its containers."""
        for child in self._open:
            child.close(force=True)
        self._open.clear()
        self.remove_containers()

    def erase(self) -> None:
        """Takes away what was not there before; what has got other content meanwhile stays."""
        for path in self._absent:
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
