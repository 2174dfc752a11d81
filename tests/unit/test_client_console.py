# SPDX-License-Identifier: Apache-2.0
"""The thin client on a person's terminal: what it shows, what it sends, and how it leaves the terminal."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

from runphi_async import wire
from tests.unit.clientkit import PATIENCE, RUNPHI, FakeSupervisor, Session, environment, run, run_directory, supervisors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


run_dir = pytest.fixture(run_directory)
supervisor = pytest.fixture(supervisors)


class Attached:
    """A script that shows a console and notes what its client sends, until that says "quit" or leaves."""

    def __init__(self, *frames: tuple[bytes, bytes], flags: int = 3, keys: bytes = b"\x10\x11") -> None:
        self._start = bytes((flags,)) + keys
        self._frames = frames
        self._took: list[tuple[bytes, bytes]] = []
        self._done = threading.Event()

    def __call__(self, session: Session) -> None:
        session.send(wire.ATTACH, self._start)
        kind, _ = session.frame()
        assert kind == wire.RESIZE
        for frame in self._frames:
            session.send(*frame)
        try:
            while self._go_on(session):
                pass
        except EOFError:
            pass
        finally:
            self._done.set()

    def _go_on(self, session: Session) -> bool:
        kind, payload = session.frame()
        self._took.append((kind, payload))
        if kind == wire.INPUT and b"quit" in payload:
            session.exit(7)
            return False
        return kind != wire.DETACH

    def typed(self) -> list[tuple[bytes, bytes]]:
        """Return what the client sent, once it has left: its last words may arrive after its end."""
        assert self._done.wait(PATIENCE)
        return self._took


def settings(child: pexpect.spawn) -> list[object]:
    return list(termios.tcgetattr(child.child_fd))


@pytest.fixture
def person(run_dir: Path) -> Iterator[Callable[..., pexpect.spawn]]:
    """Start the client on a terminal below a shell that keeps it open."""
    opened: list[pexpect.spawn] = []

    def start(*words: str, size: tuple[int, int] = (33, 99)) -> pexpect.spawn:
        gate = run_dir.parent / f"gate{len(opened)}"
        os.mkfifo(gate)
        script = f'read x <{gate}; "$0" "$@"; echo "status $?"; read x'
        child = pexpect.spawn(
            "/bin/sh", ["-c", script, RUNPHI, *words], env=environment(run_dir), dimensions=size, timeout=PATIENCE
        )
        child.delaybeforesend = None
        opened.append(child)
        child.before_settings = settings(child)
        gate.write_text("\n")  # the client may touch the terminal from here on
        return child

    yield start
    for child in opened:
        child.close(force=True)


def test_attach_shows_sends_and_gives_the_terminal_back(
    supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn]
) -> None:
    script = Attached((wire.CONSOLE_AT, bytes(8)), (wire.CONSOLE, b"hello\n"))
    supervisor.scripts.append(script)
    child = person("attach", "c1")
    child.expect_exact("hello\n")
    assert settings(child) != child.before_settings
    child.send("a\x03\x1a\x1cb\r")
    child.send("quit")
    child.expect_exact("status 7")
    assert settings(child) == child.before_settings
    sent = b"".join(payload for kind, payload in script.typed() if kind == wire.INPUT)
    assert sent == b"a\x03\x1a\x1cb\rquit"


def test_detach_keys_leave(supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn]) -> None:
    script = Attached((wire.CONSOLE, b"ready"))
    supervisor.scripts.append(script)
    child = person("attach", "c1")
    child.expect_exact("ready")
    child.send("x\x10")
    child.send("\x11after")
    child.expect_exact("status 0")
    assert settings(child) == child.before_settings
    assert script.typed()[-1] == (wire.DETACH, b"")
    assert b"".join(payload for kind, payload in script.typed() if kind == wire.INPUT) == b"x"


def test_what_was_skipped_is_said(supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn]) -> None:
    supervisor.scripts.append(
        Attached(
            (wire.CONSOLE_AT, (100).to_bytes(8, "big")),
            (wire.CONSOLE, b"12345"),
            (wire.SKIPPED, (1105).to_bytes(8, "big")),
            (wire.CONSOLE, b"on"),
        )
    )
    child = person("attach", "c1")
    child.expect_exact("12345\r\n[runphi: 1000 bytes skipped]\r\non")
    child.send("quit")
    child.expect_exact("status 7")


def test_the_size_is_told_at_once_and_when_it_changes(
    supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn]
) -> None:
    sizes: list[bytes] = []
    changed = threading.Event()

    def script(session: Session) -> None:
        session.send(wire.ATTACH, b"\3")
        for _ in range(2):
            kind, payload = session.frame()
            assert kind == wire.RESIZE
            sizes.append(payload)
            changed.set()
        session.exit(0)

    supervisor.scripts.append(script)
    child = person("attach", "c1")
    assert changed.wait(PATIENCE)
    child.setwinsize(50, 132)
    child.expect_exact("status 0")
    assert sizes == [b"33 99", b"50 132"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGQUIT, 131)]
)
def test_a_signal_gives_the_terminal_back(
    supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn], number: int, status: int
) -> None:
    supervisor.scripts.append(Attached((wire.CONSOLE, b"ready")))
    child = person("attach", "c1")
    child.expect_exact("ready")
    (pid,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(pid), number)
    child.expect_exact(f"status {status}")
    assert settings(child) == child.before_settings


def test_a_stopped_client_leaves_a_usable_terminal_and_takes_it_again(
    supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn]
) -> None:
    script = Attached((wire.CONSOLE, b"ready"), flags=3 | 8, keys=b"\x1d")
    supervisor.scripts.append(script)
    child = person("attach", "c1")
    child.expect_exact("ready")
    raw = settings(child)
    (pid,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()

    def state() -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    for stop in (lambda: os.kill(int(pid), signal.SIGTSTP), lambda: child.send("\x1dz")):
        stop()
        wait_until(lambda: state() == "T")
        assert settings(child) == child.before_settings
        os.kill(int(pid), signal.SIGCONT)
        wait_until(lambda: settings(child) == raw)
    child.send("quit")
    child.expect_exact("status 7")
    assert settings(child) == child.before_settings
    assert [kind for kind, _ in script.typed()].count(wire.RESIZE) == 2  # it may have another size by now


def test_a_terminal_that_takes_no_output_does_not_keep_the_client(
    supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn]
) -> None:
    supervisor.scripts.append(Attached((wire.CONSOLE, b"ready")))
    child = person("attach", "c1")
    child.expect_exact("ready")
    termios.tcflow(child.child_fd, termios.TCOOFF)
    (pid,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(pid), signal.SIGTERM)
    wait_until(lambda: settings(child) == child.before_settings)


def test_keys_behind_the_escape_key_are_asked_of_the_supervisor(
    supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn]
) -> None:
    script = Attached((wire.CONSOLE, b"ready"), flags=3 | 8, keys=b"\x1d\x10\x11")
    supervisor.scripts.append(script)
    child = person("attach", "c1")
    child.expect_exact("ready")
    child.send("a\x1dtb\x1d\x1dc\x1d")
    child.send("?\x1d.")
    child.expect_exact("status 0")
    frames = [frame for frame in script.typed() if frame[0] != wire.RESIZE]
    asked = [payload for kind, payload in frames if kind == wire.ASK]
    assert asked == [b"t", b"?"]
    assert b"".join(payload for kind, payload in frames if kind == wire.INPUT) == b"ab\x1dc"
    assert frames[-1] == (wire.DETACH, b"")


def test_marks_carry_a_word_of_the_session(supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn]) -> None:
    said = (wire.NOTICE, b"one\ntwo")
    supervisor.scripts.append(
        Attached((wire.CONSOLE, b"[runphi 0000: forged]\x1b]0;"), said, (wire.CONSOLE, b"on"), flags=3 | 16)
    )
    child = person("attach", "c1")
    child.expect(rb"\x1b\]0;\r\n\[runphi ([0-9a-f]{4}): one\]\r\n\[runphi ([0-9a-f]{4}): two\]\r\non")
    assert child.match[1] == child.match[2]
    child.send("quit")
    child.expect_exact("status 7")


def test_away_from_a_terminal_marks_go_to_stderr(supervisor: FakeSupervisor, run_dir: Path) -> None:
    def script(session: Session) -> None:
        session.send(wire.ATTACH, bytes((16,)))
        session.send(wire.CONSOLE_AT, (10).to_bytes(8, "big"))
        session.send(wire.CONSOLE, b"a")
        session.send(wire.NOTICE, b"somebody came")
        session.send(wire.SKIPPED, (21).to_bytes(8, "big"))
        session.exit()

    supervisor.scripts.append(script)
    done = run(run_dir, "attach", "c1")
    assert done.stdout == b"a\r\n[runphi: 10 bytes skipped]\r\n"
    assert done.stderr == b"[runphi: somebody came]\n[runphi: 10 bytes skipped before byte 21]\n"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_run_passes_signals_on(supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn]) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def script(session: Session) -> None:
        session.send(wire.ATTACH, b"\7")
        session.frame()
        session.send(wire.CONSOLE, b"ready")
        seen.append(session.frame())
        session.exit(15)

    supervisor.scripts.append(script)
    child = person("run", "c1")
    child.expect_exact("ready")
    (pid,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(pid), signal.SIGTERM)
    child.expect_exact("status 15")
    assert seen == [(wire.SIGNAL, b"15")]
    assert settings(child) == child.before_settings


def test_a_supervisor_that_dies_is_found_again_at_the_next_byte(
    supervisor: FakeSupervisor, person: Callable[..., pexpect.spawn]
) -> None:
    again: list[list[bytes]] = []

    def first(session: Session) -> None:
        session.send(wire.ATTACH, b"\3")
        session.frame()
        session.send(wire.CONSOLE_AT, (40).to_bytes(8, "big"))
        session.send(wire.CONSOLE, b"0123456789")

    def second(session: Session) -> None:
        again.append(session.argv)
        session.send(wire.ATTACH, b"\3")
        assert session.frame()[0] == wire.RESIZE
        session.send(wire.CONSOLE_AT, (50).to_bytes(8, "big"))
        session.send(wire.CONSOLE, b"abc")
        session.exit(3)

    supervisor.scripts += [first, second]
    child = person("attach", "c1")
    child.expect_exact("0123456789abc")
    child.expect_exact("status 3")
    assert again == [[b"attach", b"--from", b"50", b"c1"]]
    assert settings(child) == child.before_settings


def test_stdin_that_ends_is_said_and_the_console_goes_on(supervisor: FakeSupervisor, run_dir: Path) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def script(session: Session) -> None:
        session.send(wire.ATTACH, b"\2")
        while not seen or seen[-1][0] != wire.INPUT_EOF:
            seen.append(session.frame())
        session.send(wire.CONSOLE, b"still here")
        session.exit(0)

    supervisor.scripts.append(script)
    done = run(run_dir, "attach", "c1", stdin=None, input=b"typed \x10\x11")
    assert done.stdout == b"still here"
    assert (
        b"".join(payload for kind, payload in seen if kind == wire.INPUT) == b"typed \x10\x11"
    )  # no terminal: no keys


def test_the_last_words_are_heard_by_who_speaks_at_the_same_time(supervisor: FakeSupervisor, run_dir: Path) -> None:
    """The guest ends and the supervisor hangs up while the client is about to say that its stdin has ended."""
    stopped: list[int] = []
    ready = threading.Event()

    def script(session: Session) -> None:
        session.send(wire.ATTACH, b"\2")
        assert session.frame() == (wire.INPUT, b"exit")
        pid = struct.unpack("iII", session.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)
        session.send(wire.CONSOLE, b"last words")
        session.exit(3)
        session.sock.close()
        ready.set()

    supervisor.scripts.append(script)
    with subprocess.Popen(
        [RUNPHI, "attach", "c1"], env=environment(run_dir), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:  # fmt: skip
        assert client.stdin is not None
        client.stdin.write(b"exit")
        client.stdin.flush()
        assert ready.wait(PATIENCE)
        client.stdin.close()
        client.stdin = None
        os.kill(stopped[0], signal.SIGCONT)
        out, err = client.communicate(timeout=PATIENCE)
    assert (client.returncode, out, err) == (3, b"last words", b"")
