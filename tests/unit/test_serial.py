# SPDX-License-Identifier: Apache-2.0
"""Serial ports: how they are written down, and a port played by a pty and by socat's null-modem."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import termios
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consoles.errors import SourceError
from consoles.sources import link
from consoles.sources import serial as adapter
from consoles.sources.serial import SerialSource
from consoles.sources.settings import SerialSettings, SettingError, parse_serial
from tests.unit.consolekit import pattern, until
from tests.unit.sourcekit import Ear, Terminal, quick, send_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "STEADY", 0.05)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.hang_up()


# Section: settings


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("/dev/ttyUSB0", SerialSettings("/dev/ttyUSB0")),
        ("/dev/ttyUSB0,9600", SerialSettings("/dev/ttyUSB0", 9600)),
        ("/dev/ttyUSB0,115200n8,rtscts", SerialSettings("/dev/ttyUSB0", rtscts=True)),
        ("/dev/ttyUSB0,115200n8r", SerialSettings("/dev/ttyUSB0", rtscts=True)),
        ("/dev/ttyS1,9600e7", SerialSettings("/dev/ttyS1", 9600, 7, "e")),
        ("/dev/ttyS1,9600,7o2,xonxoff", SerialSettings("/dev/ttyS1", 9600, 7, "o", 2.0, xonxoff=True)),
        ("/dev/ttyS1, 300 , 5N1.5", SerialSettings("/dev/ttyS1", 300, 5, "n", 1.5)),
    ],
)
def test_settings_are_understood(text: str, settings: SerialSettings) -> None:
    assert parse_serial(text) == settings


@pytest.mark.parametrize(
    ("text", "at", "problem"),
    [
        ("", 0, "the device is missing"),
        ("ttyUSB0", 0, "'ttyUSB0' is not an absolute path"),
        ("/dev/ttyS0,fast", 11, "'fast' is none of a speed"),
        ("/dev/ttyS0,9600,", 16, "'' is none of a speed"),
        ("/dev/ttyS0,9600q8", 11, "'q' is no parity"),
        ("/dev/ttyS0,9600n9", 11, "5 to 8 data bits, not 9"),
        ("/dev/ttyS0,9600,8n3", 16, "1, 1.5 or 2 stop bits, not 3"),
        ("/dev/ttyS0,1", 11, "a speed lies between"),
        ("/dev/ttyS0,99999999999", 11, "a speed lies between"),
        ("/dev/ttyS0,9600,rtscts,rtscts", 23, "says the rtscts a second time"),
        ("/dev/ttyS0,9600,19200", 16, "says the speed a second time"),
    ],
)
def test_settings_that_are_refused(text: str, at: int, problem: str) -> None:
    with pytest.raises(SettingError, match=problem) as caught:
        parse_serial(text)
    assert caught.value.at == at


@settings(deadline=None)  # a busy machine
@given(
    st.builds(
        SerialSettings,
        st.just("/dev/ttyS0"),
        st.integers(50, 12_000_000),
        st.integers(5, 8),
        st.sampled_from("neoms"),
        st.sampled_from([1.0, 1.5, 2.0]),
        st.booleans(),
        st.booleans(),
    )
)
def test_settings_can_be_read_back(settings: SerialSettings) -> None:
    assert parse_serial(settings.text()) == settings


@settings(deadline=None)  # a busy machine
@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused_where_it_is_wrong(text: str) -> None:
    at = 0
    try:
        parse_serial(text)
    except SettingError as exc:
        at = exc.at
    assert 0 <= at <= len(text) + 1


# Section: a port played by a pty


def port_of(terminal: Terminal, **more: Any) -> SerialSettings:
    return SerialSettings(terminal.path, **more)


async def test_a_port_both_ways(terminal: Terminal) -> None:
    ear, source = Ear(), SerialSource(port_of(terminal))
    await source.open(ear)
    os.write(terminal.master, b"U-Boot\r\n\x00\x03\xff")
    await ear.hears(b"U-Boot\r\n\x00\x03\xff")
    assert source.write(b"\x03boot\r") == 6
    assert await terminal.reads(6) == b"\x03boot\r"
    await source.close()
    assert ear.said == []


async def test_a_port_is_set_up_as_asked(terminal: Terminal) -> None:
    source = SerialSource(port_of(terminal, speed=57600, stop=2.0, rtscts=True, xonxoff=True))
    await source.open(Ear())
    iflag, _, cflag, lflag, speed, *_ = termios.tcgetattr(terminal.master)
    assert speed == termios.B57600
    assert cflag & termios.CSTOPB
    assert cflag & termios.CRTSCTS
    assert iflag & termios.IXON
    assert iflag & termios.IXOFF
    assert not cflag & termios.HUPCL
    assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG)
    await source.close()


async def test_a_long_text_goes_out_whole(terminal: Terminal) -> None:
    ear, source = Ear(), SerialSource(port_of(terminal))
    await source.open(ear)
    total = pattern(0, 100_000)
    sending = asyncio.ensure_future(send_all(source, total))
    assert await terminal.reads(len(total)) == total
    await sending
    await source.close()


async def test_a_port_that_takes_nothing_holds_no_more_than_its_room(terminal: Terminal) -> None:
    ear, source = Ear(), SerialSource(port_of(terminal))
    await source.open(ear)
    taken = 0
    while count := source.write(bytes(1000)):
        taken += count
    assert adapter.ROOM <= taken <= adapter.ROOM + 1
    await source.close()  # nobody ever reads it: closing must not wait for that


async def test_a_paused_port_brings_nothing(terminal: Terminal) -> None:
    ear, source = Ear(), SerialSource(port_of(terminal))
    source.pause()
    await source.open(ear)
    os.write(terminal.master, b"wait")
    await asyncio.sleep(0.05)
    assert ear.data == b""
    source.resume()
    await ear.hears(b"wait")
    source.pause()
    os.write(terminal.master, b" more")
    await asyncio.sleep(0.05)
    assert ear.data == b"wait"
    source.resume()
    await ear.hears(b"wait more")
    await source.close()


async def test_a_port_is_ours_alone(terminal: Terminal) -> None:
    source = SerialSource(port_of(terminal))
    await source.open(Ear())
    with pytest.raises(SourceError, match="another program holds it"):
        await SerialSource(port_of(terminal)).open(Ear())
    await source.close()
    again = SerialSource(port_of(terminal))
    await again.open(Ear())
    await again.close()


async def test_an_unplugged_port_is_gone_and_comes_back(tmp_path: Path) -> None:
    first, path = Terminal(), tmp_path / "ttyUSB0"
    path.symlink_to(first.path)
    ear, source = Ear(), SerialSource(SerialSettings(str(path)), quick())
    await source.open(ear)
    os.write(first.master, b"one")
    await ear.hears(b"one")
    path.unlink()
    first.hang_up()
    await ear.is_told("gone")
    assert source.write(b"lost") == 0
    with pytest.raises(SourceError, match="is gone"):
        await source.send_break(0.01)
    second = Terminal()
    path.symlink_to(second.path)
    await ear.is_told("gone", "back")
    os.write(second.master, b" two")
    await ear.hears(b"one two")
    assert source.write(b"typed") == 5
    assert await second.reads(5) == b"typed"
    await source.close()
    second.hang_up()


async def test_a_port_lost_while_it_is_written_to(terminal: Terminal) -> None:
    ear, source = Ear(), SerialSource(port_of(terminal), quick())
    source.pause()  # only writing can notice
    await source.open(ear)
    terminal.hang_up()
    source.write(b"into the void")
    await ear.is_told("gone")
    await source.close()


async def test_a_break_is_begun_and_ended(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = adapter._ioctl

    def note(fd: int, request: int) -> None:
        asked.append(request)
        real(fd, request)

    monkeypatch.setattr(adapter, "_ioctl", note)
    source = SerialSource(port_of(terminal))
    await source.open(Ear())
    await source.send_break(0.01)
    assert asked == [0x5427, 0x5428]
    await source.close()


async def test_neither_opening_nor_closing_stops_the_loop(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that takes its time: everybody else goes on, and closing gives up on it."""
    hold, closing, goes_on = threading.Event(), threading.Event(), threading.Event()
    real_open, real_close = adapter.open_port, adapter.close_port
    waited: list[bool] = []

    def slow_open(wanted: SerialSettings) -> Any:
        waited.append(goes_on.wait(20))
        return real_open(wanted)

    def stuck_close(port: Any) -> None:
        goes_on.clear()
        closing.set()
        waited.append(goes_on.wait(20))
        hold.wait(20)
        real_close(port)

    monkeypatch.setattr(adapter, "open_port", slow_open)
    monkeypatch.setattr(adapter, "close_port", stuck_close)
    monkeypatch.setattr(adapter, "CLOSE_PATIENCE", 0.1)
    loop = asyncio.get_running_loop()

    async def beat() -> None:
        while True:  # a loop that stands still while a port is opened or closed does not come here
            await asyncio.sleep(0.005)
            goes_on.set()

    source = SerialSource(port_of(terminal))
    beating = asyncio.ensure_future(beat())
    await source.open(Ear())
    began = loop.time()
    await source.close()
    assert closing.is_set()
    assert loop.time() - began < 5
    await until(lambda: len(waited) == 2)
    assert waited == [True, True]
    hold.set()
    beating.cancel()


async def test_a_port_opened_in_vain_is_closed(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    real, closed = adapter.open_port, asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(wanted: SerialSettings) -> Any:
        time.sleep(0.1)
        return real(wanted)

    def note(port: Any) -> None:
        port.close()
        loop.call_soon_threadsafe(closed.set)

    monkeypatch.setattr(adapter, "open_port", slow)
    monkeypatch.setattr(adapter, "close_port", note)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await SerialSource(port_of(terminal)).open(Ear())
    await asyncio.wait_for(closed.wait(), 10)


@pytest.mark.parametrize("path", ["/dev/ttyNONE", "/etc/passwd", "/dev/null", "/dev"])
async def test_what_is_no_port_is_refused(path: str) -> None:
    with pytest.raises(SourceError, match=f"cannot open {path}: "):
        await SerialSource(SerialSettings(path)).open(Ear())


# Section: a null-modem


@pytest.fixture
async def null_modem(tmp_path: Path) -> AsyncIterator[tuple[str, str, asyncio.subprocess.Process]]:
    assert shutil.which("socat"), "install socat (bin/test does)"
    ends = [str(tmp_path / name) for name in ("here", "there")]
    process = await asyncio.create_subprocess_exec(
        "socat", *(f"pty,rawer,link={end}" for end in ends), start_new_session=True
    )
    await until(lambda: all(os.path.exists(end) for end in ends), "socat's ptys")
    yield ends[0], ends[1], process
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    await process.wait()


async def test_two_ports_and_a_null_modem_between_them(
    null_modem: tuple[str, str, asyncio.subprocess.Process],
) -> None:
    here, there, _ = null_modem
    ears, sources = (Ear(), Ear()), (SerialSource(SerialSettings(here)), SerialSource(SerialSettings(there)))
    for ear, source in zip(ears, sources, strict=True):
        await source.open(ear)
    total = 200_000
    await asyncio.gather(*(send_all(source, pattern(0, total)) for source in sources))
    for ear in ears:
        await until(lambda ear=ear: len(ear.data) == total)  # type: ignore[misc]
        assert ear.data == pattern(0, total)
    for source in sources:
        await source.close()


async def test_a_null_modem_that_is_pulled_out(null_modem: tuple[str, str, asyncio.subprocess.Process]) -> None:
    here, _, process = null_modem
    ear, source = Ear(), SerialSource(SerialSettings(here), quick())
    await source.open(ear)
    process.terminate()
    await ear.is_told("gone")
    await source.close()
