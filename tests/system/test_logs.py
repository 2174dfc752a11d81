# SPDX-License-Identifier: Apache-2.0
"""Logs of containers: every kind at once, across kills, rotation, logrotate, full disks; replay and --safe."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from consoles.streams.logs.encode import Stamp
from consoles.streams.timed import Timed
from tests.system.place import PATIENCE, RUNPHI, Place, until
from tests.unit.logkit import cri_records, from_cri, from_json, from_timed, json_records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.place import Container

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(90)]

ALL = {"org.runphi.log": "raw,cri,json-file,timed"}
#: a disk of its own, full after a few lines
DISK = 256 << 10


@pytest.fixture
def place(inmates_built: Path) -> Iterator[Place]:
    made = Place(inmates_built, log='path_dirs = ["PLACE/allowed"]\n')
    (made.path / "allowed").mkdir()
    yield made
    disk = made.path / "allowed" / "disk"
    if os.path.ismount(disk):
        subprocess.run(["umount", "-l", disk], check=True)
    left = made.close()
    assert not left, "left over:\n" + "\n".join(left)


@pytest.fixture
def disk(place: Place) -> Path:
    """A small file system below the directory that containers may log to."""
    path = place.path / "allowed" / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", path], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    return path


def logs(container: Container) -> Path:
    return container.place.path / "log" / container.record.name


def parts(path: Path) -> list[Path]:
    """The files of a log, oldest first."""
    numbered = [p for p in path.parent.glob(path.name + ".*") if p.suffix[1:].isdigit()]
    return [*sorted(numbered, key=lambda p: -int(p.suffix[1:])), path]


class Follower:
    """``runphi logs -f`` into a file, which is known to have begun."""

    def __init__(self, container: Container, out: Path, *words: str) -> None:
        command = [RUNPHI, "--root", str(container.root), "logs", "-f", *words, container.name]
        self.out = out
        self.err = out.with_suffix(".err")
        with out.open("wb") as stdout, self.err.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, env=container.place.env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
        until(lambda: out.stat().st_size, "the first lines")

    def has(self, line: bytes, count: int) -> None:
        until(lambda: self.out.read_bytes().count(line) == count, f"{count} times {line!r}")

    def end(self) -> bytes:
        code = self.process.wait(PATIENCE)
        assert (code, self.err.read_bytes()) == (0, b"")
        return self.out.read_bytes()


@pytest.mark.parametrize("backend", [pytest.param("qemu", marks=pytest.mark.qemu), "fake"])
def test_every_kind_holds_the_same_across_kills(place: Place, backend: str) -> None:
    c = place.running("c1", backend=backend, annotations=ALL)
    for _ in range(3):
        c.type(b"spam 3000\n")
        c.expect(b"line 0001000\r\n")
        place.kill_supervisor()
        c.expect(b"line 0003000\r\n")
        c.expect(b"> ")

    def whole() -> bool:
        raw = c.console_log()
        with contextlib.suppress(AssertionError, ValueError):  # a batch may be half written
            cri, objects, timed = (
                (logs(c) / f"console.{end}").read_bytes() for end in ("cri.log", "json.log", "timed")
            )
            same = from_cri(cri) == raw == from_timed(timed) and from_json(objects) == raw.decode()
            # each log may be behind by a batch, and all by the same one
            return same and raw.endswith(b"> ") and raw.count(b"line 0003000\r\n") == 3
        return False

    until(whole, "the same in every log")
    assert c.console_log().count(b"line 0002500\r\n") == 3
    # the prompt has no newline and is there all the same
    assert cri_records((logs(c) / "console.cri.log").read_bytes())[-1][1:] == (b"P", b"> ")
    assert json_records((logs(c) / "console.json.log").read_bytes())[-1]["log"].endswith("> ")
    assert place.must("logs", "c1").endswith("> ")
    stats = json.loads(place.must("events", "--stats", "c1"))["data"]["logs"]
    assert [(log["kind"], log["lost"], log["failing"]) for log in stats] == [
        (kind, 0, False) for kind in ("raw", "cri", "json-file", "timed")
    ]
    c.type(b"exit 5\n")
    assert c.wait() == 5
    assert from_cri((logs(c) / "console.cri.log").read_bytes()) == c.console_log()
    # the recording can be played by the container's name, and by its path, with the pauses left out
    played = place.must("replay", "--speed", "max", "c1").encode()
    assert played == c.console_log().replace(b"\r\n", b"\n")  # read as text
    assert place.must("replay", "--speed", "max", str(logs(c) / "console.timed")).encode() == played
    directory = logs(c)
    c.must("delete")
    assert not directory.exists()


def test_a_container_may_have_no_log(place: Place) -> None:
    c = place.running("c1", backend="fake", annotations={"org.runphi.log": "none"})
    assert not (place.path / "log").exists()
    error = place.refused("logs", "c1")
    assert error.startswith("cannot show logs: nothing is logged")
    assert place.refused("replay", "c1").startswith("cannot replay c1: it has no timed log")
    place.must("kill", "c1", "KILL")
    assert c.wait() == 137


def test_logs_says_where_the_log_is_that_it_cannot_show(place: Place) -> None:
    c = place.running("c1", backend="fake", annotations={"org.runphi.log": "cri"})
    assert str(logs(c) / "console.cri.log") in place.refused("logs", "c1")
    assert os.readlink(c.record / "console") == str(logs(c) / "console.cri.log")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("syslog", "'syslog' is no kind of log"),
        ("cri:max-size=10X", "'10X' is not a size"),
        ("cri:path=/etc/cron.d/x", "cannot log to /etc/cron.d/x: log.path_dirs allows"),
        ("raw:max-size=100G", "log.annotation_max_bytes allows 1 GiB"),
    ],
)
def test_what_cannot_be_logged_is_refused_at_create(place: Place, asked: str, message: str) -> None:
    c = place.create("c1", backend="fake", annotations={"org.runphi.log": asked})
    assert c.created == 1
    assert message in c.error
    assert not (place.path / "log").exists()


def test_a_path_of_its_own(place: Place) -> None:
    """It lies below an allowed directory, is not shared, follows no link, and stays when the container goes."""
    allowed, outside = place.path / "allowed", place.path / "outside"
    outside.mkdir()
    (allowed / "link").symlink_to(outside)
    asked = {"org.runphi.log": f"raw,cri:path={allowed}/pods/demo/0.log"}
    c = place.running("c1", backend="fake", annotations=asked)
    clash = place.create("c2", backend="fake", annotations=asked)
    assert "another container does" in clash.error
    c.type(b"exit 0\n")
    assert c.wait() == 0
    log = allowed / "pods" / "demo" / "0.log"
    assert from_cri(log.read_bytes()) == c.console_log()
    c.must("delete")
    assert log.exists()

    c = place.running("c3", backend="fake", annotations={"org.runphi.log": f"cri:path={allowed}/link/x.log"})
    error = until(lambda: [e for e in place.events("c3") if e["event"] == "log-error"], "an event")[0]
    assert (error["log"], error["path"], error["error"]) == ("cri", f"{allowed}/link/x.log", "Not a directory")
    c.type(b"exit 0\n")
    assert c.wait() == 0
    assert list(outside.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_costs_the_guest_nothing(place: Place, disk: Path) -> None:
    asked = {"org.runphi.log": f"raw,cri:path={disk}/demo.log,timed:path={disk}/demo.timed:max-size=1M"}
    c = place.running("c1", backend="fake", annotations=asked)
    hog = disk / "hog"
    with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    for _ in range(2):  # far more than may be held back for the disk
        c.type(b"spam 60000\n")
        c.expect(b"line 0060000\r\n")
        c.expect(b"> ")

    def events(kind: str) -> list[dict[str, object]]:
        return [e for e in place.events("c1") if e["event"] == kind]

    # said once for each log, however often it was tried
    until(lambda: len(events("log-error")) == 2, "two events")
    assert {(e["log"], e["error"]) for e in events("log-error")} == {
        ("cri", "No space left on device"), ("timed", "No space left on device")
    }  # fmt: skip
    stats = {log["kind"]: log for log in json.loads(place.must("events", "--stats", "c1"))["data"]["logs"]}
    assert stats["cri"]["failing"]
    assert not stats["raw"]["failing"]
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    hog.unlink()
    # writing goes on by itself: the guest says nothing meanwhile
    resumed = until(lambda: len(events("log-resumed")) == 2 and events("log-resumed"), "two events")
    lost = {str(e["log"]): int(str(e["lost"])) for e in resumed}
    assert lost["cri"] > 0
    c.type(b"exit 0\n")
    assert c.wait() == 0
    printed = c.console_log()
    records = cri_records((disk / "demo.log").read_bytes())
    marks = [text for stream, _, text in records if stream == b"stderr"]
    assert marks == [b"[runphi: %d bytes lost: No space left on device]" % lost["cri"]]
    kept = from_cri((disk / "demo.log").read_bytes())
    assert len(kept) + lost["cri"] == len(printed)
    hole = next((i for i, (a, b) in enumerate(zip(kept, printed, strict=False)) if a != b), len(kept))
    assert printed.endswith(kept[hole:])  # one hole, and nothing else is missing
    assert len(from_timed((disk / "demo.timed").read_bytes())) + lost["timed"] == len(printed)
    assert b"bytes lost: No space left on device]" in place.must("replay", "--speed", "max", "c1").encode()
    assert [e["event"] for e in place.events("c1")].count("log-error") == 2


def test_a_short_refusal_loses_nothing(place: Place, disk: Path) -> None:
    c = place.running("c1", backend="fake", annotations={"org.runphi.log": f"raw,cri:path={disk}/demo.log"})
    hog = disk / "hog"
    with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    c.type(b"spam 3000\n")  # fits on the disk without the hog
    c.expect(b"line 0003000\r\n")
    until(lambda: any(e["event"] == "log-error" for e in place.events("c1")), "an event")
    place.kill_supervisor()  # in the middle of a record
    hog.unlink()
    c.type(b"exit 0\n")
    assert c.wait() == 0
    assert from_cri((disk / "demo.log").read_bytes()) == c.console_log()


@pytest.mark.parametrize("how", ["verb", "verb for all", "signal"])
def test_logrotate(place: Place, how: str) -> None:
    c = place.running("c1", backend="fake", annotations=ALL)
    names = [logs(c) / f"console.{end}" for end in ("log", "cri.log", "json.log", "timed")]
    until(lambda: all(path.exists() for path in names), "the first files")
    for number in range(3):
        for path in names:
            path.rename(f"{path}-{number}")
        if how == "signal":
            os.kill(place.pid(), signal.SIGHUP)
        elif how == "verb":
            assert place.must("reopen-logs", "c1") == ""
        else:
            assert place.must("reopen-logs") == ""
        until(lambda: all(path.exists() for path in names), "new files")
        c.type(b"echo round %d\n" % number)
        c.expect(b"\nround %d\r\n> " % number)
    c.type(b"exit 0\n")
    assert c.wait() == 0
    contents = {
        name: [logs(c).joinpath(f"{name}{suffix}").read_bytes() for suffix in ("-0", "-1", "-2", "")]
        for name in ("console.log", "console.cri.log", "console.timed")
    }
    whole = b"".join(contents["console.log"])
    assert whole.count(b"\nround ") == 3
    assert from_cri(b"".join(contents["console.cri.log"])) == whole
    assert b"".join(from_timed(part) for part in contents["console.timed"]) == whole
    assert place.must("logs", "c1").encode() == contents["console.log"][-1].replace(b"\r\n", b"\n")


def test_following_through_rotations_and_a_new_supervisor(inmates_built: Path, tmp_path: Path) -> None:
    place = Place(inmates_built, log="max_bytes = 8192\nmax_files = 60\n")
    try:
        c = place.running("c1", backend="fake", annotations={"org.runphi.log": "raw,cri:max-size=8K:max-files=60"})
        followers = [Follower(c, tmp_path / "plain"), Follower(c, tmp_path / "safe", "--safe")]
        for number in range(1, 4):
            c.type(b"spam 4000\n")
            c.expect(b"line 0002000\r\n")
            place.kill_supervisor()
            c.expect(b"line 0004000\r\n")
            for follower in followers:  # each has found the new supervisor before that is killed as well
                follower.has(b"line 0004000", number)
        c.type(b"exit 3\n")
        assert c.wait() == 3
        raw = [path.read_bytes() for path in parts(logs(c) / "console.log")]
        assert len(raw) > 5
        whole = b"".join(raw)
        assert all(8192 <= len(part) <= 8192 + 4096 for part in raw[:-1])
        for follower, expected in zip(followers, (whole, whole.replace(b"\r\n", b"\n")), strict=True):
            assert follower.end() == expected
        cri = b"".join(path.read_bytes() for path in parts(logs(c) / "console.cri.log"))
        assert whole.endswith(from_cri(cri))  # the oldest may be gone: these lines are longer
        assert place.must("logs", "--tail", "5", "c1").splitlines()[0].startswith("line 0003")
    finally:
        left = place.close()
    assert not left, "left over:\n" + "\n".join(left)


def test_replay(place: Place, tmp_path: Path) -> None:
    c = place.running("c1", backend="fake", annotations={"org.runphi.log": "timed"})
    time.sleep(1.0)  # a pause that is recorded
    c.type(b"exit 0\n")
    assert c.wait() == 0
    recording = logs(c) / "console.timed"
    begun = time.monotonic()
    played = place.must("replay", "c1")
    assert time.monotonic() - begun >= 0.9
    assert "fake" in played
    assert place.must("replay", "--speed", "max", "--from", "8", str(recording)) == played[8:]
    # an hour passes between the two: the test would time out
    long = tmp_path / "long"
    hour = [Stamp(0, 0), Stamp(0, 3600 * 10**9)]
    long.write_bytes(Timed.header + b"".join(b"".join(Timed().encode(b"words\n", b"", when)[0]) for when in hour))
    for option, value in (("--speed", "max"), ("--speed", "1000000"), ("--idle", "0.01"), ("--idle", "0")):
        assert place.must("replay", option, value, str(long)) == "words\nwords\n"
    damaged = tmp_path / "damaged"
    damaged.write_bytes(recording.read_bytes()[:-3])
    done = place.call("replay", "--speed", "max", str(damaged))
    assert done.returncode == 1
    assert done.stdout
    assert played.startswith(done.stdout)  # what is whole is played
    assert f"cannot replay {damaged}: truncated: the record at byte " in done.stderr
    (tmp_path / "text").write_text("no recording\n")
    for words, message in (
        ((str(tmp_path / "text"),), "not a timed recording"),
        ((str(tmp_path / "missing"),), "No such file or directory"),
        ((str(tmp_path),), "not a regular file"),
        (("--speed", "0", "c1"), "--speed wants a number above 0, or max, not '0'"),
        (("--speed", "fast", "c1"), "--speed wants"),
        (("--idle", "-1", "c1"), "--idle wants seconds"),
        (("nobody",), "container does not exist"),
    ):
        done = place.call("replay", *words)
        assert done.returncode == 1
        assert message in done.stderr


def test_safe(place: Place) -> None:
    c = place.running("c1", backend="fake")
    c.type(b"echo \x1b]0;owned\x07\x1b[2Jgone\xff\n")
    c.expect(b"gone\xff\r\n> ")
    until(lambda: c.console_log().count(b"gone") == 2, "the log")
    shown = place.must("logs", "--safe", "c1")
    assert "^[]0;owned^G^[[2Jgone\\xff\n" in shown
    assert "\x1b" not in shown
    assert "\r" not in shown


@pytest.mark.qemu
def test_logrotate_of_a_channels_log(place: Place) -> None:
    c = place.running("c1", annotations={"org.runphi.channel.telemetry": "shmem,size=64KiB"})
    log = logs(c) / "channels" / "telemetry" / "console.log"
    c.type(b"chan write one\r")
    until(lambda: log.exists() and log.read_bytes() == b"one\n", "the first line")
    log.rename(log.with_name("moved"))
    assert place.must("reopen-logs", "c1") == ""
    until(log.exists, "a new file")
    c.type(b"chan write two\r")
    until(lambda: log.read_bytes() == b"two\n", "the second line")
    assert log.with_name("moved").read_bytes() == b"one\n"
    assert place.must("logs", "--channel", "telemetry", "c1") == "two\n"


def test_what_was_seen_is_in_the_log(place: Place) -> None:
    """Whoever has read a line on the terminal finds it with `logs`, however soon he asks."""
    c = place.running("c1", backend="fake")
    for number in range(10):
        c.type(b"echo %d\n" % number)
        c.expect(b"\n%d\r\n> " % number)
        assert place.must("logs", "c1").endswith(f"\n{number}\n> ")
