# SPDX-License-Identifier: Apache-2.0
"""Channels that a Linux guest serves by libxenvchan, on real Xen: dom0 is the client."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

from tests.system.place import RUNPHI, until
from tests.xen.install import HOME, VCHAN_DEMO

if TYPE_CHECKING:
    from tests.system.place import Container
    from tests.xen.dom0.kit import XenPlace

pytestmark = pytest.mark.timeout(900)

LINES = 20000
#: More than the ring holds through one channel, which then ends; the other one is joined to stdin and stdout.
SCRIPT = f"seq 1 {LINES} | vchan-demo numbers && echo all taken && exec vchan-demo telemetry"


def logged(container: Container, channel: str, text: str) -> bool:
    """Whether the log of a channel holds just this."""
    return container.must("logs", "--channel", channel) == text


def is_gone(place: XenPlace, name: str, channel: str) -> bool:
    """Whether an event told that the guest closed the channel."""
    gone = [event for event in place.events(name) if event["event"] == "channel-gone"]
    return [(event["channel"], event["reason"]) for event in gone] == [(channel, "the guest closed it")]


def test_a_vchan_is_a_named_stream(place: XenPlace) -> None:
    annotations = {"org.runphi.channel.numbers": "vchan", "org.runphi.channel.telemetry": "vchan"}
    bundle = place.linux("vchan", SCRIPT, annotations=annotations)
    shutil.copy(Path(HOME) / VCHAN_DEMO, bundle / "rootfs" / "bin" / VCHAN_DEMO)
    container = place.create("vchan", made=bundle)
    assert container.created == 0, container.error
    container.must("start")
    container.expect(b"all taken\n")
    numbers = "".join(f"{number}\n" for number in range(1, LINES + 1))
    until(functools.partial(logged, container, "numbers", numbers), "all numbers, each once")
    until(functools.partial(is_gone, place, "vchan", "numbers"), "told that the guest closed it")

    container.type(b"21.5 degrees\n")
    until(functools.partial(logged, container, "telemetry", "21.5 degrees\n"), "the log of telemetry")
    child = pexpect.spawn(
        RUNPHI, ["--root", str(place.root), "attach", "--channel", "telemetry", "vchan"], env=place.env, timeout=240
    )
    child.expect_exact("21.5 degrees")
    child.send("set to 20\n")
    container.expect(b"set to 20\n")
    child.send("\x10\x11")
    child.expect(pexpect.EOF)
    child.close()

    place.kill_supervisor()
    container.type(b"22 degrees\n")
    until(functools.partial(logged, container, "telemetry", "21.5 degrees\n22 degrees\n"), "what came afterwards")

    os.close(container.stdin)
    container.stdin = -1
    assert container.wait() == 0
    container.must("delete")
    until(lambda: place.domains() == [], "no domain kept by pages that somebody holds")
