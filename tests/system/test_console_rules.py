# SPDX-License-Identifier: Apache-2.0
"""Rules, boot times and numbers of a console, through the whole runtime and over the death of its supervisor."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.place import Place, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(90)]

RULES = r"""
[[console.rules]]
name = "ready"
pattern = 'demo inmate'
[[console.rules]]
name = "panic"
pattern = 'Kernel panic - not syncing'
"""
NUMBERS = {"org.runphi.rule.number": r"^line \d+", "org.runphi.rule.panic": ""}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "demo-x86_64.elf").touch()
    made = Place(tmp_path, RULES)
    yield made
    left = made.close()
    assert not left, "left over:\n" + "\n".join(left)


def rules(place: Place) -> dict[str, Any]:
    return {row["name"]: row["matches"] for row in json.loads(place.must("console", "rules", "--format", "json", "c1"))}


def test_a_guest_is_ready_when_its_rule_matches(place: Place) -> None:
    c = place.running("c1", backend="fake")
    until(lambda: "org.runphi.boot.ready-ms" in c.state()["annotations"], "it is ready")
    annotations = c.state()["annotations"]
    times = [int(annotations[f"org.runphi.boot.{name}-ms"]) for name in ("first-byte", "first-line", "ready")]
    assert 0 <= times[0] <= times[1] <= times[2] < 30_000
    event = place.events("c1")[-1]
    assert (event["event"], event["count"], event["line"]) == ("ready", 1, "runPHI demo inmate, fake")
    c.type(b"echo Kernel panic - not syncing: x\n")
    until(lambda: place.events("c1")[-1]["event"] == "panic", "the panic is seen")
    header, ready, panic = place.must("console", "rules", "c1").splitlines()
    assert header.split() == ["RULE", "MATCHES", "PATTERN"]
    assert (ready.split()[:2], panic.split()[0]) == (["ready", "1"], "panic")


def test_counts_and_boot_times_outlive_the_supervisor(place: Place) -> None:
    c = place.running("c1", backend="fake", annotations=NUMBERS)
    c.type(b"spam 100\n")
    until(lambda: rules(place) == {"ready": 1, "number": 100}, "all are counted")
    before = c.state()["annotations"]
    place.kill_supervisor()
    assert c.state()["annotations"] == before
    c.type(b"spam 50\n")
    until(lambda: rules(place) == {"ready": 1, "number": 150}, "all are counted, and none twice")
    c.type(b"spam 7\nexit 0\n")
    c.wait()
    assert json.loads((c.record / "rules.json").read_text())["counts"] == {"ready": 1, "number": 157}
    assert [event["event"] for event in place.events("c1")].count("ready") == 1


def test_stats(place: Place) -> None:
    c = place.running("c1", backend="fake")
    until(lambda: rules(place)["ready"] == 1, "it is ready")
    numbers = json.loads(place.must("stats", "--format", "json", "c1"))
    assert set(numbers["boot"]) == {"first-byte-ms", "first-line-ms", "ready-ms"}
    assert numbers["console"]["received"] > 10
    assert numbers["people"] == {"attached": 0, "may-type": 0, "skipped": 0, "largest-lag": 0}
    assert numbers["rules"] == {"ready": 1, "panic": 0}
    assert numbers["pids"] >= 2
    lines = dict(line.split(None, 1) for line in place.must("stats", "c1").splitlines())
    assert lines["status"] == "running"
    assert lines["rules.ready"] == "1"
    c.type(b"exit 0\n")
    c.wait()
    assert json.loads(place.must("stats", "-f", "json", "c1"))["status"] == "stopped"


def test_a_rule_that_cannot_be_used_is_refused_at_create(place: Place) -> None:
    c = place.create("c1", backend="fake", annotations={"org.runphi.rule.ready": "("})
    assert c.created == 1
    assert "annotation org.runphi.rule.ready: rule ready: cannot use the pattern" in c.error
