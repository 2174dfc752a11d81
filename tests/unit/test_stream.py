# SPDX-License-Identifier: Apache-2.0
"""A container's streams assembled as the product does: the console on FIFOs or on a source, and a stream beside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from msgspec import UNSET

from consoles.errors import SourceError
from runphi_async.config.schema import Config
from runphi_async.events import AnyEvent, kind
from runphi_async.partition.channels import SERIAL, Channel
from runphi_async.partition.logplan import LogPlan
from runphi_async.record.lifecycle import Status
from runphi_async.record.store import Record
from runphi_async.terminals import channels
from runphi_async.terminals.channels import ChannelStream
from runphi_async.terminals.console import FIFOS, Console, Held, Lifeline
from runphi_async.terminals.people import Role, Wish
from runphi_async.terminals.sessions import Who
from runphi_async.wire.outgoing import Outgoing, Outlet
from tests.unit.consolekit import pipe, read_until, until
from tests.unit.sourcekit import Puppet
from tests.unit.wirekit import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runphi_async.terminals.stream import Stream

CONFIG = Config()
WHO = Who("anna", 42, "pts/3", "")


class Owner:
    """A container that remembers what its streams tell it."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.record = Record(
            id="c1", name="c1", root="", bundle="", rootfs="", backend="", status=Status.RUNNING, created=0.0,
            boot_id="", log_dir=str(directory / "log"),
        )  # fmt: skip
        self.events: list[AnyEvent] = []
        self.sizes: list[tuple[int, int]] = []
        self.ends = 0
        self.changes: list[str | None] = []

    def note(self, event: AnyEvent) -> None:
        self.events.append(event)

    def resize(self, rows: int, cols: int) -> None:
        self.sizes.append((rows, cols))

    def end_of_input(self, total: int) -> None:
        self.ends += 1

    def console_changed(self, reason: str | None) -> None:
        self.changes.append(reason)


class Ends:
    """What is around a container: the guest's end of its FIFOs, and the engine's of its stdio."""

    def __init__(self, directory: Path) -> None:
        for name in FIFOS:
            os.mkfifo(directory / name)
        self.owner = Owner(directory)
        self.guest = os.open(directory / "con.out", os.O_RDWR | os.O_NONBLOCK)
        self.keyboard = os.open(directory / "con.in", os.O_RDWR | os.O_NONBLOCK)
        theirs, self.engine_in = pipe()
        self.engine_out, out = pipe()
        self.fds = [self.guest, self.keyboard, theirs, self.engine_in, self.engine_out, out]
        self.lifeline = Lifeline("test", (theirs, out, out))

    def held(self) -> Held:
        return self.lifeline.held()

    def console(self, source: Any = None) -> Console:
        plans = (LogPlan("raw", self.owner.record.log_dir, "console.log", 0, 2),)
        return Console(self.owner, CONFIG.console, plans, self.held(), source)

    def close(self) -> None:
        self.lifeline.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    yield made
    made.close()


async def test_a_console_from_guest_to_engine_log_and_back(ends: Ends, tmp_path: Path) -> None:
    console = ends.console()
    assert not console.is_source
    assert console.one_way == ""
    async with anyio.create_task_group() as tasks:
        console.start(tasks)
        await console.opened()
        os.write(ends.guest, b"login: ")
        assert await read_until(ends.engine_out, 7) == b"login: "
        os.write(ends.engine_in, b"root\n")
        assert await read_until(ends.keyboard, 5) == b"root\n"
        console.typed(b"ls\n")
        assert await read_until(ends.keyboard, 3) == b"ls\n"
        with pytest.raises(SourceError, match="no serial line"):
            await console.send_break()
        os.write(ends.guest, b"bye\n")
        assert await console.drain()
        await console.close()
    assert await read_until(ends.engine_out, 4) == b"bye\n"
    assert (tmp_path / "log" / "console.log").read_bytes() == b"login: bye\n"
    assert ends.owner.events == []


async def test_a_console_that_never_began_lets_go_of_everything(ends: Ends) -> None:
    before = len(os.listdir("/proc/self/fd"))
    console = ends.console()
    await console.close()
    # the journal is the lifeline's as well, and was closed with the console
    assert len(os.listdir("/proc/self/fd")) == before - 1


async def test_a_next_supervisor_goes_on_at_the_byte(ends: Ends) -> None:
    """What the first has brought to engine and log is not brought again; what it left in the FIFO comes."""
    console = ends.console()
    cursors = [os.dup(fd) for fd in ends.lifeline.cursors]
    journal = os.dup(console.hub.journal.fd)
    async with anyio.create_task_group() as tasks:
        console.start(tasks)
        os.write(ends.guest, b"first ")
        assert await read_until(ends.engine_out, 6) == b"first "
        await console.logs.caught_up()
        tasks.cancel_scope.cancel()
    await console.close()
    os.write(ends.guest, b"second")
    next_one = Console(
        ends.owner,
        CONFIG.console,
        (LogPlan("raw", ends.owner.record.log_dir, "console.log", 0, 2),),
        Held(type(console.hub.journal)(journal), (cursors[0], cursors[1]), ends.held().stdio),
    )
    async with anyio.create_task_group() as tasks:
        next_one.start(tasks)
        assert await read_until(ends.engine_out, 6) == b"second"
        await next_one.drain()
        await next_one.close()
    with open(os.path.join(ends.owner.record.log_dir, "console.log"), "rb") as file:
        assert file.read() == b"first second"


async def test_a_console_on_a_source_marks_that_it_is_gone(ends: Ends) -> None:
    source = Puppet()
    console = ends.console(source)
    assert console.is_source
    async with anyio.create_task_group() as tasks:
        console.start(tasks)
        await console.opened()
        source.listener.received(b"on a line\n")
        source.listener.gone("unplugged")
        source.listener.back()
        console.typed(b"x")
        source.rest = b"last words"
        assert await console.drain()
        await console.close()
    assert source.written == b"x"
    assert source.closed == 1
    shown = os.read(ends.engine_out, 1 << 16)
    assert shown.startswith(b"on a line\n[runphi: the console is gone: unplugged]\r\n")
    assert shown.endswith(b"last words")
    assert ends.owner.changes == ["unplugged", None]


async def test_the_engines_end_of_input_is_told_once(ends: Ends) -> None:
    console = ends.console()
    async with anyio.create_task_group() as tasks:
        console.start(tasks)
        os.close(ends.engine_in)
        ends.fds.remove(ends.engine_in)
        await until(lambda: ends.owner.ends)
        await console.drain()
        await console.close()
    assert ends.owner.ends == 1


async def attach(stream: Stream) -> bytes:
    """Attach somebody who types a size; return what a client is sent."""
    peer = Peer()
    outgoing = Outgoing(peer.ours)
    sink = stream.attach(Outlet(outgoing), None, 0)
    session = stream.people.join(WHO, "", Wish.PLAIN, sink)
    assert [row.role for row in stream.people.rows()] == [Role.WRITER.value]
    assert session.types()
    await sink.drained()
    stream.people.leave(session)
    stream.hub.detach(sink)
    shown = b"".join(payload for _, payload in peer.frames())
    outgoing.close()
    peer.close()
    return shown


async def test_people_belong_to_their_stream(ends: Ends) -> None:
    record = ends.owner.record
    record.channels = (Channel("telemetry", 4096), Channel("log", 4096))
    record.console_channel = "log"
    console, serial = ends.console(Puppet()), ChannelStream(ends.owner, CONFIG, None)
    assert serial.name == SERIAL
    async with anyio.create_task_group() as tasks:
        console.start(tasks)
        serial.start(tasks)
        os.write(ends.guest, b"on the port\n")
        await until(lambda: serial.hub.journal.tail == 12)
        assert b"on the port\n" in await attach(serial)
        assert b"on the port\n" not in await attach(console)
        serial.typed(b"u-boot\n")
        assert await read_until(ends.keyboard, 7) == b"u-boot\n"
        numbers = serial.statistics()
        await serial.drain()
        await console.drain()
        await serial.close()
        await console.close()
    assert [(kind(event), getattr(event, "channel", None)) for event in ends.owner.events] == [
        ("attach", SERIAL), ("detach", SERIAL), ("attach", UNSET), ("detach", UNSET),
    ]  # fmt: skip
    assert (numbers["received"], numbers["typed"], numbers["source"]) == (12, 7, "serial port")
    assert serial.statistics()["received"] == 0  # closed


async def test_a_stream_that_cannot_be_made_leaves_the_others_to_be_closed(ends: Ends) -> None:
    ends.owner.record.channels = (Channel("good", place="unix:/nowhere"), Channel("bad", place="nonsense:"))
    made: dict[str, ChannelStream] = {}
    with pytest.raises(SourceError):
        channels.open_all(made, CONFIG, ends.owner)
    assert list(made) == ["good"]
    await made["good"].close()
