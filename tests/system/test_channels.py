# SPDX-License-Identifier: Apache-2.0
"""Shared-memory channels of real guests: written and read by the demo inmate, killed around, and lied to."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from consoles.sharedmem import shmfiles
from tests.system.place import PATIENCE, ROOT, RUNPHI, Container, Place, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(120),
]

TELEMETRY: Final = {"org.runphi.channel.telemetry": "shmem,size=64KiB"}
#: lines of 14 bytes: a megabyte
LINES: Final = 75_000


def spam(count: int) -> bytes:
    return b"".join(b"line %07d\r\n" % number for number in range(1, count + 1))


@pytest.fixture
def place(inmates_built: Path) -> Iterator[Place]:
    made = Place(inmates_built)
    yield made
    left = made.close()
    left += [entry.name for entry in shm_files(made)]
    assert not left, "left over:\n" + "\n".join(left)


def shm_files(place: Place) -> list[Path]:
    return list(Path(shmfiles.SHM).glob(shmfiles.prefix(str(place.run_dir)) + "*"))


def log_of(c: Container, channel: str = "telemetry") -> bytes:
    directory = c.place.path / "log" / c.record.name / "channels" / channel
    parts = []
    for name in ("console.log.1", "console.log"):
        with contextlib.suppress(FileNotFoundError):
            parts.append((directory / name).read_bytes())
    return b"".join(parts)


def ask(c: Container, line: str) -> bytes:
    """Type a command at the demo inmate's prompt; return what it answered."""
    c.type(line.encode() + b"\r")
    c.expect(line.encode() + b"\r\n")
    return c.expect(b"> ").removesuffix(b"> ")


def channel(c: Container, name: str = "telemetry") -> dict[str, Any]:
    rows: list[dict[str, Any]] = json.loads(c.must("channels", "--format", "json"))
    return next(row for row in rows if row["name"] == name)


class Attached:
    """`runphi attach` on pipes."""

    def __init__(self, c: Container, *words: str) -> None:
        argv = [RUNPHI, "--root", str(c.root), "attach", *words, c.name]
        self.process = subprocess.Popen(argv, env=c.place.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.seen = b""

    def type(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def expect(self, text: bytes) -> bytes:
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0], self.seen[
                -99:
            ]
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, f"ended before {text!r}: {self.seen[-99:]!r}"
            self.seen += data
        end = self.seen.index(text) + len(text)
        shown, self.seen = self.seen[:end], self.seen[end:]
        return shown

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


# Section: bytes


def arm(place: Place, name: str) -> Path:
    """Make a bundle of the arm64 demo inmate."""
    bundle = place.bundle(name, annotations=TELEMETRY)
    inmate = bundle / "rootfs" / "boot" / "inmate.elf"
    inmate.unlink()
    os.link(place.inmates / "demo-aarch64.elf", inmate)
    return bundle


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_a_guest_writes_and_reads_its_channel(place: Place, arch: str) -> None:
    c = place.running("c1", **({"made": arm(place, "c1")} if arch == "aarch64" else {"annotations": TELEMETRY}))
    (file,) = shm_files(place)
    assert file.stat().st_mode & 0o777 == 0o600
    assert ask(c, "chan") == b"* telemetry\r\n"
    ask(c, "chan write 21.5 degrees")
    until(lambda: log_of(c) == b"21.5 degrees\n", "the line in the channel's log")
    assert c.must("logs", "--channel", "telemetry") == "21.5 degrees\n"
    with Attached(c, "--channel", "telemetry") as attached:
        attached.expect(b"21.5 degrees\n")
        attached.type(b"set point 20\n")
        until(lambda: channel(c)["waiting_down"] == 13, "the line in the ring")
        assert ask(c, "chan read") == b"set point 20\n\r\n"
        c.type(b"chan echo\r")
        attached.type(b"to and fro")
        attached.expect(b"to and fro")
        attached.type(b"\x04")
        c.expect(b"> ")
    numbers = channel(c)
    assert numbers["guest"] == "open"
    assert numbers["violations"] == 0
    assert numbers["received"] == 23
    # nothing of the channel is in the console, and nothing of the console in the channel
    assert b"degrees\n" not in c.console_log().replace(b"degrees\r\n", b"")
    table = c.must("channels")
    assert table.splitlines()[0].split()[:2] == ["NAME", "SOURCE"]
    assert "shmem,size=64KiB" in table
    c.type(b"exit 0\r")
    assert c.wait() == 0
    assert shm_files(place) == []
    assert "21.5 degrees\n" in c.must("logs", "--channel", "telemetry")
    assert "telemetry" in c.must("channels")


def test_a_megabyte_comes_whole_while_somebody_watches(place: Place) -> None:
    c = place.running("c1", annotations=TELEMETRY)
    with Attached(c, "--channel", "telemetry", "--no-stdin") as attached:
        ask(c, f"chan spam {LINES}")
        attached.expect(b"line %07d\r\n" % LINES)
    until(lambda: len(log_of(c)) >= 14 * LINES, "all of it in the log")
    assert log_of(c) == spam(LINES)
    assert channel(c)["violations"] == 0


def test_nothing_is_lost_or_doubled_when_the_supervisor_is_killed(place: Place) -> None:
    c = place.running("c1", annotations=TELEMETRY)
    followed = place.path / "followed"
    with open(followed, "wb") as out:
        argv = [RUNPHI, "--root", str(c.root), "logs", "-f", "--channel", "telemetry", c.name]
        follower = subprocess.Popen(argv, env=place.env, stdin=subprocess.DEVNULL, stdout=out)
    c.type(b"chan spam %d\r" % LINES)
    for part in (1, 2, 3):
        # A client looks for the next supervisor a few times only: kill none that the follower has not come back to.
        until(lambda part=part: followed.stat().st_size > part * 200_000, "a part of it")  # type: ignore[misc]
        place.kill_supervisor()
    c.expect(b"> ")
    until(lambda: len(log_of(c)) >= 14 * LINES, "all of it in the log")
    assert log_of(c) == spam(LINES)
    assert channel(c)["violations"] == 0
    with Attached(c, "--channel", "telemetry") as attached:
        attached.expect(b"line %07d\r\n" % LINES)
        place.kill_supervisor()
        c.type(b"chan echo\r")
        attached.type(b"hello again\x04")
        attached.expect(b"hello again")
    c.type(b"exit 0\r")
    assert follower.wait(PATIENCE) == 0
    assert followed.read_bytes() == spam(LINES) + b"hello again"


def test_what_the_guest_wrote_last_is_kept_when_it_ends(place: Place) -> None:
    c = place.running("c1", annotations=TELEMETRY)
    c.type(b"chan spam 1000\rexit 4\r")
    assert c.wait() == 4
    assert log_of(c) == spam(1000)


def test_a_guest_that_ends_while_no_supervisor_runs(place: Place) -> None:
    c = place.running("c1", annotations=TELEMETRY)
    ask(c, "chan write first")
    os.kill(place.pid(), signal.SIGSTOP)
    typed = os.open(c.record / "con.in", os.O_WRONLY)  # nobody passes on what the engine types
    os.write(typed, b"chan spam 1000\rexit 4\r")
    os.close(typed)
    until(lambda: (c.record / "vmm.status").exists(), "the guest's end")
    place.kill_supervisor()
    assert c.wait() == 4
    assert log_of(c) == b"first\n" + spam(1000)


def test_logrotate_may_rename_a_channels_log(place: Place) -> None:
    c = place.running("c1", annotations=TELEMETRY)
    ask(c, "chan write before")
    until(lambda: log_of(c) == b"before\n", "the first line")
    log = c.place.path / "log" / c.record.name / "channels" / "telemetry" / "console.log"
    log.rename(log.with_name("kept"))
    c.must("reopen-logs")
    ask(c, "chan write behind")
    until(lambda: log.exists() and log.read_bytes() == b"behind\n", "the line in a new file")
    assert log.with_name("kept").read_bytes() == b"before\n"


# Section: guests that break the rules


def test_a_guest_that_writes_nonsense_harms_itself_only(place: Place) -> None:
    bad = place.running("bad", annotations=TELEMETRY)
    good = place.running("good", annotations=TELEMETRY)
    ask(bad, "chan write before")
    until(lambda: log_of(bad) == b"before\n", "the first line")
    for word in range(0, 0x100, 4):
        for value in (0, 0x7FFFFFFF, 0xFFFFFFFF, 0xDEADBEEF):
            ask(bad, f"chan poke {word:#x} {value:#x}")
    ask(good, "chan write unharmed")
    until(lambda: log_of(good) == b"unharmed\n", "the other guest's line")
    until(lambda: channel(bad)["violations"] > 3, "violations counted")
    told = [event for event in place.events("bad") if event["event"] == "channel-violation"]
    assert len(told) == 1  # once a minute at most
    size = len(log_of(bad))
    assert size <= 64 * 4 * 32768
    # the next supervisor puts the header right, and a guest that opens the channel anew can use it
    place.kill_supervisor()
    ask(bad, "chan open")
    ask(bad, "chan write after")
    until(lambda: log_of(bad).endswith(b"after\n"), "the line behind the nonsense")
    assert channel(good)["violations"] == 0


# Section: the console by a channel


def test_a_channel_is_the_console(place: Place) -> None:
    annotations = {**TELEMETRY, "org.runphi.console": "channel:telemetry"}
    c = place.create("c1", annotations=annotations)
    c.must("start")
    with Attached(c, "--channel", "serial") as serial:
        serial.expect(b"> ")
        serial.type(b"chan write hello\r")
        c.expect(b"hello\n")
        serial.expect(b"> ")
        serial.type(b"chan echo\r")
        serial.expect(b"chan echo\r\n")
        c.type(b"from the engine")
        c.expect(b"from the engine")
        place.kill_supervisor()
        c.type(b"again\x04")
        c.expect(b"again")
        serial.expect(b"> ")
        serial.type(b"exit 6\r")
        assert c.wait() == 6
    assert c.console_log().startswith(b"hello\nfrom the engine")
    assert b"runPHI demo inmate" in log_of(c, "serial")


# Section: what is refused, and what is given back


def test_places_of_the_host_must_be_allowed(place: Place) -> None:
    c = place.create("c1", annotations={"org.runphi.channel.a": "shmem:/dev/uio0:2"})
    assert c.created == 1
    assert "channels.places" in c.error
    c = place.create("c2", annotations={"org.runphi.channel.a": "shmem,size=5000"})
    assert "power of two" in c.error
    c = place.create("c3", annotations={"org.runphi.console": "channel:a"})
    assert "there is no such channel" in c.error
    assert shm_files(place) == []


def test_a_source_of_the_host_is_a_channel(inmates_built: Path) -> None:
    listener = Path(f"/tmp/rps-channel-{os.getpid()}.sock")
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listener))
        server.listen()
        place = Place(inmates_built, f'[source]\nhost_paths = ["{listener}"]\n')
        try:
            c = place.running("c1", annotations={"org.runphi.channel.board": f"unix:{listener}"})
            server.settimeout(PATIENCE)
            peer, _ = server.accept()
            with peer, Attached(c, "--channel", "board") as attached:
                peer.sendall(b"from the board\n")
                attached.expect(b"from the board\n")
                attached.type(b"to the board\n")
                assert peer.recv(100) == b"to the board\n"
        finally:
            left = place.close()
            listener.unlink()
    assert not left, left


def test_unknown_channels_are_named(place: Place) -> None:
    c = place.running("c1", annotations=TELEMETRY)
    assert "it has: telemetry" in c.refused("logs", "--channel", "other")
    assert "it has: telemetry" in c.refused("attach", "--channel", "other")


def test_memory_of_a_guest_that_was_killed_with_its_supervisor_is_swept(place: Place) -> None:
    c = place.running("c1", annotations=TELEMETRY)
    (file,) = shm_files(place)
    stray = shmfiles.make(str(c.record), "stray", 4096)
    (c.record / "ch.stray").unlink()
    os.kill(place.pid(), signal.SIGSTOP)
    os.kill(c.pid, signal.SIGKILL)
    place.kill_supervisor()
    until(lambda: c.state()["status"] == "stopped", "its end")
    assert not Path(stray).exists()
    assert shm_files(place) in ([], [file])
    c.must("delete")
    assert shm_files(place) == []


# Section: a Linux guest


def test_a_linux_guest_joins_its_channel(place: Place) -> None:
    bundle = place.bundle(
        "c1", annotations=TELEMETRY, process={"env": ["LINUX=1"], "args": ["/channel-demo", "telemetry"]}
    )
    demo = ROOT / "examples" / "channels" / "linux_demo.c"
    flags = ["-static", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", bundle / "rootfs" / "channel-demo", demo], check=True)
    c = place.create("c1", made=bundle)
    c.must("start")
    until(lambda: channel(c).get("guest") == "open", "the guest on its channel")
    with Attached(c, "--channel", "telemetry") as attached:
        c.type(b"from linux\n")
        attached.expect(b"from linux\n")
        attached.type(b"to linux\n")
        c.expect(b"to linux\n")
    os.close(c.stdin)
    c.stdin = -1
    assert c.wait() == 0
    assert log_of(c) == b"from linux\n"
