# SPDX-License-Identifier: Apache-2.0
"""The shared-memory source on the loop: it brings every byte, rests when nothing comes, and outlives its supervisor."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest

from consoles.errors import SourceError
from consoles.sharedmem.regions import Mapping, open_region
from consoles.sources import shmem
from consoles.sources.shmem import ShmemSource
from runphi_async.testing.shmempeer import Peer
from tests.unit.consolekit import pattern, until
from tests.unit.sourcekit import Ear

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

SIZE = 4096


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "channel"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
async def opened(memory: Path) -> AsyncIterator[Callable[..., object]]:
    sources: list[ShmemSource] = []

    async def make(ear: Ear, **more: object) -> ShmemSource:
        sources.append(ShmemSource(str(memory), "a", SIZE, **more))  # type: ignore[arg-type]
        await sources[-1].open(ear)
        return sources[-1]

    yield make
    for source in sources:
        await source.close()


def guest(memory: Path) -> Peer:
    peer = Peer(open_region(str(memory)))
    peer.open()
    return peer


async def test_bytes_come_and_go(memory: Path, opened: Callable[..., object]) -> None:
    ear = Ear()
    source = await opened(ear)  # type: ignore[misc]
    peer = guest(memory)
    sent = 0
    while sent < 20_000:
        sent += peer.write(pattern(sent, 20_000 - sent))
        await asyncio.sleep(0)
    await until(lambda: len(ear.data) == sent)
    assert bytes(ear.data) == pattern(0, sent)
    assert source.write(b"hello") == 5
    assert peer.read() == b"hello"
    assert source.statistics().channel.received == sent


async def test_input_waits_for_room_and_is_told(memory: Path, opened: Callable[..., object]) -> None:
    source = await opened(Ear())  # type: ignore[misc]
    peer = guest(memory)
    assert source.write(bytes(5000)) == 1024
    assert source.write(b"x") == 0
    woken = asyncio.Event()
    source.when_writable(woken.set)
    await asyncio.sleep(0.01)
    assert not woken.is_set()
    peer.read(10)
    await asyncio.wait_for(woken.wait(), 20)
    assert source.write(bytes(100)) == 10


async def test_a_paused_source_takes_nothing(memory: Path, opened: Callable[..., object]) -> None:
    ear = Ear()
    source = await opened(ear)  # type: ignore[misc]
    peer = guest(memory)
    source.pause()
    assert peer.write(pattern(0, 9999)) == 2048
    before = source.statistics().looks
    await until(lambda: source.statistics().looks > before + 3)
    assert ear.data == b""
    source.resume()
    await until(lambda: len(ear.data) == 2048)


async def test_a_guest_that_comes_back_is_told(
    memory: Path, opened: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shmem, "STEADY", 0.0)
    ear = Ear()
    source = await opened(ear)  # type: ignore[misc]
    peer = guest(memory)
    peer.write(b"x")
    await until(lambda: ear.data == b"x" and source.statistics().noticed)
    assert ear.said == []
    peer.open()
    await until(lambda: ear.said == ["gone: the guest opened it anew", "back"])
    peer.close()
    await until(lambda: ear.said[2:] == ["gone: the guest closed it"])
    peer.open()
    await until(lambda: ear.said[3:] == ["back"])


async def test_a_guest_that_flickers_is_believed_seldom(memory: Path, opened: Callable[..., object]) -> None:
    ear = Ear()
    source = await opened(ear)  # type: ignore[misc]
    peer = guest(memory)
    start = time.monotonic()
    for _ in range(300):
        peer.region.store(Peer.STATE, 2)
        peer.region.store(Peer.GENERATION, peer.region.load(Peer.GENERATION) + 1)
        source.look()
    assert len(ear.said) <= 2 + time.monotonic() - start


async def test_it_rests_when_nothing_comes(memory: Path, opened: Callable[..., object]) -> None:
    """Bounded work at rest: no more looks than its slowest pace allows, and fast again with the first byte."""
    ear = Ear()
    source = await opened(ear)  # type: ignore[misc]
    peer = guest(memory)
    await until(lambda: source.statistics().pace == shmem.SLOW)
    before, start = source.statistics().looks, time.monotonic()
    await asyncio.sleep(10 * shmem.SLOW)
    assert source.statistics().looks - before <= (time.monotonic() - start) / shmem.SLOW + 1
    peer.write(b"!")
    await until(lambda: ear.data == b"!")
    assert source.statistics().pace == shmem.FAST


async def test_the_next_supervisor_goes_on_without_loss_or_double(memory: Path, opened: Callable[..., object]) -> None:
    ear = Ear()
    source = await opened(ear)  # type: ignore[misc]
    peer = guest(memory)
    peer.write(pattern(0, 1000))
    await until(lambda: len(ear.data) == 1000)
    source.write(b"early")
    source.pause()
    peer.write(pattern(1000, 500))
    # it stored 100 bytes more and died before it could give their room back
    source.abandon()
    ear.data += pattern(1000, 100)
    await opened(ear, stored=1100)  # type: ignore[misc]
    peer.write(pattern(1500, 500))
    await until(lambda: len(ear.data) == 2000)
    assert bytes(ear.data) == pattern(0, 2000)
    assert peer.read() == b"early"


async def test_a_bell_wakes_and_is_rung(
    memory: Path, opened: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pace in ("FAST", "SLOW", "SAFETY"):
        monkeypatch.setattr(shmem, pace, 3600.0)  # behind the first look nothing but the bell makes it look

    class Bell:
        def __init__(self) -> None:
            self.ours, self.guests = os.pipe2(os.O_NONBLOCK)
            self.rung = 0

        def fileno(self) -> int:
            return self.ours

        def answer(self) -> None:
            os.read(self.ours, 100)

        def ring(self) -> None:
            self.rung += 1

        def close(self) -> None:
            os.close(self.ours)
            os.close(self.guests)

    ear, bell = Ear(), Bell()
    source = await opened(ear, open_bell=lambda: bell)  # type: ignore[misc]
    peer = guest(memory)
    await until(lambda: source.statistics().looks == 1)
    peer.write(b"now")
    os.write(bell.guests, b"!")
    await until(lambda: ear.data == b"now")
    assert bell.rung == 1
    source.write(b"x")
    assert bell.rung == 2


async def test_what_is_wrong_is_told(memory: Path, opened: Callable[..., object]) -> None:
    told: list[str] = []
    await opened(Ear(), violation=told.append)  # type: ignore[misc]
    peer = guest(memory)
    peer.region.store(0x84, 1 << 30)
    await until(lambda: told)
    assert "does not fit" in told[0]


async def test_memory_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot open shared memory"):
        await ShmemSource(str(tmp_path / "none"), "a", SIZE).open(Ear())
    (tmp_path / "small").write_bytes(bytes(SIZE))
    with pytest.raises(SourceError, match="cannot put a channel"):
        await ShmemSource(str(tmp_path / "small"), "a", 8192).open(Ear())


async def test_closing_twice_is_harmless(memory: Path, opened: Callable[..., object]) -> None:
    source = await opened(Ear())  # type: ignore[misc]
    await source.close()
    await source.close()
    assert source.write(b"x") == 0
    assert source.statistics() is None
    source.resume()


def test_a_mapping_can_be_closed_and_its_file_stays(memory: Path) -> None:
    region = open_region(str(memory))
    region.store(0, 7)
    region.close()
    assert memory.read_bytes()[:4] == b"\7\0\0\0"
    with pytest.raises(ValueError, match="released"):
        region.load(0)
    assert isinstance(region, Mapping)


async def test_a_taker_that_fails_once_is_asked_again(memory: Path, opened: Callable[..., object]) -> None:
    class Full(Ear):
        failed = 0

        def received(self, data: bytes) -> None:
            if not self.failed:
                self.failed += 1
                raise OSError("no space left")
            super().received(data)

    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["exception"]))
    ear = Full()
    await opened(ear)  # type: ignore[misc]
    guest(memory).write(b"kept")
    await until(lambda: ear.data == b"kept")
    assert len(said) == 1
