# SPDX-License-Identifier: Apache-2.0
"""Several people on the console of a real guest that an engine runs, each on a terminal."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING

import pytest

from runphi_async.testing.containerd import RUNPHI
from tests.engine.harness import DEMO, INMATE, PROMPT, command, exit_code

if TYPE_CHECKING:
    import pexpect

    from tests.engine.harness import Engine

pytestmark = pytest.mark.qemu

ESCAPE = b"\x1d"
MARK = rb"\[runphi [0-9a-f]{4}: "


def join(engine: Engine, name: str, *words: str, size: tuple[int, int] = (24, 80)) -> pexpect.spawn:
    """`runphi attach` on a terminal of its own."""
    child = engine.spawn_command([str(RUNPHI), "attach", *words, name], size=size)
    child.expect(MARK + rb"console of [^\r\n]+\]\r\n")
    return child


def told(child: pexpect.spawn, pattern: bytes) -> None:
    child.expect(MARK + rb"[^\r\n]*" + pattern + rb"[^\r\n]*\]\r\n")


def who(engine: Engine, name: str) -> list[str]:
    return [row["role"] for row in json.loads(engine.runphi("who", "--format", "json", name).stdout)]


def test_two_people_and_the_engine(engine: Engine) -> None:
    name = engine.name()
    owner = engine.demo(name)
    writer = join(engine, name)
    writer.expect(PROMPT)
    watcher = join(engine, name)
    told(watcher, b"may type, you only watch")
    told(writer, b"joined and watches")
    assert b"from the writer" in command(writer, b"echo from the writer")
    for child in (owner, watcher):
        child.expect(rb"\nfrom the writer\r+\n")
        child.expect(PROMPT)
    assert b"from the engine" in command(owner, b"echo from the engine")
    for child in (writer, watcher):
        child.expect(rb"\nfrom the engine\r+\n")
        child.expect(PROMPT)
    watcher.send(ESCAPE + b"t")
    told(watcher, b"you may type now")
    told(writer, b"has taken over, you only watch now")
    assert b"taken" in command(watcher, b"echo taken")
    assert who(engine, name) == ["observer", "writer"]
    writer.kill(signal.SIGKILL)
    told(watcher, b"left")
    assert who(engine, name) == ["writer"]
    watcher.send(b"exit 6\r")
    assert [exit_code(child) for child in (owner, watcher)] == [6, 6]


@pytest.mark.parametrize("image", ["inmate.elf", "inmate-aarch64.elf"])
def test_a_serial_break_reaches_the_guest(engine: Engine, image: str) -> None:
    """A UART hands a break to its driver as a NUL, which the demo guest's `raw` command sends back."""
    name = engine.name()
    owner = engine.spawn(*engine.run_args(DEMO, name, tty=True, env={"INMATE": f"/boot/{image}"}))
    owner.expect(PROMPT)
    owner.send(b"raw\r")
    owner.expect(rb"ctrl-d ends\r+\n")
    person = join(engine, name)
    person.expect(rb"ctrl-d ends\r+\n")
    person.send(ESCAPE + b"b")
    owner.expect_exact(b"\0")
    told(person, b"break sent")
    person.send(b"\x04exit 0\r")
    assert exit_code(owner) == 0


def test_rules_boot_times_and_a_file(engine: Engine) -> None:
    name = engine.name()
    options = ("--annotation", "org.runphi.rule.ready=^> $")
    owner = engine.spawn(*engine.run_args(DEMO, name, tty=True, env=INMATE, options=options))
    owner.expect(PROMPT)
    assert b"x" in command(owner, b"echo x")
    numbers = json.loads(engine.runphi("stats", "--format", "json", name).stdout)
    boot = [numbers["boot"][f"{what}-ms"] for what in ("first-byte", "first-line", "ready")]
    assert 0 < boot[0] <= boot[1] <= boot[2]
    assert numbers["rules"]["ready"] >= 1
    path = engine.run / f"{name}.txt"
    path.write_bytes(b"".join(b"echo line %03d\r" % n for n in range(100)))
    done = engine.runphi("send", name, str(path))
    assert (done.returncode, done.stderr) == (0, "")
    owner.expect(rb"\nline 099\r+\n")
    assert re.findall(rb"\nline (\d+)\r", owner.before) == [b"%03d" % n for n in range(99)]
    owner.send(b"exit 0\r")
    assert exit_code(owner) == 0


def test_everything_is_replayed_and_then_goes_on(engine: Engine) -> None:
    name = engine.name()
    owner = engine.demo(name)
    command(owner, b"spam 2000")
    person = join(engine, name, "--replay", "all")
    person.expect(rb"demo inmate.*line 0002000\r+\n")
    numbers = [int(n) for n in re.findall(rb"line (\d{7})\r", person.match[0])]
    assert numbers == list(range(1, 2001))
    assert b"live" in command(person, b"echo live")
    few = join(engine, name, "--replay", "3", "--observe")
    few.expect(rb"echo live\r+\nlive\r+\n> ")
    assert b"line" not in few.before
    owner.send(b"exit 0\r")
    assert [exit_code(child) for child in (owner, person, few)] == [0, 0, 0]
