# SPDX-License-Identifier: Apache-2.0
"""attach, logs, send and events in this process: a real call and a real hub, and a guest that a pipe stands for."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import anyio
import pytest

from consoles.streams import terminal
from consoles.streams.feed import Feed
from consoles.streams.fifo import FifoSource
from consoles.streams.journal import Journal
from runphi_async import wire
from runphi_async.commands import cli, shown
from runphi_async.config.schema import Config
from runphi_async.events import Attach
from runphi_async.terminals.sessions import Sessions
from runphi_async.wire.console import AttachStart, unpack_offset
from runphi_async.wire.outgoing import ClientGone
from tests.unit import clikit
from tests.unit.consolekit import PATIENCE, drain, pattern, pipe, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from consoles.streams.sinks.attach import AttachSink, Outlet
    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor


class Machine:
    """Stands where a running container stands: all that verbs on a console ask of one."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.record = SimpleNamespace(name="c1", id="c1", root="/r", exit_code=7, attached=True)
        self.settled = anyio.Event()
        self.people = Sessions(lambda event: None, lambda rows, cols: None)
        printed, self.printing = pipe()
        self.keyboard, typing = pipe()
        self.source = FifoSource(printed, typing)
        self.feed = Feed(Journal.create("test"), self.source, window=1 << 22, replay=1 << 22)
        self.hub, self.input = self.feed.hub, self.feed.input
        self.console = self
        self.hub.start()

    def stream(self, channel: str | None) -> Machine:
        assert channel is None
        return self

    def typed(self, data: bytes) -> None:
        self.feed.typed(data)

    def logs(self, channel: str | None) -> tuple[()]:
        return ()

    def attach(self, outlet: Outlet, start: int | None, rows: int) -> AttachSink:
        return self.hub.attach(outlet, start=start, rows=rows, limit=1 << 22)

    def close(self) -> None:
        self.input.close()
        self.hub.close()
        self.source.shut()
        os.close(self.printing)
        os.close(self.keyboard)


@pytest.fixture
async def supervisor(tmp_path: Path) -> Supervisor:
    return clikit.supervisor(Config(runc="/nonexistent/runc"), str(tmp_path))


@pytest.fixture
async def machine(supervisor: Supervisor, tmp_path: Path) -> AsyncIterator[Machine]:
    directory = tmp_path / "c1"
    directory.mkdir()
    made = Machine(str(directory))
    supervisor.guests["c1"] = cast("Container", made)
    yield made
    made.close()


@asynccontextmanager
async def asking(supervisor: Supervisor, *argv: str, terminal: int | None = None) -> AsyncIterator[clikit.Client]:
    """A verb at work; it must have ended when its client is done with."""
    fds = () if terminal is None else (terminal,) * 3
    async with clikit.client(*argv, fds=fds) as client:
        client.verb = asyncio.ensure_future(cli.run(client.call, supervisor))
        yield client
        await ended(client)


async def ended(client: clikit.Client) -> None:
    """Wait for the verb's end."""
    try:
        await asyncio.wait_for(client.verb, PATIENCE)
    except ClientGone:
        assert client.theirs.fileno() < 0, "the client is there"
    if client.theirs.fileno() >= 0:
        client.read()


# Section: attach


async def test_attach_to_a_pipe_says_how_and_shows_what_was_printed(supervisor: Supervisor, machine: Machine) -> None:
    machine.hub.say(b"hello\n")
    async with asking(supervisor, "attach", "--detach-keys", "ctrl-a,b", "c1") as client:
        await client.heard(wire.CONSOLE, b"hello")
        machine.hub.say(b"more")
        await client.heard(wire.CONSOLE, b"hello\nmore")
        machine.settled.set()
    kind, payload = client.answer.frames[0]
    assert kind == wire.ATTACH
    start = AttachStart.decode(payload)
    assert (start.terminal, start.stdin, start.people, start.forward) == (False, True, True, False)
    assert (start.escape, start.detach) == (b"\x1d", b"\x01b")
    assert (client.answer.status, client.answer.said(wire.ROLE)) == (7, "writer")
    assert client.answer.said(wire.NOTICE) == ""


@pytest.mark.parametrize(
    ("words", "stdin", "escape"),
    [((), True, b"\x1d"), (("--observe",), True, b"\x1d"), (("--escape-key", ""), True, b"")],
)
async def test_attach_on_a_terminal(
    supervisor: Supervisor, machine: Machine, words: tuple[str, ...], stdin: bool, escape: bytes
) -> None:
    master, slave = terminal.open_pty(terminal.Size(24, 80))
    async with asking(supervisor, "attach", *words, "c1", terminal=slave) as client:
        await client.heard(wire.ATTACH)
        client.say(wire.RESIZE, b"30 100")
        await client.heard(wire.ROLE)
        (row,) = machine.people.rows()
        assert row.tty.startswith("pts/")
        client.say(wire.DETACH)
    start = AttachStart.decode(client.answer.payload(wire.ATTACH))
    assert (start.terminal, start.stdin, start.escape) == (True, stdin, escape)
    assert client.answer.said(wire.NOTICE).startswith("console of c1; ")
    assert client.answer.status == 0
    assert machine.people.rows() == []
    os.close(master)
    os.close(slave)


async def test_what_is_typed_right_before_leaving_arrives(supervisor: Supervisor, machine: Machine) -> None:
    async with asking(supervisor, "attach", "c1") as client:
        await client.heard(wire.ROLE)
        client.say(wire.INPUT, b"last ")
        client.say(wire.INPUT, b"words")
        client.leave()
    assert drain(machine.keyboard) == b"last words"


async def test_who_only_watches_types_in_vain_until_taking_over(supervisor: Supervisor, machine: Machine) -> None:
    async with asking(supervisor, "attach", "--observe", "c1") as client:
        await client.heard(wire.ROLE, b"observer")
        client.say(wire.INPUT, b"no")
        client.say(wire.INPUT, b"no")
        await client.heard(wire.NOTICE, b"you only watch")
        client.say(wire.ASK, b"t")
        client.say(wire.INPUT, b"yes")
        await client.heard(wire.ROLE, b"observerwriter")
        client.say(wire.DETACH)
    assert drain(machine.keyboard) == b"yes"
    assert client.answer.said(wire.NOTICE).count("you only watch") == 1


async def test_a_hangup_ends_it_though_the_guest_takes_nothing(supervisor: Supervisor, machine: Machine) -> None:
    async with asking(supervisor, "attach", "c1") as client:
        await client.heard(wire.ROLE)
        for _ in range(40):
            client.theirs.setblocking(True)
            client.theirs.settimeout(0.05)
            try:
                client.say(wire.INPUT, bytes(30_000))
            except TimeoutError:
                break
            await asyncio.sleep(0.001)
        assert not machine.input.has_room
        client.leave()
    assert machine.people.rows() == []


async def test_the_exit_status_is_not_lost_in_half_a_frame(
    supervisor: Supervisor, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest has ended and its last output does not reach the client in time."""
    monkeypatch.setattr(shown, "LAST_BYTES", 0.02)
    async with asking(supervisor, "attach", "c1") as client:
        await client.heard(wire.ROLE)
        client.dawdle()
        machine.hub.say(pattern(0, 2_000_000))
        machine.settled.set()
        await until(lambda: not machine.people.rows())  # it was given up
        client.go_on()
    assert client.answer.status == 7
    seen = client.answer.payload(wire.CONSOLE)
    assert 0 < len(seen) < 2_000_000
    assert seen == pattern(0, len(seen))
    assert unpack_offset(client.answer.payload(wire.CONSOLE_AT)) == 0


# Section: events, send, and clients that go


async def test_events_are_followed_until_the_client_goes(supervisor: Supervisor, machine: Machine) -> None:
    supervisor.events.write(machine.directory, Attach(who="anna", role="writer"))
    async with asking(supervisor, "events", "c1") as client:
        await client.heard(wire.OUT, b"anna")
        supervisor.events.write(machine.directory, Attach(who="bob", role="writer"))
        await client.heard(wire.OUT, b"bob")
        client.leave()


async def test_events_are_followed_until_the_container_is_deleted(supervisor: Supervisor, machine: Machine) -> None:
    async with asking(supervisor, "events", "c1") as client:
        supervisor.events.write(machine.directory, Attach(who="anna", role="writer"))
        await client.heard(wire.OUT, b"anna")
        supervisor.drop(cast("Container", machine))
    assert client.answer.status == 0


async def test_a_file_is_typed(supervisor: Supervisor, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"print me\n")
    answer = await clikit.answer(supervisor, "send", "c1", str(tmp_path / "file"))
    assert (answer.status, drain(machine.keyboard)) == (0, b"print me\n")
    assert machine.people.rows() == []


async def test_a_client_that_goes_is_no_error_in_the_engines_log(supervisor: Supervisor, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    async with clikit.client("--log", str(log), "version") as client:
        client.leave()
        with pytest.raises(ClientGone):
            await cli.run(client.call, supervisor)
    assert not log.exists()
