# SPDX-License-Identifier: Apache-2.0
"""The second half of bin/quickstart: the demo guest's live console, or the unattended check of it.

Started by the shell script as ``python -m runphi_async.testing.quickstart STORE [--check] [--backend jailhouse-sim]``
once everything is installed and built. Whatever it starts ends with it.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runphi_async.testing.cellboard import CellBoard
from runphi_async.testing.containerd import RUNPHI, EngineError, PrivateContainerd
from runphi_async.testing.fake_jailhouse import inmates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

RUN: Final = Path("/run/runphi-quickstart")
NAMESPACE: Final = "runphi-quickstart"
DEMO_ARGS: Final = ("--env", "INMATE=/boot/inmate.elf", "runphi/demo:latest")
#: the simulated board, and a cell on it
SIM: Final = Path("/run/runphi-quickstart-sim")
CELL_ARGS: Final = (
    *("--annotation", "org.runphi.backend=jailhouse"),
    *("--annotation", "org.runphi.console-port=port1"),
    *("--env", f"INMATE=host:{SIM}/demo.bin"),
    "runphi/demo:latest",
)
#: longest time one answer of a guest may take in the check; software emulation on a busy machine is slow
ANSWER: Final = 60.0
#: where to look when a check fails
HINTS: Final = {
    "bare-metal guest": "run bin/quickstart and look at the console; logs are in /var/log/runphi",
    "Linux guest": "run bin/prepare-guest again; it makes /var/lib/runphi/guest/vmlinux and initrd",
    "cell": f"look into {RUN}/supervisor.log and with `python -m runphi_async.testing.fake_jailhouse --dir {SIM} show`",
    "plain container": "try the same with --runc-binary /usr/sbin/runc: containers without INMATE go to runc",
}


class CheckFailure(Exception):
    """Raised when the guest answers something else than it should."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_args(*args: str, tty: bool) -> list[str]:
    """The arguments of ``ctr`` that run a container with this checkout's runtime."""
    return ["run", "--rm", *(["-t"] if tty else []), "--runc-binary", str(RUNPHI), *args]


class Terminal:
    """A ``ctr run -t`` on a pseudo terminal of its own, driven like a person would."""

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        self.seen = b""
        self.begun = time.monotonic()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], list(command), env)

    def _read(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([self._fd], [], [], left)[0]:
            raise CheckFailure(f"no answer for {ANSWER:g} s; seen so far: {self.seen[-300:]!r}")
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO is how a pty says that the other side closed
            data = b""
        self.seen += data
        return bool(data)

    def expect(self, pattern: bytes) -> float:
        """Waits until the pattern was seen; returns the seconds since the start."""
        deadline = time.monotonic() + ANSWER
        while not re.search(pattern, self.seen):
            if not self._read(deadline):
                raise CheckFailure(f"ended without {pattern!r}; seen: {self.seen[-300:]!r}")
        return time.monotonic() - self.begun

    def type(self, data: bytes) -> None:
        self.seen = b""
        os.write(self._fd, data)

    def code(self) -> int:
        """Waits for the end; returns the exit code."""
        deadline = time.monotonic() + ANSWER
        while self._read(deadline):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        os.close(self._fd)


def equal(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise CheckFailure(f"{what} is {got!r}, should be {wanted!r}")


def check_cell(engine: PrivateContainerd) -> str:
    terminal = Terminal(engine.command(*run_args(*CELL_ARGS, "cell", "/x", tty=True)), engine.client_env)
    try:
        terminal.expect(rb"demo inmate in cell \"cell\", CPU 1\r")
        terminal.type(b"hello quickstart\r")
        terminal.expect(rb"> hello quickstart\r")
        terminal.type(b"exit\r")
        equal("exit code", terminal.code(), 0)
    finally:
        terminal.close()
    return "greeting, answer, exit code 0"


def check_demo(engine: PrivateContainerd) -> str:
    terminal = Terminal(engine.command(*run_args(*DEMO_ARGS, "demo", "/x", tty=True)), engine.client_env)
    try:
        first = terminal.expect(rb"\S")
        terminal.expect(rb"(?i)runphi")
        terminal.type(b"hello quickstart\r")
        terminal.expect(rb"hello quickstart")
        terminal.type(b"exit 3\r")
        equal("exit code", terminal.code(), 3)
    finally:
        terminal.close()
    return f"first byte after {first * 1000:.0f} ms, echo, exit code 3"


def check_linux(engine: PrivateContainerd) -> str:
    words = (
        "--env",
        "LINUX=1",
        "runphi/busybox:latest",
        "linux",
        "/bin/sh",
        "-c",
        "echo hi; uname -s; exit 7",
    )
    done = engine.ctr(*run_args(*words, tty=False), timeout=ANSWER)
    equal("output", done.stdout.split(), ["hi", "Linux"])
    equal("exit code", done.returncode, 7)
    return "output, exit code 7"


def check_plain(engine: PrivateContainerd) -> str:
    words = ("runphi/busybox:latest", "plain", "/bin/sh", "-c", "echo hi; exit 5")
    done = engine.ctr(*run_args(*words, tty=False), timeout=ANSWER)
    equal("output", done.stdout.split(), ["hi"])
    equal("exit code", done.returncode, 5)
    return "output, exit code 5"


CHECKS: Final[dict[str, Callable[[PrivateContainerd], str]]] = {
    "bare-metal guest": check_demo,
    "Linux guest": check_linux,
    "plain container": check_plain,
}
CELL_CHECKS: Final[dict[str, Callable[[PrivateContainerd], str]]] = {"cell": check_cell}


def check(engine: PrivateContainerd, checks: dict[str, Callable[[PrivateContainerd], str]]) -> int:
    """Runs every check, prints a line for each; returns how many failed."""
    failures = 0
    for name, function in checks.items():
        begun = time.monotonic()
        try:
            verdict = f"ok      {function(engine)}"
        except (CheckFailure, EngineError, subprocess.TimeoutExpired) as exc:
            failures += 1
            why = str(exc)
            if isinstance(exc, subprocess.TimeoutExpired):
                why = f"no end within {ANSWER:g} s; it said {exc.stdout!r}"
            verdict = f"FAILED  {why}\n        to mend it: {HINTS[name]}"
        say(f"  {name:18}{time.monotonic() - begun:6.2f} s  {verdict}")
    return failures


def show(engine: PrivateContainerd) -> int:
    """Leaves the person in the console of the demo guest; returns the guest's exit code."""
    attach = f"RUNPHI_RUN_DIR={engine.run_dir} {RUNPHI} attach demo"
    say(f"\nThe console of a bare-metal guest. To leave: exit 0   To join from a second terminal: {attach}\n")
    command = engine.command(*run_args(*DEMO_ARGS, "demo", "/x", tty=sys.stdin.isatty()))
    code = subprocess.run(command, env=engine.client_env, check=False).returncode
    say(f"\nThe guest has ended with exit code {code}.")
    return code


def show_cell(engine: PrivateContainerd) -> int:
    """Leaves the person in the console of a cell on the simulated board; returns its exit code."""
    say("\nThe console of a cell on a simulated board: it answers every line. To leave: exit\n")
    command = engine.command(*run_args(*CELL_ARGS, "cell", "/x", tty=sys.stdin.isatty()))
    code = subprocess.run(command, env=engine.client_env, check=False).returncode
    say(f"\nThe cell has ended with exit code {code}.")
    return code


def simulate() -> tuple[CellBoard, dict[str, str]]:
    """Switches a simulated board on; returns it and the environment of its runtime."""
    shutil.rmtree(SIM, ignore_errors=True)
    SIM.mkdir(parents=True)
    board = CellBoard(SIM)
    (SIM / "demo.bin").write_bytes(inmates.image("demo"))
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in board.settings().items())
    config = SIM / "config.toml"
    config.write_text(f'[inmate]\nhost_paths = ["{SIM}"]\n[jailhouse]\n{settings}\n')
    return board, {"RUNPHI_CONFIG": str(config), "FAKE_JAILHOUSE": str(board.place.root)}


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(store: Path, *, unattended: bool, sim: bool) -> int:
    """Starts the private engine, shows or checks the demo and leaves nothing running."""
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGHUP, _interrupted)
    board, env = simulate() if sim else (None, {})
    engine = PrivateContainerd(store, RUN, NAMESPACE, env=env)
    code = 1
    try:
        engine.start()
        engine.remove_containers()
        taken = engine.import_images(sorted((store / "images").glob("*.tar")))
        if taken:
            say(f"       imported {', '.join(archive.stem for archive in taken)}")
        if unattended:
            code = check(engine, CELL_CHECKS if sim else CHECKS)
        else:
            code = show_cell(engine) if sim else show(engine)
    except EngineError as exc:
        say(f"quickstart: {exc}\n  to mend it: end the containerd named there or remove {RUN}, then try again")
    except KeyboardInterrupt:
        say("\nquickstart: interrupted, cleaning up")
        code = 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        left = engine.stop()
        if board is not None:
            board.close()
            shutil.rmtree(SIM, ignore_errors=True)
    for thing in left:
        say(f"quickstart: was left over and is removed now: {thing}")
    if unattended:
        code = int(bool(code or left))
        say("quickstart: something is wrong" if code else "quickstart: all is well")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), unattended="--check" in sys.argv[2:], sim="jailhouse-sim" in sys.argv[2:]))
