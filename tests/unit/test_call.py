# SPDX-License-Identifier: Apache-2.0
"""Clients on a real socket pair: hostile, garbled, cut short or gone; none of them may hurt the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runphi_async import wire
from runphi_async.config.schema import Config
from runphi_async.errors import RunphiError
from runphi_async.supervisor.server import Server
from runphi_async.wire import call as call_module
from runphi_async.wire import outgoing
from runphi_async.wire.call import REQUEST_MAX, Call
from runphi_async.wire.incoming import FRAME_MAX
from runphi_async.wire.outgoing import ClientGone
from tests.unit import clikit
from tests.unit.consolekit import PATIENCE
from tests.unit.wirekit import frames_of, whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from runphi_async.container.registry import Supervisor


class Client:
    """The other end of a call."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair()
        ours.setblocking(False)
        self.sock.setblocking(False)
        self.call = Call(ours)
        self.null = os.open("/dev/null", os.O_RDWR)

    def send(self, data: bytes, fds: int = 0) -> None:
        while data:
            with contextlib.suppress(BlockingIOError):
                if fds:
                    data, fds = data[socket.send_fds(self.sock, [data], [self.null] * fds) :], 0
                else:
                    data = data[self.sock.send(data) :]

    def ask(self, *argv: bytes) -> None:
        self.send(wire.request(b"/cwd", [b"A=1"], list(argv)), 3)

    async def answer(self) -> bytes:
        """All that comes until the other end hangs up."""
        loop, data = asyncio.get_running_loop(), b""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionResetError):
                while more := await loop.sock_recv(self.sock, 65536):
                    data += more
        return data

    def close(self) -> None:
        self.sock.close()
        if self.null >= 0:
            os.close(self.null)
            self.null = -1
        self.call.close()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = Client()
    yield made
    made.close()


async def test_a_request(client: Client) -> None:
    client.send(wire.request(b"/c\xff", [b"A=1", b"B=x=y"], [b"create", b"", b"\xfe"]), 3)
    await client.call.receive()
    assert client.call.argv == ["create", "", "\udcfe"]
    assert client.call.cwd == "/c\udcff"
    assert client.call.env == {"A": "1", "B": "x=y"}
    assert client.call.pid == os.getpid()
    assert len(client.call.fds) == 3
    assert not any(os.get_inheritable(fd) for fd in client.call.fds)
    assert client.call.path("x/../y") == "/c\udcff/y"
    assert client.call.path("/abs") == "/abs"


async def test_a_request_in_pieces(client: Client) -> None:
    data = wire.request(b"/", [], [b"x" * 100_000, b"y"]) + wire.frame(wire.INPUT, b"early")
    client.send(data[:5], 3)
    receiving = asyncio.ensure_future(client.call.receive())
    for start in range(5, len(data), 9000):
        client.send(data[start : start + 9000])
        await asyncio.sleep(0)
    await receiving
    assert client.call.argv == ["x" * 100_000, "y"]
    client.call.listen()
    assert await client.call.frame() == (wire.INPUT, b"early")
    client.sock.close()
    await asyncio.wait_for(client.call.gone.wait(), PATIENCE)
    with pytest.raises(ClientGone):
        await client.call.frame()


GOOD = wire.request(b"/", [b"A=1"], [b"version"])


def body(content: bytes) -> bytes:
    return wire.MAGIC + len(content).to_bytes(4, "big") + content


HOSTILE = {
    "nothing": (b"", 0),
    "no magic": (b"GET / HTTP/1.1\r\n\r\n", 3),
    "no descriptors": (GOOD, 0),
    "one descriptor": (GOOD, 1),
    "magic only": (wire.MAGIC, 3),
    "half a length": (GOOD[:6], 3),
    "half a body": (GOOD[:-3], 3),
    "huge length": (wire.MAGIC + b"\xff\xff\xff\xff", 3),
    "a bit too large": (wire.MAGIC + (REQUEST_MAX + 1).to_bytes(4, "big"), 3),
    "empty body": (body(b""), 3),
    "one field": (body(wire.pack([b"/"])), 3),
    "four fields": (body(wire.pack([b"/", b"", b"", b""])), 3),
    "a field longer than the body": (body(b"\0\0\0\x02/"), 3),
    "half a length of a field": (body(wire.pack([b"/", b"", b""]) + b"\0\0"), 3),
    "argv cut off": (body(wire.pack([b"/", b"", b"\0\0\0\x09x"])), 3),
    "environment without =": (body(wire.pack([b"/", wire.pack([b"AAA"]), b""])), 3),
    "a NUL in argv": (wire.request(b"/", [], [b"create\0--bundle"]), 3),
    "a NUL in the environment": (wire.request(b"/", [b"TERM=x\0RUNPHI_CONFIG=/x"], []), 3),
    "a NUL in the directory": (wire.request(b"/\0", [], []), 3),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_requests_are_refused(client: Client, name: str) -> None:
    data, fds = HOSTILE[name]
    if data:
        client.send(data, fds)
    client.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ClientGone):
        await client.call.receive()


async def test_more_descriptors_than_asked_for_do_not_stay(client: Client) -> None:
    before = len(os.listdir("/proc/self/fd"))
    client.send(GOOD, 50)
    await client.call.receive()
    assert len(os.listdir("/proc/self/fd")) == before + 3
    client.call.close_fds()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_client_that_says_nothing_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module, "PATIENCE", 0.02)
    with pytest.raises(TimeoutError):
        await client.call.receive()


async def test_a_client_that_takes_nothing_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "PATIENCE", 0.02)
    with pytest.raises(ClientGone, match="does not take"):
        await client.call.out(b"x" * 5_000_000)


async def test_a_client_that_left_is_noticed(client: Client) -> None:
    client.sock.close()
    with pytest.raises(ClientGone):
        await client.call.error("text")


async def test_answers_arrive_whole(client: Client) -> None:
    reading = asyncio.ensure_future(client.answer())
    text = "ü" * 400_000
    await client.call.out(text)
    await client.call.error("e\udcff")
    client.call.close()
    *out, last = frames_of(await reading)
    assert {kind for kind, _ in out} == {wire.OUT}
    assert b"".join(payload for _, payload in out).decode() == text
    assert last == (wire.ERR, b"e\xff")


@pytest.mark.parametrize(
    "frame", [wire.frame(wire.PID, b"12"), wire.frame(wire.PID, b"-1"), wire.frame(b"?", b"1"), b""]
)
async def test_spawn_believes_only_a_pid(client: Client, frame: bytes) -> None:
    client.ask(b"create")
    await client.call.receive()
    client.call.listen()
    client.send(frame)
    client.sock.shutdown(socket.SHUT_WR)
    if frame == wire.frame(wire.PID, b"12"):
        assert await client.call.spawn("/", ["x"], client.call.fds) == 12
    else:
        with pytest.raises(ClientGone):
            await client.call.spawn("/", ["x"], client.call.fds)


async def test_no_word_of_the_init_process_ends_before_its_end(client: Client) -> None:
    client.ask(b"create")
    await client.call.receive()
    with pytest.raises(RunphiError, match="NUL character"):
        await client.call.spawn("/", ["qemu", "-append", "x\0-chardev\0file,id=p,path=/host"], client.call.fds)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_fields_are_counted_whatever_they_hold(fields: list[bytes]) -> None:
    assert wire.unpack(wire.pack(fields)) == fields


@given(st.binary(max_size=64))
def test_no_payload_is_more_than_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert wire.pack(wire.unpack(data)) == data


@given(
    frames=st.lists(st.tuples(st.sampled_from([wire.OUT, wire.EXIT, b"\0"]), st.binary(max_size=300)), max_size=20),
    cuts=st.lists(st.integers(1, 40), min_size=1),
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    frames: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data, decoder = b"".join(wire.frame(*frame) for frame in frames), wire.Decoder(305)
    found: list[tuple[bytes, bytes]] = []
    for count in itertools.cycle(cuts):
        if not data:
            break
        decoder.feed(data[:count])
        data = data[count:]
        found += whole(decoder)
    assert found == frames


@pytest.mark.parametrize(("most", "refused"), [(14, True), (15, False), (0, False)])
def test_a_frame_that_is_too_long_is_refused_by_its_head_alone(most: int, refused: bool) -> None:
    decoder = wire.Decoder(most)
    decoder.feed(wire.frame(wire.OUT, bytes(10))[:5])
    with pytest.raises(ValueError, match="too long") if refused else contextlib.nullcontext():
        assert decoder.take() is None


async def test_a_frame_too_large_ends_the_listening(client: Client) -> None:
    client.call.listen()
    client.send(wire.INPUT + (FRAME_MAX + 1).to_bytes(4, "big"))
    await asyncio.wait_for(client.call.gone.wait(), PATIENCE)
    with pytest.raises(ClientGone):
        await client.call.frame()


async def test_a_frame_too_large_behind_others_ends_the_listening(client: Client) -> None:
    client.call.listen()
    client.send(wire.frame(wire.INPUT, b"x") + wire.INPUT + (FRAME_MAX + 1).to_bytes(4, "big"))
    assert await client.call.frame() == (wire.INPUT, b"x")
    with pytest.raises(ClientGone):
        await client.call.frame()
    assert client.call.gone.is_set()


async def flood(client: Client) -> int:
    """Send until nothing is taken any more; return how many frames went, the last of which may be half."""
    sent = blocked = 0
    while blocked < 50:
        try:
            client.sock.send(wire.frame(wire.INPUT, b"x" * 1000))
            sent += 1
            blocked = 0
        except BlockingIOError:
            blocked += 1
            await asyncio.sleep(0)
    return sent


async def test_a_flood_of_frames_waits_for_its_reader(client: Client) -> None:
    client.call.listen()
    sent = await flood(client)
    assert sent < 2000
    for _ in range(sent - 1):
        assert await client.call.frame() == (wire.INPUT, b"x" * 1000)
    assert not client.call.gone.is_set()
    client.sock.close()
    with contextlib.suppress(ClientGone):
        await client.call.frame()
    await asyncio.wait_for(client.call.gone.wait(), PATIENCE)


async def test_a_hangup_is_seen_behind_what_nobody_reads(client: Client) -> None:
    client.call.listen()
    before = len(os.listdir("/proc/self/fd"))
    sent = await flood(client)
    assert not client.call.gone.is_set()
    client.sock.close()
    await asyncio.wait_for(client.call.gone.wait(), PATIENCE)
    taken = 0
    with contextlib.suppress(ClientGone):  # it was said, and can still be taken
        while await client.call.frame() == (wire.INPUT, b"x" * 1000):
            taken += 1
    assert sent - 1 <= taken <= sent
    assert len(os.listdir("/proc/self/fd")) == before - 1


async def test_a_large_frame_comes_in_pieces(client: Client) -> None:
    client.call.listen()
    taking = asyncio.ensure_future(client.call.frame())
    data = wire.frame(wire.INPUT, bytes(FRAME_MAX - 5))
    while data:
        with contextlib.suppress(BlockingIOError):
            data = data[client.sock.send(data) :]
        await asyncio.sleep(0)
    assert await taking == (wire.INPUT, bytes(FRAME_MAX - 5))


# Section: the supervisor survives all of them


async def served(supervisor: Supervisor, client: Client) -> bytes:
    with anyio.fail_after(PATIENCE):
        answering = asyncio.ensure_future(Server(supervisor).answer(client.call))
        data = await client.answer()
        await answering
    return data


@pytest.mark.parametrize("name", HOSTILE)
async def test_the_supervisor_hangs_up_on_the_hostile(tmp_path: Path, client: Client, name: str) -> None:
    supervisor = clikit.supervisor(Config(), str(tmp_path))
    data, fds = HOSTILE[name]
    if data:
        client.send(data, fds)
    client.sock.shutdown(socket.SHUT_WR)
    assert await served(supervisor, client) == b""


async def test_the_supervisor_answers(tmp_path: Path, client: Client) -> None:
    client.ask(b"version")
    data = await served(clikit.supervisor(Config(), str(tmp_path)), client)
    assert data.startswith(wire.OUT)
    assert data.endswith(wire.frame(wire.EXIT, b"0"))


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "in a group"])
async def test_a_client_that_leaves_is_no_error(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, grouped: bool
) -> None:
    from runphi_async.commands import version

    async def slow(call: Call, *_: object) -> None:
        client.sock.close()
        if not grouped:
            await call.frame()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call.frame)
            tasks.start_soon(anyio.sleep_forever)

    monkeypatch.setattr(version, "run", slow)
    client.ask(b"version")
    with anyio.fail_after(PATIENCE):
        await Server(clikit.supervisor(Config(), str(tmp_path))).answer(client.call)
    assert caplog.records == []


async def test_a_verb_that_breaks_is_answered_all_the_same(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from runphi_async.commands import version

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(version, "run", broken)
    client.ask(b"version")
    data = await served(clikit.supervisor(Config(), str(tmp_path)), client)
    assert b"internal error" in data
    assert data.endswith(wire.frame(wire.EXIT, b"1"))
    assert "ZeroDivisionError" in caplog.text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), fds=st.integers(0, 4), start=st.booleans(), seed=st.integers(0, 99))
def test_noise(tmp_path: Path, data: bytes, fds: int, start: bool, seed: int) -> None:
    async def once() -> None:
        client = Client()
        noise = (wire.MAGIC if start else b"") + data
        if seed % 3 == 0:
            changed = bytearray(GOOD + data)
            changed[random.Random(seed).randrange(len(GOOD))] ^= 0x41
            noise = bytes(changed)
        before = len(os.listdir("/proc/self/fd"))
        if noise:
            client.send(noise, fds)
        client.sock.shutdown(socket.SHUT_WR)
        try:
            await served(clikit.supervisor(Config(runc="/nonexistent"), str(tmp_path)), client)
            assert len(os.listdir("/proc/self/fd")) == before - 1  # its socket, and all it sent
        finally:
            client.close()

    asyncio.run(once())
