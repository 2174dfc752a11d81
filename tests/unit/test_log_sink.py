# SPDX-License-Identifier: Apache-2.0
"""The sink that drives a log: what it holds back, gives up, says, and does by itself when a disk comes back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consoles.streams import logreader
from consoles.streams.logs import files as files_module
from consoles.streams.logs import sidecar
from consoles.streams.logs.carry import Encoded
from consoles.streams.logs.encode import Cri
from consoles.streams.logs.files import Files
from consoles.streams.sinks import logfile
from consoles.streams.sinks.logfile import KINDS, Place, open_log
from tests.unit.consolekit import journals, pattern, until
from tests.unit.logkit import cri_records, from_cri, from_json, from_timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from consoles.streams.journal import Journal

journal = pytest.fixture(journals)

HOLD = 8000


class Log:
    """A log of any kind, with its task."""

    def __init__(
        self, journal: Journal, directory: Path, kind: str, *, max_bytes: int = 0, max_files: int = 2, name: str = ""
    ) -> None:
        self.journal = journal
        self.path = directory / (name or KINDS[kind].format("console"))
        self.sidecar = directory.parent / "position"
        self.errors: list[OSError] = []
        self.resumed: list[int] = []
        self.sink = open_log(
            journal,
            kind,
            Place(str(directory), self.path.name, max_bytes, max_files),
            sidecar=str(self.sidecar),
            progress=lambda: None,
            on_error=self.errors.append,
            on_resume=self.resumed.append,
            hold=HOLD,
        )
        self.task = asyncio.ensure_future(self.sink.run())

    def print(self, data: bytes) -> None:
        self.journal.append(data)
        self.sink.pump()

    async def written(self) -> None:
        await until(lambda: self.sink.lag == 0 and not self.sink._carrier.unfinished)

    async def close(self) -> None:
        await self.sink.close()
        await self.task


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "RETRY", 0.02)
    monkeypatch.setattr(logfile, "GATHER", 0.001)


class Disk:
    """Refuses what the modules under test write, while told to."""

    def __init__(self) -> None:
        self.refusing = 0
        #: bytes that are still taken
        self.room = 0

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def writev(self, fd: int, parts: list[bytes | memoryview]) -> int:
        data = b"".join(parts)
        if self.refusing:
            if not self.room:
                raise OSError(self.refusing, os.strerror(self.refusing))
            data, self.room = data[: self.room], self.room - min(self.room, len(data))
        return os.write(fd, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(files_module, "os", made)
    return made


async def test_a_prompt_is_in_the_log_at_once(journal: Journal, tmp_path: Path) -> None:
    log = Log(journal, tmp_path / "log", "cri")
    log.print(b"login: ")
    await log.written()
    log.print(b"root\n")
    await log.written()
    assert [record[1:] for record in cri_records(log.path.read_bytes())] == [(b"P", b"login: "), (b"F", b"root")]
    await log.close()


async def test_half_a_character_waits_for_its_rest(journal: Journal, tmp_path: Path) -> None:
    log = Log(journal, tmp_path / "log", "json-file")
    log.print("é".encode()[:1])
    await log.written()
    assert not log.path.exists()
    log.print("é".encode()[1:] + b"\xe2\x82")
    await log.written()
    await log.close()  # nothing more will come
    assert from_json(log.path.read_bytes()) == "é\ufffd"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_short_refusal_loses_nothing(journal: Journal, tmp_path: Path, disk: Disk, kind: str) -> None:
    log = Log(journal, tmp_path / "log", kind)
    log.print(b"before\n")
    await log.written()
    disk.refusing, disk.room = errno.ENOSPC, 1000
    for _ in range(10):
        log.print(b"x" * 500)
        await asyncio.sleep(0.001)
    await until(lambda: log.errors)
    assert log.sink.statistics().failing
    disk.refusing = 0
    await log.written()  # by itself
    await until(lambda: log.resumed)
    assert (len(log.errors), log.resumed, log.sink.lost) == (1, [0], 0)
    assert not log.sink.statistics().failing
    await log.close()
    decode: dict[str, Callable[[bytes], bytes]] = {
        "raw": bytes, "cri": from_cri, "json-file": lambda data: from_json(data).encode(), "timed": from_timed,
    }  # fmt: skip
    assert decode[kind](log.path.read_bytes()) == b"before\n" + b"x" * 5000


@pytest.mark.parametrize("refusal", [errno.ENOSPC, errno.EROFS, errno.EIO])
async def test_a_long_refusal_is_counted_and_said_once(
    journal: Journal, tmp_path: Path, disk: Disk, refusal: int
) -> None:
    log = Log(journal, tmp_path / "log", "cri")
    disk.refusing, disk.room = refusal, 700
    printed = 0
    while log.sink.lost < 50_000:
        log.print(b"a line\n" * 100)
        printed += 700
        await asyncio.sleep(0.001)
        # the guest never waits for more than is held back, and what it has printed
        assert log.sink.lag <= HOLD + 700 * 50
        journal.release(log.sink.needed)
    assert (len(log.errors), log.errors[0].errno, log.resumed) == (1, refusal, [])
    disk.refusing = 0
    await log.written()
    await until(lambda: log.resumed)
    lost = log.sink.lost
    assert log.resumed == [lost]
    await log.close()
    records = cri_records(log.path.read_bytes())
    marks = [text for stream, _, text in records if stream == b"stderr"]
    assert marks == [b"[runphi: %d bytes lost: %s]" % (lost, os.strerror(refusal).encode())]
    assert len(from_cri(log.path.read_bytes())) + lost == printed


async def test_the_mark_comes_even_when_the_guest_says_nothing_more(
    journal: Journal, tmp_path: Path, disk: Disk
) -> None:
    log = Log(journal, tmp_path / "log", "timed")
    disk.refusing = errno.ENOSPC
    log.print(bytes(HOLD + 1))
    await until(lambda: log.sink.lost)
    disk.refusing = 0
    await until(lambda: log.resumed)
    await until(lambda: b"bytes" not in log.path.read_bytes() and log.path.stat().st_size > 100)
    await log.close()


async def test_the_end_does_not_wait_for_a_disk(journal: Journal, tmp_path: Path, disk: Disk) -> None:
    log = Log(journal, tmp_path / "log", "cri")
    disk.refusing, disk.room = errno.ENOSPC, 10
    log.print(b"the last words\n")
    log.sink.hurry()
    await until(lambda: log.sink.lag == 0)
    await asyncio.wait_for(log.close(), 5)
    # the next supervisor of such a container finds the torn record and completes it
    disk.refusing = 0
    again = Log(journal, tmp_path / "log", "cri")
    again.sink.pump()
    await again.written()
    assert from_cri(again.path.read_bytes()) == b"the last words\n"
    await again.close()


async def test_no_memory_for_the_spill(
    journal: Journal, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then only a crash could lose the torn batch; its file is put aside, and the loss is said."""

    def refuse(self: sidecar.Sidecar, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no memory")

    monkeypatch.setattr(sidecar.Sidecar, "spill", refuse)
    log = Log(journal, tmp_path / "log", "cri", max_files=3)
    disk.refusing, disk.room = errno.ENOSPC, 100

    async def give_up() -> None:
        log.print(b"0123456\n" * 500)
        await until(lambda: log.errors)  # a batch is torn …
        log.print(b"0123456\n" * 2000)
        await until(lambda: log.sink.lost)  # … and what follows is given up

    await give_up()
    disk.refusing = 0
    await log.written()
    await log.close()
    assert len(from_cri(log.path.read_bytes())) + log.sink.lost == 20_000  # this process still had the records

    log = Log(journal, tmp_path / "log", "cri", max_files=3)
    disk.refusing, disk.room = errno.ENOSPC, 100
    before = log.sink.lost
    await give_up()
    log.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await log.task
    disk.refusing = 0
    monkeypatch.setattr(journal, "base", journal.tail)  # the memory was given back
    again = Log(journal, tmp_path / "log", "cri", max_files=3)
    again.sink.pump()
    await again.written()
    await again.close()
    assert not Path(f"{log.path}.1").read_bytes().endswith(b"\n")
    stream, _, mark = cri_records(again.path.read_bytes())[0]
    assert stream == b"stderr"
    assert mark.startswith(b"[runphi: %d bytes lost" % (again.sink.lost - before))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_directory_that_vanishes_comes_back(journal: Journal, tmp_path: Path, kind: str) -> None:
    log = Log(journal, tmp_path / "log", kind)
    log.print(b"gone\n")
    await log.written()
    shutil.rmtree(tmp_path / "log")
    log.print(b"here\n")
    await log.written()
    assert b"here" in log.path.read_bytes()
    assert b"gone" not in log.path.read_bytes()
    assert log.errors == []
    await log.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_truncated_by_hand_leaves_no_hole(journal: Journal, tmp_path: Path, kind: str) -> None:
    log = Log(journal, tmp_path / "log", kind)
    log.print(b"x" * 5000 + b"\n")
    await log.written()
    os.truncate(log.path, 0)
    log.print(b"y\n")
    await log.written()
    content = log.path.read_bytes()
    assert content
    assert b"\0" * 100 not in content
    await log.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_rotation_by_size_and_count(journal: Journal, tmp_path: Path, kind: str) -> None:
    log = Log(journal, tmp_path / "log", kind, max_bytes=4096, max_files=4)
    for number in range(40):
        log.print(b"line %06d of the guest\n" % number * 40)
        await log.written()
    files = sorted(path.name for path in (tmp_path / "log").iterdir() if not path.name.startswith("console.idx"))
    name = log.path.name
    assert files == [name, f"{name}.1", f"{name}.2", f"{name}.3"]
    await log.close()
    if kind == "raw":
        first, end = logreader.bounds(str(tmp_path / "log"))
        assert end == journal.tail
        at, data = logreader.read(str(tmp_path / "log"), 0, 10)
        assert (at, data) == (first, journal.read(first, 10))
        assert logreader.tail(str(tmp_path / "log"), 200) >= first
    if kind == "cri":
        parts = [Path(f"{log.path}{end}").read_bytes() for end in (".3", ".2", ".1", "")]
        kept = from_cri(b"".join(parts))
        assert kept == journal.read(journal.tail - len(kept), len(kept))


async def test_one_file_only(journal: Journal, tmp_path: Path) -> None:
    log = Log(journal, tmp_path / "log", "cri", max_bytes=4096, max_files=1)
    for _ in range(10):
        log.print(b"a line of the guest\n" * 50)
        await log.written()
    assert [path.name for path in (tmp_path / "log").iterdir()] == [log.path.name]
    assert log.path.stat().st_size < 8192
    await log.close()


async def test_reopen_makes_the_file_at_once(journal: Journal, tmp_path: Path) -> None:
    log = Log(journal, tmp_path / "log", "cri")
    log.print(b"old\n")
    await log.written()
    log.path.rename(tmp_path / "log" / "moved")
    log.sink.reopen()
    await until(log.path.exists)
    log.print(b"new\n")
    await log.written()
    await log.close()
    assert from_cri((tmp_path / "log" / "moved").read_bytes()) == b"old\n"
    assert from_cri(log.path.read_bytes()) == b"new\n"


@pytest.mark.parametrize("what", ["fifo", "link", "directory"])
async def test_only_regular_files_are_written(journal: Journal, tmp_path: Path, what: str) -> None:
    (tmp_path / "log").mkdir()
    path = tmp_path / "log" / "console.cri.log"
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    if what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(victim)
    else:
        path.mkdir()
    log = Log(journal, tmp_path / "log", "cri")
    log.print(b"x\n")
    await until(lambda: log.errors)
    assert log.errors[0].errno in (errno.ENXIO, errno.ELOOP, errno.EISDIR, errno.EINVAL)
    log.sink.hurry()
    await log.close()
    assert victim.read_bytes() == b"precious"


def test_below_an_allowed_directory_no_link_is_followed(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    for path in (allowed, outside):
        path.mkdir()
    files = Files(Place(str(allowed / "a" / "b"), "x.log", beneath=str(allowed)))
    files.ready(0)
    files.write([b"fine"])
    files.close()
    assert (allowed / "a" / "b" / "x.log").read_bytes() == b"fine"
    (allowed / "link").symlink_to(outside)
    files = Files(Place(str(allowed / "link"), "x.log", beneath=str(allowed)))
    with pytest.raises(NotADirectoryError):
        files.ready(0)
    assert list(outside.iterdir()) == []
    (outside / "victim").write_bytes(b"precious")
    os.link(outside / "victim", allowed / "x.log")
    files = Files(Place(str(allowed), "x.log", beneath=str(allowed)))
    with pytest.raises(OSError, match="another name"):
        files.ready(0)
    assert (outside / "victim").read_bytes() == b"precious"


async def test_a_channel_can_have_raw_logs_by_a_sidecar(journal: Journal, tmp_path: Path) -> None:
    """Without a cursor that the init stub holds; its index is read as the console's."""
    directory, name = str(tmp_path / "log"), "telemetry.log"
    log = Log(journal, tmp_path / "log", "raw", max_bytes=4096, max_files=10, name=name)
    for _ in range(6):
        log.print(pattern(journal.tail, 3000))
        await log.written()
    await log.close()
    assert logreader.bounds(directory, name) == (0, 18_000)
    assert logreader.bounds(directory) == (0, 0)
    at, kept = 0, b""
    while at < 18_000:
        _, data = logreader.read(directory, at, 1 << 20, name)
        kept, at = kept + data, at + len(data)
    assert kept == pattern(0, 18_000)


def test_a_sidecar_that_is_not_whole_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "position"
    made = sidecar.Sidecar(str(path))
    assert made.load() is None
    at = sidecar.Standing(5, 1, 1, errno.EIO, b"\xe2", None)
    made.save(at)
    assert made.load() == at
    made.close()
    data = bytearray(path.read_bytes())
    assert len(data) == sidecar.SIZE
    for position in range(len(data)):
        wrong = bytearray(data)
        wrong[position] ^= 1
        assert sidecar.unpack(bytes(wrong)) is None
    assert sidecar.unpack(b"") is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("kind", ["cri", "json-file", "timed"])
async def test_a_really_full_disk(journal: Journal, small_disk: Path, kind: str) -> None:
    log = Log(journal, small_disk / "log", kind)
    log.sidecar.unlink()  # it belongs into memory, not onto this disk
    log.sink._carrier._sidecar = sidecar.Sidecar(str(small_disk.parent / "position"))  # type: ignore[attr-defined]
    hog = small_disk / "hog"
    log.print(b"before\n")
    await log.written()
    with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    printed = 7
    while log.sink.lost < 20_000:
        log.print(b"words of the guest\n" * 40)
        printed += 760
        await asyncio.sleep(0.001)
    hog.unlink()
    await log.written()
    await until(lambda: log.resumed)
    log.print(b"after\n")
    printed += 6
    await log.written()
    await log.close()
    data = log.path.read_bytes()
    kept = {"cri": from_cri, "json-file": lambda d: from_json(d).encode(), "timed": from_timed}[kind](data)
    assert kept.startswith(b"before\n")
    assert kept.endswith(b"after\n")
    assert len(kept) + log.sink.lost == printed
    assert log.resumed == [log.sink.lost]
    assert (len(log.errors), log.errors[0].errno) == (1, errno.ENOSPC)


async def test_the_next_carrier_starts_where_the_journal_is_kept(journal: Journal, tmp_path: Path) -> None:
    """Without any position (it was removed) what is still in memory is logged, rather than nothing."""
    journal.append(b"kept\n")
    carrier = Encoded(journal, Cri(), Files(Place(str(tmp_path), "x")), sidecar.Sidecar(str(tmp_path / "p")))
    carrier.move(1 << 20, lambda: None)
    carrier.close()
    assert from_cri((tmp_path / "x").read_bytes()) == b"kept\n"
