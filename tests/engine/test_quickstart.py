# SPDX-License-Identifier: Apache-2.0
"""bin/quickstart as people and programs call it: with and without a terminal, interrupted, and on a QEMU that fails.

Each test runs the script itself, under a name of its own, and looks that nothing is left of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pexpect
import pytest

from runphi_async.testing.containerd import CHECKOUT, PLAIN_ENV, PrivateContainerd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

SCRIPT: Final = str(CHECKOUT / "bin" / "quickstart")
#: seconds for a whole conversation with guests under emulation on a busy machine
PATIENCE: Final = 200.0
SIM: Final = ("--backend", "jailhouse-sim")
#: what may be on a terminal: no control characters but line ends
ACTING: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Quick:
    """One name for quickstarts, which keeps images from one to the next."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.store, self.run_dir = Path("/var/lib", name), Path("/run", name)
        passed = {key: value for key, value in os.environ.items() if key.startswith("RUNPHI_")}
        self.people: list[Any] = []
        self.env = {**PLAIN_ENV, **passed, "RUNPHI_QUICKSTART": name, "TERM": "xterm"}

    @property
    def report(self) -> Path:
        return self.store / "report.txt"

    def call(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **more}
        env = {**self.env, **options.pop("env", {})}
        prefix = options.pop("prefix", ())
        return subprocess.run(
            [*prefix, SCRIPT, *words], env=env, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE, check=False,
            **options,
        )  # fmt: skip

    def popen(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCRIPT, *words], env=self.env, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, text=True, **more
        )

    def person(self, *words: str) -> Any:
        """Somebody at a terminal, who sees the prompt of the guest."""
        child = pexpect.spawn(SCRIPT, list(words), env=self.env, timeout=PATIENCE, encoding="utf-8")
        self.people.append(child)
        child.expect("To leave: [^\n]*ctrl-c")
        child.expect("CPU 1\r" if words else "> $")
        return child

    def left(self) -> list[str]:
        """What is left of a quickstart that has ended."""
        engine = PrivateContainerd(self.store, self.run_dir, self.name)
        found = [f"{pid}: {words}" for pid, words in engine.processes()] + [str(path) for path in engine.cgroups()]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [line for line in mounts if f"{self.run_dir}/" in line or f"{self.store}/" in line]
        board = self.run_dir.with_name(f"{self.name}-sim")
        return found + ([str(board)] if board.exists() else [])

    def close(self) -> None:
        engine = PrivateContainerd(self.store, self.run_dir, self.name)
        engine.clean()
        for path in (self.store, self.run_dir):
            shutil.rmtree(path, ignore_errors=True)
        self.run_dir.with_name(f"{self.name}.lock").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def named() -> Iterator[Quick]:
    quick = Quick(f"rpq{os.getpid()}")
    yield quick
    quick.close()


@pytest.fixture
def quick(named: Quick) -> Iterator[Quick]:
    named.report.unlink(missing_ok=True)
    yield named
    for person in named.people:
        if not person.closed:
            person.kill(signal.SIGTERM)  # a test that failed half way
            person.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=30)
            person.close(force=True)
    named.people.clear()
    left = named.left()
    for line in left:
        with contextlib.suppress(ValueError, ProcessLookupError):
            os.kill(int(line.partition(":")[0]), signal.SIGKILL)
    assert not left, "left over:\n" + "\n".join(left)


# Section: nobody is there


def test_without_a_terminal_it_holds_the_conversation_and_shows_it(quick: Quick) -> None:
    begun = time.monotonic()
    done = quick.call()
    assert done.returncode == 0, done.stdout
    assert time.monotonic() - begun < 150
    assert not ACTING.search(done.stdout)
    lines = done.stdout.splitlines()
    at = lines.index("  > types: hello quickstart")
    assert lines[at - 1] == "    | > "
    assert lines[at + 1 : at + 3] == ["    | hello quickstart", "    | unknown command, try help"]
    assert "  > types: exit 3" in lines
    assert lines.index("    | Linux") > at
    for title in ("bare-metal guest", "Linux guest", "plain container"):
        assert re.search(rf"^  {title} +[\d.]+ s  ok ", done.stdout, re.MULTILINE)
    assert lines[-1] == "quickstart: all is well"
    assert not quick.report.exists()


def closed_input() -> None:
    os.close(0)


@pytest.mark.parametrize(
    "how", [{"stdin": subprocess.DEVNULL}, {"prefix": ("setsid", "--wait")}, {"preexec_fn": closed_input}],
    ids=["null", "setsid", "closed"],
)  # fmt: skip
def test_whatever_stands_in_for_a_terminal(quick: Quick, how: dict[str, Any]) -> None:
    done = quick.call(*SIM, **how)
    assert done.returncode == 0, done.stdout
    assert "  > types: hello quickstart\n    | > hello quickstart\n" in done.stdout
    assert done.stdout.endswith("quickstart: all is well\n")


def test_it_leaves_the_callers_input_alone(quick: Quick) -> None:
    """`while read host; do ssh $host bin/quickstart; done`, or a script that is piped into a shell."""
    script = f"{SCRIPT} --backend jailhouse-sim >/dev/null; echo status $?\necho the rest\n"
    done = subprocess.run(["bash", "-s"], env=quick.env, input=script, capture_output=True, text=True, check=False)
    assert done.stdout == "status 0\nthe rest\n", done.stderr


def test_a_terminal_for_one_of_both_is_none(quick: Quick) -> None:
    child = pexpect.spawn("/bin/sh", ["-c", f"{SCRIPT} --backend jailhouse-sim | cat"], env=quick.env, timeout=PATIENCE)
    child.expect(b"types: hello quickstart")
    child.expect(b"all is well")
    child.expect(pexpect.EOF)
    child.close()


def test_check_prints_a_line_for_each(quick: Quick) -> None:
    done = quick.call("--check", *SIM)
    assert done.returncode == 0
    assert re.search(
        r"^  cell +[\d.]+ s  ok      greeting, answer, exit code 0\nquickstart: all is well\n$", done.stdout, re.M
    )
    assert "types:" not in done.stdout


def test_a_reader_that_leaves(quick: Quick) -> None:
    child = quick.popen(*SIM, stdout=subprocess.PIPE)
    assert child.stdout is not None
    while "private containerd" not in child.stdout.readline():
        pass
    child.stdout.close()
    assert child.wait(PATIENCE) == 141


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_it(quick: Quick, number: signal.Signals) -> None:
    child = quick.popen(*SIM, stdout=subprocess.PIPE)
    assert child.stdout is not None
    while "private containerd" not in child.stdout.readline():
        pass
    lock = quick.run_dir.with_name(f"{quick.name}.lock")
    while not _locked(lock):  # from here on it is the Python half
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(number)
    out, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 128 + number
    assert f"{number.name}: cleaning up" in out


def _locked(path: Path) -> bool:
    inode = path.stat().st_ino if path.exists() else -1
    return any(f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


# Section: a person is there


def test_the_guests_exit_code_is_the_scripts(quick: Quick) -> None:
    person = quick.person()
    person.send("exit 4\r")
    person.expect("The guest has ended with exit code 4.")
    person.expect(pexpect.EOF)
    person.close()
    assert person.exitstatus == 4


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x04", 0)], ids=["ctrl-c", "ctrl-d"])
def test_keys_that_leave(quick: Quick, key: str, code: int) -> None:
    person = quick.person()
    person.send(f"half a line{key}")
    person.expect("Left the bare-metal guest")
    person.expect(pexpect.EOF)
    person.close()
    assert person.exitstatus == code
    assert not quick.report.exists()


def hang_up(person: Any) -> None:
    os.close(person.child_fd)


def terminate(person: Any) -> None:
    person.kill(signal.SIGTERM)


@pytest.mark.parametrize(
    ("leave", "code"), [(hang_up, 128 + signal.SIGHUP), (terminate, 128 + signal.SIGTERM)], ids=["hang-up", "SIGTERM"]
)
def test_a_terminal_that_goes_away(quick: Quick, leave: Callable[[Any], None], code: int) -> None:
    person = quick.person(*SIM)
    handle = os.pidfd_open(person.pid)
    leave(person)
    try:
        assert select.select([handle], [], [], PATIENCE)[0]
    finally:
        os.close(handle)
    assert os.waitstatus_to_exitcode(os.waitpid(person.pid, 0)[1]) == code
    with contextlib.suppress(OSError):
        os.close(person.child_fd)
    person.closed, person.terminated = True, True


# Section: two of them


def test_a_second_one_does_not_disturb_the_first(quick: Quick) -> None:
    person = quick.person(*SIM)
    done = quick.call(*SIM)
    assert done.returncode == 1
    assert f"another one runs in {quick.run_dir}" in done.stdout
    assert "RUNPHI_QUICKSTART=" in done.stdout
    person.send("still here\r")
    person.expect("still here")
    person.send("\x04")
    person.expect(pexpect.EOF)
    person.close()


def test_one_that_was_killed_is_cleaned_up_by_the_next(quick: Quick) -> None:
    person = quick.person()
    person.kill(signal.SIGKILL)
    person.wait()
    assert quick.left()
    done = quick.call("--check", *SIM)
    assert done.returncode == 0, done.stdout
    assert "an earlier one was killed: ending what it left" in done.stdout


def test_a_name_that_is_none(quick: Quick) -> None:
    done = quick.call(env={"RUNPHI_QUICKSTART": "../x"})
    assert done.returncode == 1
    assert "is no name" in done.stdout


# Section: something is wrong


def lie(tmp_path: Path, what: str) -> dict[str, str]:
    """A QEMU that does ``what`` for every guest, whatever the accelerator; returns what makes quickstart use it."""
    program, config = tmp_path / "qemu-system-x86_64", tmp_path / "config.toml"
    program.write_text(f'#!/bin/sh\ncase " $* " in\n    *" -kernel "*) {what} ;;\nesac\nexec qemu-system-x86_64 "$@"\n')
    program.chmod(0o755)
    config.write_text(f'[qemu]\naccel = "tcg"\nx86_64 = "{program}"\n[log]\ndir = "{tmp_path}/log"\n')
    return {"RUNPHI_CONFIG": str(config)}


@pytest.mark.parametrize(
    ("what", "shown", "mend"),
    [
        ("echo the disk of QEMU is broken >&2; exit 1", "the disk of QEMU is broken", "reinstall qemu-system-x86"),
        ("kill -ABRT $$", "", "reinstall qemu-system-x86"),
        ("exec sleep 600", "QEMU did not answer", "qemu-system-x86_64 --version"),
    ],
    ids=["fails", "aborts", "hangs"],
)
def test_a_qemu_that_fails(quick: Quick, tmp_path: Path, what: str, shown: str, mend: str) -> None:
    begun = time.monotonic()
    done = quick.call(env=lie(tmp_path, what))
    assert done.returncode == 1, done.stdout
    assert time.monotonic() - begun < 180
    assert re.search(r"^  bare-metal guest +[\d.]+ s  FAILED ", done.stdout, re.MULTILINE)
    assert re.search(r"^  plain container +[\d.]+ s  ok ", done.stdout, re.MULTILINE)
    assert shown in done.stdout
    assert re.search(f"to mend it: .*{re.escape(mend)}", done.stdout), done.stdout
    assert not re.search("to mend it: .*prepare-guest", done.stdout)
    assert f"a report to attach to a bug is in {quick.report}" in done.stdout
    text = quick.report.read_text()
    assert quick.report.stat().st_mode & 0o777 == 0o600
    assert text.startswith("# What bin/quickstart saw\n")
    assert "\n# runPHI report\n" in text
    assert f'qemu.x86_64 = "{tmp_path}/qemu-system-x86_64"' in text
    assert not ACTING.search(text)


def test_a_configuration_that_cannot_be_used(quick: Quick, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[qemu]\naccle = "tcg"\n')
    done = quick.call(env={"RUNPHI_CONFIG": str(config)})
    assert done.returncode == 1
    assert "did you mean qemu.accel?" in done.stdout
    assert "to mend it: correct the key that doctor names" in done.stdout
    assert "NOT USABLE" in quick.report.read_text()


def test_a_guest_that_fails_under_the_eyes_of_a_person(quick: Quick, tmp_path: Path) -> None:
    env = {**quick.env, **lie(tmp_path, "echo no luck >&2; exit 1")}
    child = pexpect.spawn(SCRIPT, env=env, timeout=PATIENCE, encoding="utf-8")
    child.expect("FAILED")
    child.expect("to mend it: .*reinstall")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus not in (0, None)
    assert quick.report.exists()
