# SPDX-License-Identifier: Apache-2.0
"""The timeline of a guest that ``ctr run -t`` holds on a terminal, followed on another one until it is removed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from runphi_async.testing.containerd import RUNPHI
from tests.engine.harness import command, exit_code

if TYPE_CHECKING:
    from tests.engine.harness import Engine

pytestmark = pytest.mark.qemu


def test_a_guest_on_a_terminal_is_followed_in_the_timeline(engine: Engine) -> None:
    name = engine.name()
    child = engine.demo(name)
    follower = engine.spawn_command([str(RUNPHI), "timeline", "-f", name], size=(24, 200))
    follower.expect(rf"event      {name} +create backend=qemu guest=inmate".encode())
    follower.expect(rf"event      {name} +start\r\n".encode())
    follower.expect(rf"console    {name} +runPHI demo inmate, ".encode())
    command(child, b"echo over here")
    follower.expect(rf"console    {name} +over here\r\n".encode())
    done = engine.runphi("timeline", "--format", "json", name)
    assert done.returncode == 0, done.stderr
    assert "over here" in [json.loads(line)["text"] for line in done.stdout.splitlines()]
    child.send(b"exit 3\r")
    assert exit_code(child) == 3
    assert exit_code(follower) == 0
