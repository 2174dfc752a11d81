# SPDX-License-Identifier: Apache-2.0
"""Whatever happens, and between whichever two steps: a log's files hold exactly what was promised.

A state machine lets a guest print, a disk fill up and recover, logrotate rename files, and kills the process at any
system call, also in the middle of a write. After each such story, once the disk takes bytes again, the files in the
order of their making hold every byte once and in order, except those that were given up, which are counted.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import itertools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import consoles.streams.journal
from consoles.streams import logreader
from consoles.streams.journal import Journal
from consoles.streams.logs import files as files_module
from consoles.streams.logs import sidecar as sidecar_module
from consoles.streams.logs.carry import Carrier, Encoded, Spliced
from consoles.streams.logs.encode import Stamp
from consoles.streams.logs.files import Files, Place
from consoles.streams.logs.sidecar import Sidecar
from consoles.streams.sinks.logfile import _ENCODERS, KINDS
from tests.unit.consolekit import pattern
from tests.unit.logkit import cri_records, from_cri, from_timed, json_records

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 6000
BATCH = 4096


class Died(BaseException):
    """The process was killed."""


def nobody() -> None:
    """Nobody waits for room."""


class System:
    """The ``os`` of the modules under test: it dies or refuses when told to."""

    def __init__(self) -> None:
        #: system calls left to live, None for ever
        self.life: int | None = None
        #: bytes the disk still takes, None for any
        self.disk: int | None = None
        #: files in the order of their making
        self.made: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _step(self) -> bool:
        """Count one system call; whether it is the last one."""
        if self.life is None:
            return False
        if self.life == 0:
            raise Died
        self.life -= 1
        return self.life == 0

    def _room(self, wanted: int, *, dying: bool) -> int:
        if self.disk is not None:
            wanted = min(wanted, self.disk)
            if wanted == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.disk -= wanted
        return max(1, wanted // 3) if dying else wanted

    def writev(self, fd: int, parts: Any) -> int:
        dying = self._step()
        data = b"".join(parts)
        written = os.write(fd, data[: self._room(len(data), dying=dying)])
        if dying:
            raise Died
        return written

    def sendfile(self, out: int, source: int, offset: None, count: int) -> int:
        dying = self._step()
        # what is there, not what may be asked for
        count = min(count, os.fstat(source).st_size - os.lseek(source, 0, os.SEEK_CUR))
        sent = os.sendfile(out, source, offset, self._room(count, dying=dying))
        if dying:
            raise Died
        return sent

    def write(self, fd: int, data: bytes) -> int:
        """Of the index."""
        dying = self._step()
        written = os.write(fd, data[: self._room(len(data), dying=dying)])
        if dying:
            raise Died
        return written

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        self._step()
        if self.disk == 0 and flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        fd = os.open(path, flags, mode, dir_fd=dir_fd)
        inode = os.fstat(fd).st_ino
        if flags & os.O_CREAT and inode not in self.made:
            self.made.append(inode)
        return fd

    def rename(self, old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._step()
        os.rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def unlink(self, name: str, *, dir_fd: int | None = None) -> None:
        self._step()
        os.unlink(name, dir_fd=dir_fd)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self._step()
        return os.pwrite(fd, data, offset)


class LogMachine(RuleBasedStateMachine):
    """One log of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory(prefix="lm", dir="/dev/shm")
        self.path = Path(self.place.name)
        self.logs = self.path / "log"
        self.system = System()
        self.patches = contextlib.ExitStack()
        for module in (files_module, sidecar_module):
            self.patches.enter_context(mock.patch.object(module, "os", self.system))
        self.patches.enter_context(mock.patch.object(consoles.streams.journal, "_PUNCH_STEP", 4096))
        self.memory = os.memfd_create("machine")
        self.journal = Journal(os.dup(self.memory))
        self.cursor = self.journal.cursor()
        self.printed = b""
        self.ticks = itertools.count(1)
        #: (from, to) of what was given up
        self.given_up: list[tuple[int, int]] = []
        self.renamed = itertools.count()
        self.foreign = False
        self.carrier: Carrier | None = None

    @initialize(kind=st.sampled_from([*KINDS, "raw by sidecar"]), rotate=st.booleans())
    def begin(self, kind: str, rotate: bool) -> None:
        self.kind, _, by = kind.partition(" ")
        self.spliced = kind == "raw"
        self.name = KINDS[self.kind].format("console")
        self.max_bytes = MAX_BYTES if rotate else 0
        assert self.spliced == (self.kind == "raw" and not by)
        self.make()

    def make(self) -> None:
        """What a supervisor does when it starts."""
        index = "console.idx" if self.kind == "raw" else ""
        encoder = _ENCODERS[self.kind]
        files = Files(Place(str(self.logs), self.name, self.max_bytes, 1000), encoder.header, index)
        if self.spliced:
            self.carrier = Spliced(self.journal, os.dup(self.cursor), files)
        else:
            self.carrier = Encoded(
                self.journal,
                encoder,
                files,
                Sidecar(str(self.path / "position")),
                indexed=bool(index),
                batch=BATCH,
                now=self.now,
            )

    def now(self) -> Stamp:
        tick = next(self.ticks)
        return Stamp(tick, tick)

    @property
    def lost(self) -> int:
        return sum(end - start for start, end in self.given_up)

    # Section: what happens

    @rule(count=st.integers(1, 9000), text=st.booleans())
    def guest_prints(self, count: int, text: bool) -> None:
        start = self.journal.tail
        data = b"".join(b"line %d of the guest\r\n" % n for n in range(start, start + count))[:count]
        data = data if text else pattern(start, count)
        self.printed += data
        self.journal.append(data)

    @rule(life=st.none() | st.integers(1, 40), disk=st.none() | st.integers(0, 7000), limit=st.integers(1, 20_000))
    def log_is_written(self, life: int | None, disk: int | None, limit: int) -> None:
        self.attempt(lambda carrier: carrier.move(limit, nobody), life, disk)

    @rule(life=st.none() | st.integers(1, 8), hold=st.sampled_from([0, 3000, 20_000]))
    def sink_gives_up(self, life: int | None, hold: int) -> None:
        """What a sink does while the disk refuses."""
        assert self.carrier is not None
        self.carrier.let_go()
        if self.journal.tail - self.carrier.offset <= hold:
            return
        start, upto = self.consumed(), self.journal.tail - hold // 2
        before = self.lost
        self.attempt(lambda carrier: carrier.skip(upto, errno.ENOSPC), life, None)
        if self.carrier.lost > before or (self.spliced and self.carrier.offset == upto):
            self.given_up.append((start, max(start, upto)))

    @rule(life=st.none() | st.integers(1, 20))
    def logrotate(self, life: int | None) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.logs / self.name, self.logs / f"{self.name}-{next(self.renamed):04}")
            self.foreign = True
        self.attempt(lambda carrier: carrier.reopen(), life, None)

    @rule()
    def supervisor_dies(self) -> None:
        self.restart()

    # Section: how it happens

    def attempt(self, action: Callable[[Carrier], None], life: int | None, disk: int | None) -> None:
        assert self.carrier is not None
        self.system.life, self.system.disk = life, disk
        try:
            action(self.carrier)
        except (Died, OSError) as exc:
            self.system.life = self.system.disk = None
            if isinstance(exc, Died):
                self.restart()
            else:
                self.carrier.let_go()
        self.system.life = self.system.disk = None
        self.journal.release(self.carrier.offset)

    def restart(self) -> None:
        assert self.carrier is not None
        self.carrier.close()  # the kernel closes a dead process's descriptors
        self.journal.close()
        self.journal = Journal(os.dup(self.memory))
        self.make()

    def consumed(self) -> int:
        """Offset of the next byte to be encoded, behind a torn batch."""
        return self.carrier._at.offset if isinstance(self.carrier, Encoded) else self.carrier.offset  # type: ignore[union-attr]

    # Section: what must hold

    @invariant()
    def memory_is_kept(self) -> None:
        if self.carrier is not None:
            assert self.journal.base <= self.carrier.offset

    @rule()
    def disk_recovers(self) -> None:
        self.settle()
        self.check()

    def settle(self) -> None:
        assert self.carrier is not None
        while self.carrier.unfinished or self.carrier.offset < self.journal.tail:
            self.carrier.move(1 << 20, nobody)

    def content(self) -> bytes:
        """All files, in the order of their making."""
        found = {}
        for path in self.logs.iterdir() if self.logs.exists() else ():
            if path.name.startswith(self.name):
                found[path.stat().st_ino] = path.read_bytes()
        header = _ENCODERS[self.kind].header
        parts = [found[inode] for inode in self.system.made if inode in found]
        assert len(parts) == len(found)
        # killed within the header, and renamed by logrotate before the next one could complete it
        parts = [part for part in parts if not (len(part) < len(header) and header.startswith(part))]
        assert all(part.startswith(header) for part in parts)
        return b"".join(part[len(header) :] for part in parts)

    def segments(self) -> list[bytes]:
        """What was promised, cut where something was given up."""
        parts, at = [], 0
        for start, end in self.given_up:
            if end > start:
                parts.append(self.printed[at:start])
                at = end
        return [*parts, self.printed[at:]]

    def check(self) -> None:
        content, segments = self.content(), self.segments()
        whole = b"".join(segments)
        assert self.carrier is not None
        if not self.spliced:  # a restart forgets the count of a log whose position the kernel keeps
            assert self.carrier.lost == self.lost
        if self.kind == "raw":
            assert content == whole
            if not self.foreign:
                self.check_reader(content)
        elif self.kind == "cri":
            assert from_cri(content) == whole
            self.check_losses(text for stream, _, text in cri_records(content) if stream == b"stderr")
        elif self.kind == "json-file":
            records = json_records(content)
            text = "".join(record["log"] for record in records if record["stream"] == "stdout")
            last = codecs.getincrementaldecoder("utf-8")("replace").decode(segments[-1])
            assert text == "".join(part.decode("utf-8", "replace") for part in segments[:-1]) + last
            self.check_losses(record["log"].encode() for record in records if record["stream"] == "stderr")
        else:
            assert from_timed(_ENCODERS["timed"].header + content) == whole

    def check_losses(self, marks: Any) -> None:
        assert sum(int(mark.split()[1]) for mark in marks) == self.lost

    def check_reader(self, content: bytes) -> None:
        first, end = logreader.bounds(str(self.logs))
        assert end - first == len(content)
        parts = []
        while first < end:
            at, data = logreader.read(str(self.logs), first, 1 << 20)
            assert at == first
            assert data
            parts.append(data)
            first += len(data)
        assert b"".join(parts) == content

    def teardown(self) -> None:
        if self.carrier is not None:
            self.settle()
            self.carrier.finish()
            if self.kind == "json-file":
                records = json_records(self.content())
                text = "".join(record["log"] for record in records if record["stream"] == "stdout")
                assert text == "".join(part.decode("utf-8", "replace") for part in self.segments())
            else:
                self.check()
            self.carrier.close()
        self.patches.close()
        for fd in (self.memory, self.cursor):
            os.close(fd)
        self.journal.close()
        self.place.cleanup()


LogMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLogMachine = LogMachine.TestCase
