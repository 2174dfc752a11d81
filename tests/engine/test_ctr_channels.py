# SPDX-License-Identifier: Apache-2.0
"""Shared-memory channels of a guest that ``ctr run`` started, joined by a second terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runphi_async.testing.containerd import RUNPHI
from tests.engine.harness import BANNER, DEMO, INMATE, PROMPT, command, exit_code

if TYPE_CHECKING:
    from tests.engine.harness import Engine

pytestmark = pytest.mark.qemu

CHANNEL = ("--annotation", "org.runphi.channel.telemetry=shmem,size=64KiB")


def test_a_channel_beside_the_terminal(engine: Engine) -> None:
    name = engine.name()
    child = engine.spawn(*engine.run_args(DEMO, name, tty=True, env=INMATE, options=CHANNEL))
    child.expect(PROMPT)
    assert b"* telemetry" in command(child, b"chan")
    command(child, b"chan write 21.5 degrees")
    person = engine.spawn_command([str(RUNPHI), "attach", "--channel", "telemetry", name])
    person.expect(b"21.5 degrees\n")
    person.send(b"warmer please\n")
    # the channel has no echo: what was typed is in the guest's ring as soon as the supervisor has it
    seen = b""
    while b"warmer please" not in seen:
        seen += command(child, b"chan read")
    listed = engine.runphi("channels", name)
    assert "shmem,size=64KiB" in listed.stdout
    assert engine.runphi("logs", "--channel", "telemetry", name).stdout == "21.5 degrees\n"
    person.send(b"\x10\x11")
    assert exit_code(person) == 0
    child.send(b"exit 3\r")
    assert exit_code(child) == 3


def test_a_channel_is_the_engines_terminal(engine: Engine) -> None:
    name = engine.name()
    options = (*CHANNEL, "--annotation", "org.runphi.console=channel:telemetry")
    child = engine.spawn(*engine.run_args(DEMO, name, tty=True, env=INMATE, options=options))
    person = None
    while person is None:  # the container exists a moment after ctr was started
        if name in engine.tasks():
            person = engine.spawn_command([str(RUNPHI), "attach", "--channel", "serial", name])
    person.expect(BANNER)
    person.expect(PROMPT)
    person.send(b"chan write over the channel\r")
    child.expect(b"over the channel\r\n")
    person.expect(PROMPT)
    person.send(b"chan echo\r")
    person.expect(b"chan echo\r+\n")
    child.send(b"typed at the engine's terminal")
    child.expect(b"typed at the engine's terminal")
    child.send(b"\x04")
    person.expect(PROMPT)
    person.send(b"exit 4\r")
    assert exit_code(child) == 4
    assert exit_code(person) == 4
