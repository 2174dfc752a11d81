# SPDX-License-Identifier: Apache-2.0
"""The virtio console's device end against a guest's driver in memory: handshake, bytes, reset, lies."""

from __future__ import annotations

import asyncio
import random
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consoles.errors import SourceError
from consoles.sharedmem.regions import Mapping
from consoles.sharedmem.virtqueue import Broken, Queue
from consoles.sources import virtioconsole
from consoles.sources.virtioconsole import VirtioConsole, on_uio
from consoles.streams.feed import Feed
from consoles.streams.journal import Journal
from runphi_async.testing.virtioguest import ConsoleDriver, Offered, Wire
from tests.unit.consolekit import pattern, until
from tests.unit.sourcekit import Ear

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
async def console(wire: Wire, told: list[str]) -> AsyncIterator[VirtioConsole]:
    source = VirtioConsole(lambda: wire.side(0), violation=told.append, size=(50, 132))
    yield source
    await source.close()


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comings and goings are believed at once, unless a test is about that."""
    monkeypatch.setattr(virtioconsole, "STEADY", 0.0)


async def up(wire: Wire, console: VirtioConsole, ear: Ear) -> ConsoleDriver:
    await console.open(ear)
    driver = ConsoleDriver(wire.side(1))
    await driver.probe()
    return driver


async def send(console: VirtioConsole, driver: ConsoleDriver, data: bytes) -> bytes:
    """Write all of it as the input queue does while the guest reads."""
    got = b""
    while data:
        taken = console.write(data)
        data = data[taken:]
        if not taken:
            woken = asyncio.Event()
            console.when_writable(woken.set)
            got += driver.read()
            await asyncio.wait_for(woken.wait(), 10)
    await asyncio.sleep(0)
    return got + driver.read()


async def test_a_driver_that_comes_too_early_finds_nobody(wire: Wire) -> None:
    with pytest.raises(ConnectionError, match="backend not ready"):
        await ConsoleDriver(wire.side(1)).probe()


async def test_the_handshake(wire: Wire, console: VirtioConsole, told: list[str]) -> None:
    driver = await up(wire, console, Ear())
    assert driver.features == 0x13 << 32 | 0x1
    assert driver.size == (50, 132)
    assert driver.queue_size == 8
    assert wire.states == [1, 1]
    assert wire.dropped == 0  # INTx has vector 0 only
    assert told == []


async def test_features_without_version_1_are_refused(wire: Wire, console: VirtioConsole) -> None:
    await console.open(Ear())
    with pytest.raises(ConnectionError, match="features refused"):
        await ConsoleDriver(wire.side(1)).probe(accept=0)


async def test_bytes_both_ways(wire: Wire, console: VirtioConsole, told: list[str]) -> None:
    ear = Ear()
    driver = await up(wire, console, ear)
    await driver.print(b"Linux version 6.1\r\n")
    assert bytes(ear.data) == b"Linux version 6.1\r\n"
    await driver.print(pattern(0, 100_000))
    assert bytes(ear.data[19:]) == pattern(0, 100_000)
    assert await send(console, driver, pattern(7, 50_000)) == pattern(7, 50_000)
    assert told == []


async def test_a_paused_console_makes_the_guest_wait(wire: Wire, console: VirtioConsole) -> None:
    ear = Ear()
    driver = await up(wire, console, ear)
    console.pause()
    printing = asyncio.create_task(driver.print(b"late"))
    for _ in range(50):
        await asyncio.sleep(0)
    assert ear.data == b""
    assert not printing.done()
    console.resume()
    await printing
    assert ear.data == b"late"


async def test_a_cell_that_is_shut_down_is_a_clean_end_and_the_next_one_is_welcome(
    wire: Wire, console: VirtioConsole
) -> None:
    ear = Ear()
    driver = await up(wire, console, ear)
    await driver.print(b"first")
    wire.side(1).set_state(0)  # what the hypervisor does when the cell is shut down
    await until(lambda: ear.said == ["gone: the guest's console driver has left"])
    assert console.write(b"to nobody") == 0
    # the next guest finds the memory as the last one left it
    driver = ConsoleDriver(wire.side(1))
    await driver.probe()
    await until(lambda: ear.said[1:] == ["back"])
    await driver.print(b"second")
    assert ear.data == b"firstsecond"
    assert await send(console, driver, b"hello") == b"hello"


async def test_a_driver_may_reset_the_device(wire: Wire, console: VirtioConsole) -> None:
    ear = Ear()
    driver = await up(wire, console, ear)
    await driver._status(0)
    await until(lambda: ear.said == ["gone: the guest reset its console"])
    driver = ConsoleDriver(wire.side(1))
    await driver.probe()
    await driver.print(b"again")
    assert ear.data == b"again"


async def test_closing_shows_the_guest_that_we_are_gone(wire: Wire, console: VirtioConsole) -> None:
    await up(wire, console, Ear())
    await console.close()
    assert wire.states[0] == 0
    await console.close()
    assert console.write(b"x") == 0


# Section: lies


@pytest.mark.parametrize(
    ("offer", "reason"),
    [
        ((0, Offered(0xF000, 1, 0)), "a buffer of 1 bytes"),
        ((0, Offered(0, 0xFFFF_FFFF, 0)), "a buffer of 4294967295 bytes"),
        ((0, Offered(0xFFFF_FFFF_FFFF_FFFF, 0x10, 0)), "a buffer of 16 bytes"),
        ((0, Offered(0x1000, 16, 4)), "an indirect descriptor"),
        ((0, Offered(0x1000, 1, 1, 0)), "a chain without end"),
        ((0, Offered(0x1000, 1, 1, 99)), "descriptor 99 of 8"),
        ((9, Offered(0x1000, 1, 0)), "descriptor 9 of 8"),
    ],
)
async def test_garbage_descriptors_stop_the_device_until_it_is_reset(
    wire: Wire, console: VirtioConsole, told: list[str], offer: tuple[int, Offered], reason: str
) -> None:
    ear = Ear()
    driver = await up(wire, console, ear)
    driver.offer(1, *offer)
    await until(lambda: told)
    assert reason in told[0]
    assert driver.rw.load(0x44) & 0x40, "the driver is told to reset"
    assert console.write(b"x") == 0
    assert len(ear.data) == 0
    driver = ConsoleDriver(wire.side(1))
    await driver.probe()
    await driver.print(b"well again")
    assert ear.data == b"well again"
    assert len(told) == 1


async def test_an_index_far_ahead_is_not_believed(wire: Wire, console: VirtioConsole, told: list[str]) -> None:
    driver = await up(wire, console, Ear())
    driver.rw.write(driver.PARTS[1][1] + 2, struct.pack("<H", 9000))
    driver.device.ring(0, 0)
    await until(lambda: told)
    assert "9000 entries in a queue of 8" in told[0]


async def test_queues_outside_the_memory_are_refused(wire: Wire, console: VirtioConsole, told: list[str]) -> None:
    await console.open(Ear())
    driver = ConsoleDriver(wire.side(1))
    driver.device.set_state(1)
    await driver.write_register(0x1C, struct.pack("<I", 1))
    await driver.write_register(0x28, struct.pack("<Q", 0x70F9_E000))  # guest-physical: no CONFIG_DMA_OPS
    await driver.write_register(0x26, struct.pack("<H", 1))
    assert told
    assert "descriptors part at 0x70f9e000 does not fit" in told[0]


async def test_unknown_registers_and_queues_are_counted_and_answered(
    wire: Wire, console: VirtioConsole, told: list[str]
) -> None:
    await console.open(Ear())
    driver = ConsoleDriver(wire.side(1))
    driver.device.set_state(1)
    await driver.write_register(0x60, b"\0\0\0\0")
    assert told == ["it wrote register 0x60"]
    await driver.write_register(0x1C, struct.pack("<I", 0xFFFF_FFFF))
    assert driver.rw.read(0x20, 2) == b"\0\0"  # no such queue: size 0
    await driver.write_register(0x26, struct.pack("<H", 1))
    await driver.write_register(0x10, struct.pack("<I", 7))
    assert driver.rw.load(0x0C) == 0


@pytest.mark.parametrize("seed", range(20))
async def test_memory_scribbled_over_at_random_harms_nobody(
    wire: Wire, console: VirtioConsole, seed: int, told: list[str]
) -> None:
    ear = Ear()
    driver = await up(wire, console, ear)
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    chance = random.Random(seed)
    for _ in range(200):
        at = chance.choice((chance.randrange(0, 0x600), chance.randrange(0, len(wire.memory))))
        wire.memory[at] = chance.randrange(256)
        driver.device.ring(0, 0)
        await asyncio.sleep(0)
        console.write(b"typed")
    assert len(ear.data) <= 200 * 8 * len(wire.memory)
    driver = ConsoleDriver(wire.side(1))
    wire.memory[8:12] = bytes(4)
    wire.states[1] = 0
    driver.device.ring(0, 0)
    await until(lambda: wire.memory[0] == 1 and driver.rw.load(0x44) == 0)
    heard = len(ear.data)
    await driver.probe()
    await driver.print(b"all is well")
    assert bytes(ear.data[heard:]) == b"all is well"
    assert failures == []


@given(
    size=st.integers(-1, 2000), desc=st.integers(0, 1 << 64), driver=st.integers(0, 5000), device=st.integers(0, 5000)
)
@settings(suppress_health_check=list(HealthCheck))
def test_a_queue_lies_inside_or_is_refused(size: int, desc: int, driver: int, device: int) -> None:
    region = Mapping(bytearray(4096))
    try:
        queue = Queue(region, size, desc, driver, device)
    except Broken:
        return
    queue.waiting()
    assert desc + 16 * size <= 4096


# Section: in its place


async def test_a_whole_console_of_it(wire: Wire, console: VirtioConsole) -> None:
    """Between driver and hub: gone and back are marks in the console."""
    journal = Journal.create("test")
    feed = Feed(journal, console, window=1 << 20, replay=1 << 16)
    feed.hub.start()
    await feed.open()
    driver = ConsoleDriver(wire.side(1))
    await driver.probe()
    await driver.print(b"login: ")
    feed.input.feed(b"root\n")
    got = bytearray()

    def heard() -> bool:
        got.extend(driver.read())
        return got == b"root\n"

    await until(heard)
    wire.side(1).set_state(0)
    await until(lambda: b"gone" in journal.read(0, 1000))
    assert journal.read(0, 1000) == b"login: \r\n[runphi: the console is gone: the guest's console driver has left]\r\n"
    await feed.close()
    feed.hub.close()


async def test_memory_without_room_is_refused(wire: Wire) -> None:
    small = Wire(64)
    with pytest.raises(SourceError, match="8 KiB"):
        await VirtioConsole(lambda: small.side(0)).open(Ear())
    small.close()


@pytest.mark.parametrize("path", ["/dev/null", "uio0", "/dev/uio0:1"])
async def test_only_uio_devices_can_be_one(path: str) -> None:
    with pytest.raises(SourceError, match="/dev/uioN"):
        await on_uio(path).open(Ear())


async def test_a_missing_device_is_an_error() -> None:
    with pytest.raises(SourceError, match="cannot use /dev/uio987"):
        await on_uio("/dev/uio987").open(Ear())


# Section: a supervisor that dies


async def test_the_next_one_goes_on_with_the_queues(wire: Wire, tmp_path: Path) -> None:
    memory = str(tmp_path / "console")
    first, ear = VirtioConsole(lambda: wire.side(0), memory=memory), Ear()
    driver = await up(wire, first, ear)
    await driver.print(b"before")
    first.write(b"typed")
    first.abandon()  # nobody says goodbye, and the driver of the root system resets our state
    printing = asyncio.ensure_future(driver.print(b"meanwhile"))
    second, later = VirtioConsole(lambda: wire.side(0), memory=memory), Ear()
    await second.open(later)
    await printing
    assert (bytes(ear.data), bytes(later.data)) == (b"before", b"meanwhile")
    assert driver.read() == b"typed"
    assert second.write(b"more") == 4
    assert driver.read() == b"more"
    assert (later.said, second.violations) == ([], 0)
    await second.close()


@pytest.mark.parametrize(
    "kept", [None, "", "{}", '{"queues": ["00"], "features": []}', '{"queues": [], "features": []}']
)
async def test_without_its_word_the_guest_has_to_begin_anew(wire: Wire, tmp_path: Path, kept: str | None) -> None:
    memory = tmp_path / "console"
    first, ear = VirtioConsole(lambda: wire.side(0)), Ear()
    driver = await up(wire, first, ear)
    first.abandon()
    if kept is not None:
        memory.write_text(kept)
    second = VirtioConsole(lambda: wire.side(0), memory=str(memory))
    await second.open(ear)
    assert ear.said == ["gone: what the last supervisor knew of it is lost; the guest must start its driver again"]
    assert second.write(b"x") == 0
    await driver.probe()
    await driver.print(b"again")
    assert ear.data == b"again"
    assert ear.said[1:] == ["back"]
    assert memory.exists()
    await second.close()


async def test_a_reset_makes_what_was_kept_void(wire: Wire, tmp_path: Path) -> None:
    memory = tmp_path / "console"
    console, ear = VirtioConsole(lambda: wire.side(0), memory=str(memory)), Ear()
    driver = await up(wire, console, ear)
    assert memory.exists()
    await driver.write_register(0x44, struct.pack("<I", 0))
    assert not memory.exists()
    await console.close()
