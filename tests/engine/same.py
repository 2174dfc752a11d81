# SPDX-License-Identifier: Apache-2.0
"""Two runtimes compared: each scenario is played with runc and with this project's runtime, and both write down what
a person sees.

Only what must differ is made alike: ids, process ids, times and the runtime's own name. Both sides use the same
container name, one after the other.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runphi_async.testing.containerd import RUNPHI, wait_until
from tests.engine.cli import BUSYBOX, OURS
from tests.engine.harness import ANSWER, RUNC, exit_code
from tests.engine.harness import BUSYBOX as CTR_BUSYBOX

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence

    import pexpect

    from tests.engine.cli import CommandLine
    from tests.engine.harness import Engine

NAME: Final = "same"
#: what must differ from run to run -> what is shown in its place
DIFFERENT: Final = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*( ?[+-]\d{4}( \w+)?|Z)?"), "TIME"),
    (re.compile(r"runc-process\d+"), "PROCESS"),
    (re.compile(r"/tmp/pty\d+"), "PTY"),
    (re.compile(r"/var/tmp/podman\d+"), "FILE"),
    # docker's client says it when the error comes before it has begun to wait
    (re.compile(r'^time="TIME" level=error msg="error waiting for container: context canceled"\n', re.MULTILINE), ""),
    (re.compile(r"^Error: (runphi|runc): ", re.MULTILINE), "Error: RUNTIME: "),
)
#: a shell script that prints all of its surroundings that a runtime has a hand in
SURROUNDINGS: Final = r"""
grep -E '^(Sig[BIC]|ShdPnd|Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid|Umask|CoreDumping)' /proc/self/status
cat /proc/self/oom_score_adj; ulimit -a; umask; id; pwd; env | sort; hostname
sed -E 's/(lowerdir|upperdir|workdir)=[^, ]*/\1/g' /proc/self/mounts | sort
readlink /proc/self/ns/* | sed 's/\[.*//' ; ls /proc/self/fd | wc -l
ls -l /dev | awk '{ print $1, $NF }'; cat /proc/self/limits; cat /proc/sys/kernel/hostname
"""


def alike(text: str) -> str:
    """The text without what differs from run to run."""
    for pattern, shown in DIFFERENT:
        text = pattern.sub(shown, text)
    return text


class Side:
    """One runtime at work; keeps what was seen as pairs of a name and a value."""

    def __init__(self, runtimes: Sequence[str]) -> None:
        self.seen: list[tuple[str, Any]] = []
        self._runtimes = runtimes

    def note(self, what: str, value: object) -> None:
        """Writes down one thing."""
        self.seen.append((what, self.alike(value) if isinstance(value, str) else value))

    def alike(self, text: str) -> str:
        """The text without what differs from run to run, and without the runtime's name."""
        for name in self._runtimes:
            text = text.replace(name, "RUNTIME")
        return alike(text)

    def result(self, what: str, done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
        """Writes down how a command ended and what it said."""
        self.note(what, done.returncode)
        self.note(f"{what}: stdout", done.stdout)
        self.note(f"{what}: stderr", done.stderr)
        return done

    def typed(self, child: pexpect.spawn, *lines: tuple[bytes, bytes]) -> None:
        """Types lines at a shell's prompt, each when the answer to the one before has come; notes the answers."""
        child.expect(rb"[#$] ")
        for line, answer in lines:
            child.send(line + b"\r")
            child.expect(answer)
            self.note(line.decode(), child.after.decode())
        self.note("terminal's end", exit_code(child))


class CliSide(Side):
    """One runtime under podman or docker."""

    def __init__(self, cli: CommandLine, runtime: str) -> None:
        super().__init__((str(cli.run / "runphi"), str(RUNPHI), str(RUNC)))
        self.cli, self.runtime = cli, runtime

    @property
    def is_docker(self) -> bool:
        return self.cli.program.endswith("docker")

    def args(self, *command: str, options: Sequence[str] = ()) -> list[str]:
        """Arguments of ``run``."""
        return self.cli.run_args(BUSYBOX, NAME, *command, runtime=self.runtime, options=options)

    def run(
        self, *command: str, options: Sequence[str] = (), stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a container to its end, or in the background with the option -d."""
        return self.result("run", self.cli.call(*self.args(*command, options=options), stdin=stdin))

    def shell(self, script: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Runs a shell script in a container that is removed at its end."""
        return self.run("/bin/sh", "-c", script, options=["--rm", *options])

    def start(self, script: str = "exec sleep 1000", *options: str) -> None:
        """Starts a container in the background; a script says "ready" when it is, if it can be waited for."""
        done = self.cli.call(*self.args("/bin/sh", "-c", script, options=["-d", *options]))
        self.note("start", (done.returncode, self.alike(done.stderr)))
        if "echo ready" in script:
            wait_until(lambda: "ready" in self.cli.call("logs", NAME).stdout, ANSWER, "the container's word")

    def do(self, *args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """One call of the client."""
        return self.result(" ".join(args), self.cli.call(*args, stdin=stdin))

    def state(self) -> None:
        """Writes down what the engine knows of the container; "stopped" is podman's word for one it has to clean up."""
        wait_until(lambda: self.cli.status(NAME) != "stopped", ANSWER, "the engine to know that it has ended")
        shown = "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}} {{.State.OOMKilled}} {{.RestartCount}}"
        self.note("state", self.cli.inspect(NAME, shown))

    def settle(self, status: str) -> None:
        """Waits until the engine has seen a change."""
        wait_until(lambda: self.cli.status(NAME) == status, ANSWER, f"the container to be {status}")

    def limits(self) -> None:
        """Writes down the limits that the kernel keeps for the container."""
        pid = int(self.cli.inspect(NAME, "{{.State.Pid}}"))
        self.note("limits", kernel_limits(pid))


class CtrSide(Side):
    """One runtime under containerd."""

    def __init__(self, engine: Engine, runtime: Path) -> None:
        super().__init__((str(RUNPHI), str(RUNC)))
        self.engine, self.runtime = engine, runtime

    def args(self, *command: str, options: Sequence[str] = (), detach: bool = False, tty: bool = False) -> list[str]:
        """Arguments of ``ctr run``."""
        return self.engine.run_args(
            CTR_BUSYBOX, NAME, *command, runtime=self.runtime, options=tuple(options), detach=detach, tty=tty
        )

    def run(self, *command: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Runs a container to its end."""
        return self.result("run", self.engine.ctr(*self.args(*command, options=options)))

    def start(self, *command: str, options: Sequence[str] = ()) -> None:
        """Starts a container in the background."""
        words = self.args(*(command or ("/bin/sleep", "1000")), options=("--null-io", *options), detach=True)
        self.result("start", self.engine.ctr(*words))

    def task(self, *args: str) -> subprocess.CompletedProcess[str]:
        """One call of ``ctr tasks``."""
        return self.result(" ".join(args), self.engine.ctr("tasks", *args))

    def settle(self, status: str) -> None:
        """Waits until containerd has seen a change."""
        wait_until(lambda: self.engine.status(NAME) == status, ANSWER, f"the container to be {status}")
        self.note("state", status)


def kernel_limits(pid: int) -> dict[str, str]:
    """The limits in the cgroup of a process, in every hierarchy."""
    files = (
        "memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.memsw.limit_in_bytes", "cpu.shares",
        "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpuset.cpus", "pids.max", "memory.max", "memory.low", "cpu.max",
        "cpu.weight", "devices.list",
    )  # fmt: skip
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        top = Path("/sys/fs/cgroup", controllers.split(",")[0].removeprefix("name=") or "unified")
        for file in files:
            if (top / path.lstrip("/") / file).is_file():
                found[file] = (top / path.lstrip("/") / file).read_text()
    return found


def play(
    scenario: Callable[[Any], None], sides: Sequence[Side], clear: Callable[[], None]
) -> list[list[tuple[str, Any]]]:
    """Plays a scenario with each runtime; returns what was seen with each."""
    for side in sides:
        try:
            scenario(side)
        finally:
            clear()
    return [side.seen for side in sides]


def cli_sides(cli: CommandLine) -> tuple[CliSide, CliSide]:
    """Both runtimes under podman or docker."""
    return CliSide(cli, OURS), CliSide(cli, "runc")


def ctr_sides(engine: Engine) -> tuple[CtrSide, CtrSide]:
    """Both runtimes under containerd."""
    return CtrSide(engine, RUNPHI), CtrSide(engine, RUNC)
