# SPDX-License-Identifier: Apache-2.0
"""Guests that the build before this one made, taken over by this one as by an upgrade of the package."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.system.linuxkit import linux

if TYPE_CHECKING:
    from tests.system.place import Container, Place

SCRIPT: Final = "echo up; read x; echo got $x; read x; exit 6"


def as_before(plan: dict[str, Any]) -> dict[str, Any]:
    """Return what records of version 2 kept of a plan of QEMU's, as they wrote it."""
    named = {channel["name"]: channel for channel in plan.get("channels", ())}
    return {
        "kind": plan["kind"],
        "arch": plan["arch"],
        "vcpus": plan["vcpus"],
        "pins": plan.get("pins", []),
        "share": plan.get("share"),
        "console": named.get(plan.get("console")),
        "net": bool(plan.get("macs")),
        "accel": plan.get("accel", "tcg"),
        "again": bool(plan.get("again")),
        "vouched": plan.get("vouched", False),
    }


def upgrade(place: Place, container: Container) -> None:
    """End the supervisor, and leave the record as the build before this one would have."""
    place.end_supervisor()
    state = container.record / "state.json"
    record = json.loads(state.read_text())
    assert record["version"] == 3, "a new version: have what 3 wrote read here as well"
    record |= {"version": 2, "plan": as_before(record["plan"])}
    state.write_text(json.dumps(record))


def test_an_inmate(place: Place) -> None:
    container = place.running("c1")
    upgrade(place, container)
    assert container.state()["status"] == "running"
    container.must("pause")
    container.must("resume")
    container.type(b"echo on\n")
    container.expect(b"\non\r\n> ")
    container.type(b"exit 6\n")
    assert container.wait() == 6
    container.must("delete")


@pytest.mark.timeout(300)
def test_a_linux_guest(place: Place) -> None:
    container = linux(place, "c1", SCRIPT)
    container.expect(b"up\n")
    upgrade(place, container)
    assert container.state()["status"] == "running"
    container.type(b"a word\n")
    container.expect(b"got a word\n")
    place.end_supervisor()  # and once more: what was taken over once still can be
    assert container.state()["status"] == "running"
    container.type(b"\n")
    assert container.wait() == 6
    assert container.state()["annotations"]["org.runphi.exit-reason"] == "exited with 6"
    container.must("delete")


def test_one_that_was_not_started(place: Place) -> None:
    container = place.create("c1")
    upgrade(place, container)
    assert container.state()["status"] == "created"
    container.must("start")
    container.expect(b"> ")
    place.must("kill", "c1", "KILL")
    assert container.wait() == 137
    container.must("delete")
