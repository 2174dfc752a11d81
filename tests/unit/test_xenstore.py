# SPDX-License-Identifier: Apache-2.0
"""The xenstore client: recorded bytes, a fake server, and servers that misbehave."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.xen import xenstore
from backends.xen.xenstore import Decoder, Message, Op, XenStore, XenStoreError, encode
from runphi_async.testing.xen import FakeXen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: What xenstored 4.17 sent to a client that watched @introduceDomain (t0) and @releaseDomain (t1) while xl made domain
#: 2, then watched its console's tty (t2), read it, asked for a node that is not there, listed, and unwatched.
RECORDED = bytes.fromhex(
    "040000000100000000000000030000004f4b000f00000000000000000000001400000040696e74726f64756365446f6d61696e00"
    "743000040000000200000000000000030000004f4b000f0000000000000000000000120000004072656c65617365446f6d61696e"
    "007431000f00000000000000000000001400000040696e74726f64756365446f6d61696e00743000040000000300000000000000"
    "030000004f4b000f00000000000000000000001f0000002f6c6f63616c2f646f6d61696e2f322f636f6e736f6c652f7474790074"
    "32000200000004000000000000000a0000002f6465762f7074732f3010000000050000000000000007000000454e4f454e540001"
    "0000000600000000000000370000006261636b656e64006261636b656e642d6964006c696d69740074797065006f757470757400"
    "74747900706f72740072696e672d72656600050000000700000000000000030000004f4b000f0000000000000000000000120000"
    "004072656c65617365446f6d61696e00743100"
)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeXen]:
    async with FakeXen(tmp_path) as xen:
        yield xen


@pytest.fixture
async def store(fake: FakeXen) -> AsyncIterator[XenStore]:
    connection = await XenStore.connect((fake.socket,))
    yield connection
    connection.close()


@given(st.lists(st.integers(1, 60)))
def test_a_recorded_stream_cut_anywhere(sizes: list[int]) -> None:
    decoder = Decoder()
    messages = []
    data = RECORDED
    for size in sizes:
        messages += decoder.feed(data[:size])
        data = data[size:]
    messages += decoder.feed(data)
    events = [message.payload for message in messages if message.op == Op.WATCH_EVENT]
    answers = {message.request: message for message in messages if message.op != Op.WATCH_EVENT}
    assert events[:2] == [b"@introduceDomain\0t0\0", b"@releaseDomain\0t1\0"]
    assert events[-1] == b"@releaseDomain\0t1\0"
    assert any(event.endswith(b"/console/tty\0t2\0") for event in events)
    assert answers[1] == (Op.WATCH, 1, 0, b"OK\0")
    assert answers[4].payload.startswith(b"/dev/pts/")
    assert answers[5] == (Op.ERROR, 5, 0, b"ENOENT\0")
    assert b"tty" in answers[6].payload.split(b"\0")
    assert b"".join(map(encode, messages)) == RECORDED


def test_garbage_is_refused_at_its_header() -> None:
    with pytest.raises(XenStoreError, match="a message of 4097 bytes"):
        Decoder().feed(encode(Message(2, 1, 0, b"")) + b"\2\0\0\0\1\0\0\0\0\0\0\0\x01\x10\0\0")


async def test_nodes(store: XenStore) -> None:
    await store.write("/a/b", b"value\xff")
    assert await store.read("/a/b") == b"value\xff"
    assert await store.find("/a/c") is None
    assert await store.directory("/a") == ["b"]
    with pytest.raises(XenStoreError, match="cannot read /a/c in xenstore: ENOENT") as caught:
        await store.read("/a/c")
    assert caught.value.code == "ENOENT"
    await store.remove("/a")
    assert await store.find("/a/b") is None


async def test_requests_at_once_get_their_own_answers(store: XenStore) -> None:
    await asyncio.gather(*(store.write(f"/many/{number}", b"%d" % number) for number in range(200)))
    values = await asyncio.gather(*(store.read(f"/many/{number}") for number in range(200)))
    assert values == [b"%d" % number for number in range(200)]


async def test_watches_tell_every_path_once_until_it_is_taken(store: XenStore, fake: FakeXen) -> None:
    watch = await store.watch("/w", "@releaseDomain")
    assert [await anext(watch), await anext(watch)] == ["/w", "@releaseDomain"]
    for _ in range(3):
        fake.put("/w/x", b"")
    fake.put("/elsewhere", b"")
    fake.put("/w/y", b"")
    await store.read("/w/x")  # all events are here before its answer is
    assert [await anext(watch), await anext(watch)] == ["/w/x", "/w/y"]
    waiting = asyncio.ensure_future(anext(watch))
    fake.put("/w", b"again")
    assert await waiting == "/w"
    await watch.close()
    fake.put("/w", b"unheard")
    await store.read("/w")
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_two_watches_of_one_path_are_two(store: XenStore, fake: FakeXen) -> None:
    first, second = await store.watch("/w"), await store.watch("/w")
    assert await anext(first) == await anext(second) == "/w"
    await first.close()
    fake.put("/w", b"")
    assert await anext(second) == "/w"


async def test_a_server_that_goes_away(store: XenStore, fake: FakeXen) -> None:
    watch = await store.watch("/w")
    await anext(watch)
    for writer, _, _ in tuple(fake._watches):
        writer.close()
    with pytest.raises(StopAsyncIteration):
        await anext(watch)
    assert not store.alive
    with pytest.raises(XenStoreError, match="the connection is closed"):
        await store.read("/w")
    store.close()


async def test_a_question_under_way_when_it_goes_away(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    store = await XenStore.connect((str(tmp_path / "none"), path))
    server, _ = listener.accept()
    asked = asyncio.ensure_future(store.read("/x"))
    await asyncio.sleep(0)
    server.close()
    listener.close()
    with pytest.raises(XenStoreError, match=r"cannot use xenstored at .* any more"):
        await asked


async def test_a_silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "PATIENCE", 0.05)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    store = await XenStore.connect((str(tmp_path / "s"),))
    with pytest.raises(XenStoreError, match="cannot ask xenstored for /x: no answer"):
        await store.read("/x")
    store.close()
    listener.close()


async def test_nobody_there_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(XenStoreError, match="cannot reach xenstored: /nonexistent/s: No such file") as caught:
        await XenStore.connect(("/nonexistent/s", str(tmp_path)))
    assert caught.value.hint is not None


async def test_paths_that_are_none(store: XenStore) -> None:
    for path in ("a\0b", "/" + "x" * xenstore.PATH_MAX):
        with pytest.raises(XenStoreError, match="as a path in xenstore"):
            await store.read(path)
    with pytest.raises(XenStoreError, match="more than a message holds"):
        await store.write("/a", b"x" * 4096)


async def test_no_descriptor_is_left(fake: FakeXen) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        store = await XenStore.connect((fake.socket,))
        await store.watch("/w")
        store.close()
    async with asyncio.timeout(20):
        while len(os.listdir("/proc/self/fd")) > before:  # the server's ends
            await asyncio.sleep(0.01)
