# SPDX-License-Identifier: Apache-2.0
"""The console of a bare-metal guest as people and pipes see it through ``ctr run``."""

from __future__ import annotations

import random
import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.engine.harness import (
    BANNER,
    DEMO,
    INMATE,
    PROMPT,
    command,
    exit_code,
    spam_lines,
)

if TYPE_CHECKING:
    from tests.engine.harness import Engine

pytestmark = pytest.mark.qemu

LINES = 20_000


def test_banner_is_the_first_thing_on_the_terminal(engine: Engine) -> None:
    child = engine.spawn(*engine.run_args(DEMO, engine.name(), tty=True, env=INMATE))
    child.expect(BANNER)
    assert child.before.strip() == b""
    child.expect(PROMPT)
    child.send(b"exit 0\r")
    assert exit_code(child) == 0


def test_typed_bytes_reach_the_guest_and_are_echoed_once(engine: Engine) -> None:
    child = engine.demo(engine.name())
    child.send(b"echo one two")
    child.expect(b"echo one two$")
    child.send(b"\r")
    child.expect(PROMPT)
    assert child.before.split() == [b"one", b"two"]


def test_ctrl_c_goes_to_the_guest(engine: Engine) -> None:
    child = engine.demo(engine.name())
    child.send(b"half a line\x03")
    child.expect(rb"\^C\r+\n")
    child.expect(PROMPT)
    assert b"alive" in command(child, b"echo alive")


def test_other_control_characters_change_nothing(engine: Engine) -> None:
    child = engine.demo(engine.name())
    # suspend, quit, end of file and flow control mean something to a cooked terminal only
    child.send(b"\x1a\x1c\x13\x11")
    assert b"alive" in command(child, b"echo alive")


@pytest.mark.parametrize("code", [0, 3, 42, 200])
def test_exit_code_is_the_guests(engine: Engine, code: int) -> None:
    child = engine.demo(engine.name())
    child.send(b"exit %d\r" % code)
    assert exit_code(child) == code


def test_image_with_inmate_in_its_environment(engine: Engine) -> None:
    child = engine.spawn(*engine.run_args("runphi/demo-inmate:latest", engine.name(), tty=True))
    child.expect(PROMPT)
    child.send(b"exit 4\r")
    assert exit_code(child) == 4


@pytest.mark.parametrize("image", ["inmate-multiboot.elf", "inmate-aarch64.elf"])
def test_other_kinds_of_inmate(engine: Engine, image: str) -> None:
    words = engine.run_args(DEMO, engine.name(), tty=True, env={"INMATE": f"/boot/{image}"})
    child = engine.spawn(*words)
    child.expect(BANNER)
    child.expect(PROMPT)
    assert b"x y" in command(child, b"echo x y")
    child.send(b"exit 17\r")
    assert exit_code(child) == 17


def test_flat_binary_with_its_architecture_in_an_annotation(engine: Engine) -> None:
    words = engine.run_args(
        DEMO,
        engine.name(),
        tty=True,
        env={"INMATE": "/boot/inmate-aarch64.bin"},
        options=("--annotation", "org.runphi.arch=aarch64"),
    )
    child = engine.spawn(*words)
    child.expect(PROMPT)
    child.send(b"exit 5\r")
    assert exit_code(child) == 5


def test_resizing_harms_nothing(engine: Engine) -> None:
    child = engine.demo(engine.name())
    child.send(b"spam 3000\r")
    for rows, columns in ((10, 20), (50, 200), (1, 1), (24, 80)):
        child.setwinsize(rows, columns)
        child.kill(signal.SIGWINCH)
        child.expect(rb"line \d{7}\r+\n")
    child.expect(b"line 0003000\r+\n")
    assert b"alive" in command(child, b"echo alive")


def test_all_output_arrives_in_order_on_a_terminal(engine: Engine) -> None:
    child = engine.demo(engine.name())
    output = command(child, b"spam %d" % LINES)
    assert spam_lines(output) == list(range(1, LINES + 1))
    child.send(b"exit 0\r")
    assert exit_code(child) == 0


def test_all_output_arrives_in_order_on_a_pipe(engine: Engine) -> None:
    child = engine.pipe(*engine.run_args(DEMO, engine.name(), env=INMATE))
    child.expect(PROMPT)
    # the exit follows at once: everything printed before must come out before ctr ends
    child.send(b"spam %d\nexit 9\n" % LINES)
    assert child.finish() == 9
    assert spam_lines(child.seen) == list(range(1, LINES + 1))
    assert b"\r\r\n" not in child.seen


def test_input_typed_before_the_guest_listens_is_kept(engine: Engine) -> None:
    child = engine.pipe(*engine.run_args(DEMO, engine.name(), env=INMATE))
    child.send(b"echo early\nexit 6\n")
    assert child.finish() == 6
    assert re.search(BANNER, child.seen)
    assert re.search(rb"\nearly\r\n", child.seen)


def test_every_byte_value_passes_in_both_directions(engine: Engine) -> None:
    child = engine.pipe(*engine.run_args(DEMO, engine.name(), env=INMATE))
    child.expect(PROMPT)
    child.send(b"raw\n")
    child.expect(rb"ctrl-d ends\r\n")
    start = len(child.seen)
    sent = bytes(x for x in range(256) if x != 0x04) * 4
    sent += random.Random(1).randbytes(30_000).replace(b"\x04", b"")
    child.send(sent)
    child.expect(re.escape(sent[-32:]))
    assert child.seen[start:] == sent
    child.send(b"\x04exit 2\n")
    assert child.finish() == 2


def test_detached_guest_and_task_attach(engine: Engine) -> None:
    name = engine.name()
    child = engine.demo_detached(name)
    assert b"from attach" in command(child, b"echo from attach")
    child.send(b"exit 5\r")
    assert exit_code(child) == 5
    assert engine.tasks() == {}
    assert name in engine.containers()


def test_end_of_stdin_leaves_the_guest_alone(engine: Engine) -> None:
    name = engine.name()
    child = engine.pipe(*engine.run_args(DEMO, name, env=INMATE))
    child.expect(PROMPT)
    child.end_input()
    assert engine.status(name) == "RUNNING"
    engine.must("tasks", "kill", "-s", "KILL", name)
    assert child.finish() == 137
