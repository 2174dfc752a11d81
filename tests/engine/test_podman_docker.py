# SPDX-License-Identifier: Apache-2.0
"""Bare-metal guests under podman and docker: run, terminal, logs, attach, signals, pause, restart, numbers."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runphi_async.lifeline.stub import Fd
from runphi_async.testing.containerd import wait_until
from tests.engine.cli import BUSYBOX
from tests.engine.harness import ANSWER, BANNER, PROMPT, command, exit_code

if TYPE_CHECKING:
    import pexpect

    from tests.engine.cli import CommandLine

pytestmark = pytest.mark.qemu

READY = re.compile(r"runPHI demo inmate, [^\r\n]+\r*\n", re.MULTILINE)


def on_terminal(cli: CommandLine, name: str, *options: str) -> pexpect.spawn:
    """The demo guest in the foreground on a terminal, at its prompt."""
    child = cli.spawn(*cli.guest_args(name, "-i", "-t", *options))
    child.expect(BANNER)
    child.expect(PROMPT)
    return child


def detached(cli: CommandLine, *options: str) -> str:
    """The demo guest in the background, when it has spoken; returns its name."""
    name = cli.name()
    cli.must(*cli.guest_args(name, "-d", *options))
    wait_until(lambda: READY.search(cli.must("logs", name)), ANSWER, "the guest's first word in the log")
    return name


def test_exit_code_and_output_on_pipes(cli: CommandLine) -> None:
    child = cli.pipe(*cli.guest_args(cli.name(), "-i", "--rm"))
    child.expect(BANNER)
    child.send(b"echo piped\r")
    child.expect(rb"\npiped\r*\n")
    child.send(b"exit 7\r")
    assert child.finish() == 7
    assert cli.containers() == []


def test_a_linux_guest(cli: CommandLine) -> None:
    script = "cat /proc/cmdline; echo out; exit 8"
    done = cli.call(*cli.run_args(BUSYBOX, cli.name(), "/bin/sh", "-c", script, options=["--rm", "-e", "LINUX=1"]))
    assert (done.returncode, done.stderr) == (8, "")
    kernel, said = done.stdout.replace("\r", "").splitlines()
    assert kernel != Path("/proc/cmdline").read_text().strip()  # it is a kernel of its own
    assert said == "out"


def test_an_ordinary_container(cli: CommandLine) -> None:
    script = "cat /proc/cmdline; echo out; exit 9"
    done = cli.call(*cli.run_args(BUSYBOX, cli.name(), "/bin/sh", "-c", script, options=["--rm"]))
    assert (done.returncode, done.stderr) == (9, "")
    assert done.stdout == f"{Path('/proc/cmdline').read_text()}out\n"


def test_terminal(cli: CommandLine) -> None:
    name = cli.name()
    child = on_terminal(cli, name, "--rm")
    assert b"alive" in command(child, b"echo alive")
    child.send(b"exit 13\r")
    assert exit_code(child) == 13


def test_window_size_follows(cli: CommandLine) -> None:
    name = cli.name()
    child = on_terminal(cli, name, "--rm")
    container = cli_id(cli, name)
    for rows, columns in ((40, 120), (20, 60)):
        child.setwinsize(rows, columns)
        # the clients also send the signal of a window change: no guest ends of it
        wait_until(lambda: size(cli, container) == (rows, columns), ANSWER, f"{rows} rows")  # noqa: B023
    assert b"alive" in command(child, b"echo alive")
    child.send(b"exit 6\r")
    assert exit_code(child) == 6


def size(cli: CommandLine, container: str) -> tuple[int, int]:
    """Rows and columns of the terminal that a guest's init process holds."""
    rows = json.loads(cli.runphi("list", "--format", "json").stdout)
    pid = next(row["pid"] for row in rows if row["id"] == container)
    done = subprocess.run(
        ["stty", "-F", f"/proc/{pid}/fd/{Fd.STDIN}", "size"], capture_output=True, text=True, check=True
    )
    found = tuple(int(word) for word in done.stdout.split())
    return found[0], found[1]


def test_logs_attach_detach_and_stop(cli: CommandLine) -> None:
    name = detached(cli, "-i", "-t")
    # one key to detach: podman knows the usual two only when it reads them one by one
    child = cli.spawn("attach", "--detach-keys=ctrl-a", name)
    child.send(b"echo attached\r")
    child.expect(rb"\nattached\r+\n")
    child.send(b"\x01")
    exit_code(child)
    assert cli.status(name) == "running"
    again = cli.spawn("attach", name)
    again.send(b"echo again\r")
    again.expect(rb"\nagain\r+\n")
    cli.must("stop", name)
    exit_code(again)
    assert cli.status(name) == "exited"
    assert cli.inspect(name, "{{.State.ExitCode}}") == "143"
    log = cli.must("logs", name)
    assert re.search(r"(?s)demo inmate.*\nattached\r*\n.*\nagain\r*\n", log), log


@pytest.mark.parametrize(("signal", "code"), [("TERM", "143"), ("INT", "130"), ("KILL", "137")])
def test_kill_ends_the_guest_with_the_signals_code(cli: CommandLine, signal: str, code: str) -> None:
    name = detached(cli)
    cli.must("kill", "-s", signal, name)
    assert cli.must("wait", name).strip() == code
    assert cli.inspect(name, "{{.State.ExitCode}}") == code


def test_window_change_and_stop_signals_of_no_concern_are_harmless(cli: CommandLine) -> None:
    name = detached(cli)
    for signal in ("28", "WINCH", "CONT"):
        cli.must("kill", "-s", signal, name)
    assert cli.status(name) == "running"


def test_pause_and_resume(cli: CommandLine) -> None:
    name = cli.name()
    child = on_terminal(cli, name, "--rm")
    cli.must("pause", name)
    assert cli.status(name) == "paused"
    child.send(b"echo later\r")
    cli.must("unpause", name)
    child.expect(rb"\nlater\r+\n")
    assert cli.status(name) == "running"


def test_stopped_guest_starts_anew(cli: CommandLine) -> None:
    name = detached(cli)
    cli.must("restart", "-t", "5", name)
    wait_until(lambda: len(READY.findall(cli.must("logs", name))) == 2, ANSWER, "the guest's second start")
    cli.must("stop", name)
    cli.must("start", name)
    wait_until(lambda: len(READY.findall(cli.must("logs", name))) == 3, ANSWER, "the guest's third start")
    cli.must("rm", "-f", name)
    assert cli.containers() == []


def test_create_then_start_and_remove_what_was_never_started(cli: CommandLine) -> None:
    name, other = cli.name(), cli.name()
    cli.must("create", *cli.guest_args(name, "-i")[1:])
    cli.must("create", *cli.guest_args(other)[1:])
    child = cli.pipe("start", "-a", "-i", name)
    child.expect(BANNER)
    child.send(b"exit 4\r")
    assert child.finish() == 4
    cli.must("rm", other)


def test_numbers_are_those_of_the_guest(cli: CommandLine) -> None:
    name = detached(cli)
    # as text: in podman's JSON it is text up to version 4, a number from 5 on
    used = cli.must("stats", "--no-stream", "--format", "{{.MemUsage}}", name).strip()
    number, unit = re.match(r"([\d.]+)\s*([kMG])", used).groups()  # type: ignore[union-attr]
    assert unit == "M", used
    assert 4 < float(number) < 200, used
    rows = {row["id"]: row for row in json.loads(cli.runphi("list", "--format", "json").stdout)}
    assert str(rows[cli_id(cli, name)]["pid"]) == cli.inspect(name, "{{.State.Pid}}")


def cli_id(cli: CommandLine, name: str) -> str:
    """The id by which the runtime knows a container."""
    return cli.inspect(name, "{{.Id}}")


def test_exec_says_why_it_cannot(cli: CommandLine) -> None:
    name = detached(cli)
    done = cli.call("exec", name, "ls")
    assert done.returncode != 0
    assert "not supported by this guest" in done.stdout + done.stderr
    assert cli.status(name) == "running"


def test_crash_is_no_success(cli: CommandLine) -> None:
    child = on_terminal(cli, cli.name(), "--rm")
    child.send(b"crash\r")
    child.expect(b"crashing")
    assert exit_code(child) not in (0, None)


def test_an_image_without_the_inmate_is_refused_with_the_reason(cli: CommandLine) -> None:
    done = cli.call(*cli.run_args("runphi/busybox", cli.name(), "/x", options=("--rm", "-e", "INMATE=/boot/none.elf")))
    assert done.returncode in (125, 126, 127)
    assert "/boot/none.elf" in done.stderr
    assert cli.containers() == []


def test_people_see_the_engines_guest(cli: CommandLine) -> None:
    name = cli.name()
    on_terminal(cli, name)
    container = cli_id(cli, name)
    assert container in cli.runphi("list", "-q").stdout.split()
    assert "demo inmate" in cli.runphi("logs", container).stdout
