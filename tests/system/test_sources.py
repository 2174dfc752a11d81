# SPDX-License-Identifier: Apache-2.0
"""Consoles that are sources, and the timeline, in a real supervisor that is killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.place import PATIENCE, RUNPHI, Place, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(90),
]

DATA = Path(__file__).parent.parent / "data" / "jailhouse"
#: Plays recorded consoles, then waits for more on a FIFO, as `jailhouse console -f` waits for the hypervisor.
REPLAY = """
import os, sys
for path in sys.argv[2:]:
    with open(path, "rb") as file:
        while data := file.read(128):
            os.write(1, data)
fifo = os.open(sys.argv[1], os.O_RDWR)
while data := os.read(fifo, 65536):
    os.write(1, data)
"""


@pytest.fixture
def fake_inmates(tmp_path: Path) -> Path:
    """The fake backend does not look at it."""
    (tmp_path / "demo-x86_64.elf").write_bytes(b"x")
    return tmp_path


@pytest.fixture
def place_with(fake_inmates: Path) -> Iterator[Callable[[str], Place]]:
    made: list[Place] = []

    def make(config: str) -> Place:
        made.append(Place(fake_inmates, config))
        return made[-1]

    yield make
    for place in made:
        left = place.close()
        assert not left, "left over:\n" + "\n".join(left)


class Hypervisor:
    """A recorded hypervisor console that goes on as the test says."""

    def __init__(self, directory: Path, *recorded: str) -> None:
        self.fifo = directory / "hypervisor"
        os.mkfifo(self.fifo)
        self._fd = os.open(self.fifo, os.O_RDWR)
        script = directory / "replay.py"
        script.write_text(REPLAY)
        files = " ".join(str(DATA / f"{name}.log") for name in recorded)
        self.config = f'[hypervisor]\nconsole = "exec:{sys.executable} -IS {script} {self.fifo} {files}"\n'

    def prints(self, data: bytes) -> None:
        os.write(self._fd, data)

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    made = Hypervisor(tmp_path, "boot", "two-cells")
    yield made
    made.close()


def items(place: Place, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.must("timeline", "--format", "json", *words).splitlines()]


# Section: a console that is a source


def test_a_guest_whose_console_is_a_source(place_with: Callable[[str], Place]) -> None:
    place = place_with("")
    c = place.running("c1", backend="fake", annotations={"org.runphi.cmdline": "source-console"})
    c.type(b"echo hello\n")
    assert b"\nhello\r\n" in c.expect(b"> ")
    c.type(b"spam 20000\n")
    lines = c.expect(b"line 0020000\r\n> ")
    assert lines.count(b"line ") == 20000
    until(lambda: lines in c.console_log(), "the log has it all")
    c.type(b"exit 3\n")
    assert b"exit 3" in c.rest()
    assert c.wait() == 3


def test_such_a_console_is_opened_again_by_the_next_supervisor(place_with: Callable[[str], Place]) -> None:
    place = place_with("")
    c = place.running("c1", backend="fake", annotations={"org.runphi.cmdline": "source-console"})
    for number in range(3):
        place.kill_supervisor()
        c.type(b"echo number %d\n" % number)
        assert b"\nnumber %d\r\n" % number in c.expect(b"> ")
    c.type(b"exit 0\n")
    assert c.wait() == 0


# Section: the timeline


def test_hypervisor_guests_and_runtime_in_order_of_time(
    place_with: Callable[[str], Place], hypervisor: Hypervisor
) -> None:
    place = place_with(hypervisor.config)
    c = place.running("c1", backend="fake")
    until(lambda: any("count 13" in item["text"] for item in items(place)), "the recorded console")
    hypervisor.prints(b'Parking CPU 1 (Cell: "vcon1")\n')
    until(lambda: any(item["text"].startswith("Parking") for item in items(place)), "a line of now")
    c.type(b"exit 4\n")
    assert c.wait() == 4
    seen = items(place)
    assert [item["time"] for item in seen] == sorted(item["time"] for item in seen)
    assert {item["source"] for item in seen} == {"hypervisor", "cell", "console", "event", "unknown"}
    events = [item["event"] for item in seen if item["source"] == "event"]
    assert (events[0], events[1], events[-1]) == ("create", "start", "exit")
    order = [item["text"] for item in seen]
    banner = next(n for n, text in enumerate(order) if text.startswith("runPHI demo inmate"))
    parking = next(n for n, text in enumerate(order) if text.startswith("Parking"))
    assert banner < parking < order.index("> exit 4")
    assert next(item for item in seen if item["text"].startswith("Parking"))["name"] == "vcon1"
    cells = {item["name"] for item in seen if "count 5" in item["text"]}
    assert cells == {None}  # two cells ran: nobody can tell

    text = place.must("timeline", "c1")
    assert re.search(r"^\S+Z cell       \?                jhtest\[B\] count 5$", text, re.MULTILINE)
    assert re.search(r"^\S+Z console    c1               > exit 4$", text, re.MULTILINE)
    assert re.search(r"^\S+Z event      c1               exit code=4 ", text, re.MULTILINE)
    c.must("delete")
    assert {item["source"] for item in items(place)} == {"hypervisor", "cell", "unknown"}


def test_the_timeline_is_followed_through_the_life_of_containers(
    place_with: Callable[[str], Place], hypervisor: Hypervisor
) -> None:
    place = place_with(hypervisor.config)
    place.must("version")
    out = place.path / "followed"
    with out.open("w") as file:
        process = subprocess.Popen(
            [RUNPHI, "timeline", "-f", "--since", "1h"], env=place.env, stdout=file, stdin=subprocess.DEVNULL
        )
    try:
        until(lambda: "jhtest[B] count 13" in out.read_text(), "the past")
        bundle = place.bundle("later", backend="fake")
        c = place.running("later", made=bundle)
        until(lambda: "console    later            runPHI demo inmate, fake" in out.read_text(), "a new guest")
        hypervisor.prints(b'Started cell "x\x1b[31m"\n')
        until(lambda: 'Started cell "x\\x1b[31m"' in out.read_text(), "the hypervisor, harmless")
        c.type(b"echo \x1b]0;title\x07\nexit 0\n")
        until(lambda: re.search(r"event      later            exit code=0", out.read_text()), "the end")
        c.wait()
        c.must("delete")
        again = place.running("later", made=bundle)
        until(lambda: out.read_text().count("runPHI demo inmate, fake") == 2, "another one of that name")
        again.must("delete", "--force")
        text = out.read_text()
        assert "\x1b" not in text
        assert "\x07" not in text
        assert text.count("jhtest[B] count 13") == 1
        stamps = [line.split(" ", 1)[0] for line in text.splitlines()]
        assert stamps == sorted(stamps)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_following_one_container_ends_with_it(place_with: Callable[[str], Place]) -> None:
    place = place_with("")
    c = place.running("c1", backend="fake")
    with (place.path / "out").open("w") as file:
        words = [RUNPHI, "--root", str(place.root), "timeline", "-f", "c1"]
        process = subprocess.Popen(words, env=place.env, stdout=file)
    until(lambda: "runPHI demo inmate" in (place.path / "out").read_text(), "the guest")
    c.must("delete", "--force")
    assert process.wait(PATIENCE) == 0


def test_the_follow_command_is_known_again_by_the_next_supervisor(
    place_with: Callable[[str], Place], hypervisor: Hypervisor
) -> None:
    """It prints the past once more; it is not shown once more, and the old command is gone."""
    place = place_with(hypervisor.config)
    place.must("version")
    until(lambda: any("count 13" in item["text"] for item in items(place)), "the recorded console")
    place.kill_supervisor()
    hypervisor.prints(b"Shutting down hypervisor\n")
    until(lambda: any(item["text"] == "Shutting down hypervisor" for item in items(place)), "what came behind it")
    texts = [item["text"] for item in items(place)]
    assert sum("count 13" in text for text in texts) == 2  # of two cells, each once
    assert texts.count("Activating hypervisor") == 1
    followers = [words for words in place.processes().values() if "replay.py" in words]
    assert len(followers) == 1


def test_a_command_that_cannot_run_hurts_nobody(place_with: Callable[[str], Place]) -> None:
    place = place_with('[hypervisor]\nconsole = "exec:/nonexistent/jailhouse console -f"\n')
    c = place.running("c1", backend="fake")
    assert "cannot follow the hypervisor's console: cannot run /nonexistent/jailhouse" in place.log()
    c.type(b"exit 0\n")
    assert c.wait() == 0


def test_what_is_wrong_with_a_timeline(place_with: Callable[[str], Place]) -> None:
    place = place_with("")
    place.must("version")
    assert "container does not exist" in place.refused("timeline", "nobody")
    assert "--since wants a duration or a time" in place.refused("timeline", "--since", "soon")
