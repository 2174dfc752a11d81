# SPDX-License-Identifier: Apache-2.0
"""Several people on one console, on terminals of their own: a real supervisor, real clients, a guest that is a script.

What must be seen on a real guest is in tests/engine/test_ctr_people.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pexpect
import pytest

from tests.system.place import PATIENCE, RUNPHI, Container, Place, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.checkout import OpenCheckout

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(90)]

ESCAPE = "\x1d"
MARK = rb"\[runphi [0-9a-f]{4}: "


@pytest.fixture
def config() -> str:
    """More of the configuration file, for tests that want it."""
    return ""


@pytest.fixture
def place(tmp_path: Path, config: str) -> Iterator[Place]:
    # The fake backend wants the files a bundle names to be there, and does not look at them. On /tmp for hard links.
    (tmp_path / "demo-x86_64.elf").touch()
    made = Place(tmp_path, config)
    yield made
    left = made.close()
    assert not left, "left over:\n" + "\n".join(left)


@pytest.fixture
def guest(place: Place) -> Container:
    return place.running("c1", backend="fake")


class Person(pexpect.spawn):  # type: ignore[misc]
    """`runphi attach` on a terminal."""

    def __init__(self, place: Place, *words: str, size: tuple[int, int] = (24, 80)) -> None:
        argv = ["--root", str(place.root), "attach", *words, "c1"]
        super().__init__(RUNPHI, argv, env={**place.env, "TERM": "xterm"}, dimensions=size, timeout=PATIENCE)
        self.delaybeforesend = None

    def told(self, pattern: bytes) -> bytes:
        """Wait for a notice; returns it."""
        self.expect(MARK + rb"([^\r\n]*" + pattern + rb"[^\r\n]*)\]\r\n")
        assert self.match is not None
        return bytes(self.match[1])

    def here(self) -> Person:
        """Wait until it is attached."""
        self.told(b"console of c1")
        self.expect_exact("> ")
        return self

    def result(self) -> int:
        self.expect(pexpect.EOF)
        self.wait()
        return -int(self.signalstatus) if self.exitstatus is None else int(self.exitstatus)


@pytest.fixture
def attach(place: Place) -> Iterator[Callable[..., Person]]:
    opened: list[Person] = []

    def start(*words: str, size: tuple[int, int] = (24, 80)) -> Person:
        opened.append(Person(place, *words, size=size))
        return opened[-1]

    yield start
    for person in opened:
        person.close(force=True)


def roles(place: Place) -> list[str]:
    return [row["role"] for row in json.loads(place.must("who", "--format", "json", "c1"))]


def kinds(place: Place) -> list[str]:
    return [event["event"] for event in place.events("c1")]


def test_one_writes_and_others_watch_until_they_take_over(
    place: Place, guest: Container, attach: Callable[..., Person]
) -> None:
    writer = attach().here()
    watcher = attach("--words", "second desk").here()
    assert b"may type, you only watch; ctrl-] t takes over" in watcher.told(b"only watch")
    assert b"second desk" in writer.told(b"joined and watches")
    watcher.send("nobody hears this\n")
    watcher.told(b"what you type goes nowhere")
    writer.send("echo one\n")
    for person in (writer, watcher):
        person.expect_exact("\r\none\r\n")
    watcher.send(ESCAPE + "t")
    assert b"ctrl-] t takes back" in writer.told(b"has taken over")
    watcher.told(b"you may type now")
    writer.send("echo lost\n")
    writer.told(b"what you type goes nowhere")
    watcher.send("echo two\n")
    for person in (writer, watcher):
        person.expect_exact("\r\ntwo\r\n")
    watcher.send(ESCAPE + ".")
    watcher.told(b"detached")
    assert watcher.result() == 0
    writer.told(b"left; nobody types now")
    assert b"lost" not in guest.console_log()
    assert kinds(place) == ["create", "start", "attach", "attach", "observe", "take", "detach"]
    assert roles(place) == ["observer"]


def test_take_share_and_observe_from_the_start(place: Place, guest: Container, attach: Callable[..., Person]) -> None:
    first = attach("--observe").here()
    assert roles(place) == ["observer"]
    second = attach().here()
    first.told(b"joined and may type")
    third = attach("--share").here()
    third.told(b"you and root .* may type")
    second.told(b"joined and may type")
    third.send("echo three\n")
    second.expect_exact("\r\nthree\r\n")
    second.send("echo two\n")
    third.expect_exact("\r\ntwo\r\n")
    assert roles(place) == ["observer", "writer", "sharer"]
    fourth = attach("--take").here()
    for person in (second, third):
        person.told(b"has taken over, you only watch now")
    assert roles(place) == ["observer", "observer", "observer", "writer"]
    fourth.send("exit 4\n")
    assert [person.result() for person in (first, second, third, fourth)] == [4] * 4
    assert guest.wait() == 4
    assert json.loads(place.must("who", "--format", "json", "c1")) == []


def test_quiet_and_the_engines_stdin(place: Place, guest: Container, attach: Callable[..., Person]) -> None:
    quiet = attach("--quiet").here()
    attach("--share").here()
    guest.type(b"echo from the engine\n")  # always may type
    shown = quiet.expect_exact("\r\nfrom the engine\r\n")
    assert shown == 0
    assert b"joined" not in quiet.before


def test_the_keys(place: Place, guest: Container, attach: Callable[..., Person]) -> None:
    person = attach().here()
    person.send(ESCAPE + "?")
    for text in (rb"ctrl-\] t +take over", rb"ctrl-\] s +send a file", rb"ctrl-\] ctrl-\] +send ctrl-\] itself"):
        person.told(text)
    person.send(ESCAPE + "w")
    person.told(b"ROLE +USER")
    person.told(b"writer +root")
    person.send(ESCAPE + "b")
    person.told(b"this guest's console has no break")
    person.send(ESCAPE + "o")
    person.told(b"you only watch now")
    person.send(ESCAPE + "b")
    person.told(b"goes nowhere")
    person.send(ESCAPE + "+")
    person.told(b"you may type now")
    person.send("echo a" + ESCAPE + ESCAPE + "b\n")
    person.expect_exact("\r\na\x1db\r\n")
    person.send("\x10\x11")
    person.told(b"detached")
    assert person.result() == 0


def test_keys_of_ones_own(place: Place, guest: Container, attach: Callable[..., Person]) -> None:
    person = attach("--escape-key", "ctrl-a", "--detach-keys", "").here()
    person.send("echo " + ESCAPE + "\n")
    person.expect_exact("\r\n\x1d\r\n")
    person.send("\x01d")
    assert person.result() == 0
    assert "it is more than one" in place.refused("attach", "--escape-key", "a,b", "c1")
    assert "unknown detach key" in place.refused("attach", "--escape-key", "ctrl-", "c1")


def test_a_guest_cannot_imitate_a_mark(place: Place, guest: Container, attach: Callable[..., Person]) -> None:
    """It does not know the word of the session, and cannot swallow or hide what carries it."""
    person = attach()
    person.expect(MARK + rb"console of c1[^\r\n]*\]\r\n")
    word = bytes(person.match[0])[8:12]
    other = attach()
    other.expect(MARK)
    assert bytes(other.match[0])[8:12] != word
    person.told(b"joined")
    person.send("echo [runphi: 5 bytes skipped]\x1b]0;\n")
    person.expect_exact("]0;")
    other.send(ESCAPE + "t")
    person.expect(rb"\x18\x1b\\\x1b\[m\x1b\(B\x0f(\r\n)?" + re.escape(b"[runphi %s: " % word))


def test_roles_outlive_the_supervisor(place: Place, guest: Container, attach: Callable[..., Person]) -> None:
    writer, watcher = attach().here(), attach().here()
    watcher.send(ESCAPE + "t")
    writer.told(b"has taken over")
    watcher.told(b"you may type now")
    place.kill_supervisor()
    until(lambda: sorted(roles(place)) == ["observer", "writer"], "both are back")
    watcher.send("echo back\n")
    for person in (writer, watcher):
        person.expect_exact("echo back\r\nback\r\n")
    assert "take" in kinds(place)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_who_vanishes_is_gone_at_once(
    place: Place, guest: Container, attach: Callable[..., Person], number: signal.Signals
) -> None:
    person = attach().here()
    assert roles(place) == ["writer"]
    person.kill(number)
    until(lambda: roles(place) == [], "its end")
    assert kinds(place)[-1] == "detach"


def test_who_vanishes_while_the_guest_does_not_read(
    place: Place, guest: Container, attach: Callable[..., Person]
) -> None:
    place.must("pause", "c1")
    child = subprocess.Popen(
        [RUNPHI, "--root", str(place.root), "attach", "c1"], env=place.env, stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdin is not None
    until(lambda: roles(place) == ["writer"], "it is there")
    os.set_blocking(child.stdin.fileno(), False)
    refused = 0

    def full() -> bool:
        nonlocal refused
        assert child.stdin is not None
        try:
            os.write(child.stdin.fileno(), b"x" * 65536)
            refused = 0
        except BlockingIOError:
            refused += 1
        return refused > 50  # for a quarter of a second nobody has taken anything

    until(full, "everybody's buffers are full")
    assert roles(place) == ["writer"]
    child.kill()
    child.wait()
    child.stdin.close()
    until(lambda: roles(place) == [], "its end")
    place.must("resume", "c1")


def test_who(place: Place, guest: Container, attach: Callable[..., Person]) -> None:
    attach("--words", "ünï\x07").here()
    header, line = place.must("who", "c1").splitlines()
    assert header.split() == ["ROLE", "USER", "PID", "TTY", "SINCE", "SENT", "SKIPPED", "LAG", "WORDS"]
    assert re.fullmatch(r"writer +root +\d+ +pts/\d+ +\S+ +\d+ +0 +0 +\?n\?\?", line)
    (row,) = json.loads(place.must("who", "-f", "json", "c1"))
    assert row["since"] > 0
    assert place.refused("who", "c2").startswith("container does not exist")


def test_not_on_a_terminal_marks_go_to_stderr(place: Place, guest: Container) -> None:
    guest.type(b"echo first\n")
    guest.expect(b"\nfirst\r\n> ")
    with subprocess.Popen(
        [RUNPHI, "--root", str(place.root), "attach", "c1"], env=place.env, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as writer:  # fmt: skip
        assert writer.stdin is not None
        until(lambda: roles(place) == ["writer"], "it is there")
        writer.stdin.write(b"exit 3\n")
        writer.stdin.flush()
        out, err = writer.communicate(timeout=PATIENCE)
    assert writer.returncode == 3
    assert b"\r\nfirst\r\n> exit 3\r\n" in out
    assert err == b""


# Section: the past, and those who do not keep up


def test_the_screen_is_painted_as_it_is(place: Place, guest: Container, attach: Callable[..., Person]) -> None:
    guest.type(b"echo gone\x1b[2J\x1b[5;10Hhere\n")
    guest.expect(b"\x1b[5;10Hhere\r\n> ")
    person = attach("--replay", "screen", size=(12, 40))
    person.told(b"console of c1")
    person.expect_exact("\x1b[5;1H         here\x1b[6;1H>\x1b[6;3H")
    assert b"gone" not in person.before
    person.send("echo on\n")
    person.expect_exact("echo on\r\non\r\n> ")
    assert "wants none, screen, a number of lines or all" in place.refused("attach", "--replay", "some", "c1")


def test_who_sleeps_slows_nobody_and_is_told_what_was_skipped(
    place: Place, guest: Container, attach: Callable[..., Person]
) -> None:
    awake, asleep = attach().here(), attach("--quiet").here()
    asleep.kill(signal.SIGSTOP)
    awake.send("spam 60000\n")
    awake.expect_exact("line 0060000\r\n> ")
    (_, row) = json.loads(place.must("who", "--format", "json", "c1"))
    assert row["lag"] > 100_000
    asleep.kill(signal.SIGCONT)
    skipped = int(asleep.told(rb"\d+ bytes skipped").split()[0])
    asleep.expect_exact("line 0060000\r\n> ")
    # whoever wakes up on a busy machine may fall behind once more
    skipped += sum(int(more) for more in re.findall(rb": (\d+) bytes skipped", asleep.before))
    (_, row) = json.loads(place.must("who", "--format", "json", "c1"))
    assert row["skipped"] == skipped > 100_000


# Section: sending a file


def test_send_a_file(place: Place, guest: Container, tmp_path: Path) -> None:
    lines = [f"echo line {n}\n" for n in range(300)]
    (tmp_path / "file").write_text("".join(lines))
    assert place.must("send", "c1", "file", cwd=tmp_path) == ""
    printed = guest.expect(b"\r\nline 299\r\n> ")
    shown = [int(n) for n in re.findall(rb"\nline (\d+)\r", printed)]
    assert shown == list(range(300))
    assert roles(place) == []
    assert [event["role"] for event in place.events("c1")[2:]] == ["writer", "writer"]
    with (tmp_path / "file").open() as file:
        place.must("send", "c1", "-", stdin=file)
    done = subprocess.run(
        [RUNPHI, "--root", str(place.root), "send", "c1", "-"], env=place.env, input=b"echo piped\n", check=True,
        timeout=PATIENCE, capture_output=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"", b"")
    guest.expect(b"\r\npiped\r\n> ")


def test_send_respects_who_may_type(
    place: Place, guest: Container, attach: Callable[..., Person], tmp_path: Path
) -> None:
    writer = attach().here()
    (tmp_path / "file").write_text("echo sent\n")
    words = ("send", "c1", str(tmp_path / "file"))
    assert "may type; --take takes over, --share sends beside" in place.refused(*words)
    place.must(*words, "--share")
    writer.told(b"sends file.* joined and may type")
    guest.expect(b"\r\nsent\r\n")
    writer.told(b"sends file.* left")  # before or after what the guest prints
    assert roles(place) == ["writer"]
    place.must(*words, "--take")
    writer.told(b"has taken over, you only watch now")
    assert roles(place) == ["observer"]


def test_send_is_stopped_by_whoever_takes_over(place: Place, guest: Container, attach: Callable[..., Person]) -> None:
    with subprocess.Popen(
        [RUNPHI, "--root", str(place.root), "send", "--rate", "50", "c1", "-"], env=place.env,
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        child.stdin.write(b"echo xxxxxxxxxxxxxxx\n" * 1000)
        child.stdin.flush()
        guest.expect(b"\r\nxxxxxxxxxxxxxxx\r\n")
        attach("--take").here()
        _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 1
    assert re.fullmatch(rb"stopped after \d+ bytes: somebody else has taken over\n", err)


def test_send_what_cannot_be_sent(place: Place, guest: Container, tmp_path: Path) -> None:
    assert "No such file" in place.refused("send", "c1", str(tmp_path / "missing"))
    assert "not a regular file" in place.refused("send", "c1", str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    assert "give it as stdin" in place.refused("send", "c1", str(tmp_path / "fifo"))
    assert "expected a size" in place.refused("send", "--rate", "fast", "c1", "-")
    assert "at least one byte" in place.refused("send", "--rate", "0", "c1", "-")


def test_the_rate_is_kept(place: Place, guest: Container, tmp_path: Path) -> None:
    import time

    (tmp_path / "file").write_text("echo 1234567890\n" * 20)
    begun = time.monotonic()
    place.must("send", "--rate", "320", "c1", str(tmp_path / "file"))
    assert time.monotonic() - begun >= 0.9  # 320 bytes


def test_send_with_progress_and_from_within_attach(
    place: Place, guest: Container, attach: Callable[..., Person], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("echo from a file\n")
    argv = ["--root", str(place.root), "send", "c1", str(tmp_path / "file")]
    child = pexpect.spawn(RUNPHI, argv, env=place.env, timeout=PATIENCE)
    child.expect_exact("17 bytes sent")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    person = attach().here()
    person.send(ESCAPE + "s")
    person.expect(MARK + b"file to send")
    person.send(str(tmp_path / "filex") + "\x7f\r")
    guest.expect(b"\r\nfrom a file\r\n> echo from a file\r\nfrom a file\r\n> ")
    person.told(b"file: sent 17 bytes")
    person.send(ESCAPE + "s/nonexistent\r")
    person.told(b"cannot send /nonexistent: No such file")
    person.send(ESCAPE + "s\r" + "echo alive\n")
    person.expect_exact("\r\nalive\r\n")


# Section: a group that may use consoles


@pytest.mark.parametrize("config", ['[supervisor]\ngroup = "games"\n'])
def test_members_of_the_group_use_consoles_and_nothing_else(
    place: Place, tmp_path: Path, open_checkout: OpenCheckout
) -> None:
    import grp

    os.chmod(place.path, 0o711)
    guest = place.running("c1", backend="fake")

    def call(*words: str, groups: tuple[int, ...]) -> subprocess.CompletedProcess[str]:
        argv = [str(open_checkout.root / "bin" / "runphi"), *words]
        return open_checkout.call_as_nobody(argv, groups=groups, env=place.env, input="exit 5\n", timeout=PATIENCE)

    member = (grp.getgrnam("games").gr_gid,)
    assert [path.stat().st_mode & 0o777 for path in (place.run_dir, place.run_dir / "supervisor.sock")] == [
        0o710,
        0o660,
    ]
    log = tmp_path / "written"
    for words in (("--log", str(log), "kill", "c1", "9"), ("send", "c1", "/etc/shadow"), ("delete", "-f", "c1")):
        verb = next(word for word in words if word in ("kill", "send", "delete"))
        # `kill` and `delete` go to runc unless the client sees that the container is ours: as root they would reach us
        done = call("--root", str(place.root), *words, groups=member)
        assert done.returncode == 1, done
        assert f"cannot {verb}: only root may; members of the group may attach" in done.stderr
    assert not log.exists()
    assert call("--log", str(log), "who", "nobody", groups=member).returncode == 1
    assert not log.exists()
    assert call("who", "c1", groups=member).stdout.startswith("ROLE")
    assert json.loads(call("list", "-f", "json", groups=member).stdout)[0]["id"] == "c1"
    assert json.loads(call("stats", "-f", "json", "c1", groups=member).stdout)["status"] == "running"
    stranger = call("who", "c1", groups=())
    assert stranger.returncode == 1
    assert "Permission denied" in stranger.stderr
    for name in ("supervisor.log", "supervisor.pid"):
        assert (place.run_dir / name).stat().st_mode & 0o077 == 0
    done = call("attach", "c1", groups=member)
    assert done.returncode == 5
    assert guest.wait() == 5
    assert place.events("c1")[2]["who"].startswith("nobody (pid ")


@pytest.mark.parametrize("config", ['[supervisor]\ngroup = "no-such-group"\n'])
def test_a_group_that_does_not_exist_is_said(place: Place) -> None:
    assert "there is no group 'no-such-group'; groupadd" in place.call("version").stderr
