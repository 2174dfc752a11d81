# SPDX-License-Identifier: Apache-2.0
"""A guest's vchan as a source, against a library in Python whose guest may serve, leave, come back, and lie."""

from __future__ import annotations

import ctypes
import errno
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from backends.xen import comm as xen_comm
from backends.xen.wishes import XenWishes
from consoles.errors import SourceError
from consoles.sharedmem import vchan
from consoles.sharedmem.vchan import Library
from consoles.sources.vchan import VchanSource
from runphi_async.errors import PlanError, SpecError
from runphi_async.partition import channels, comm, request
from runphi_async.partition.channels import Channel
from runphi_async.partition.spec import GuestKind, GuestSpec
from tests.unit.consolekit import pattern, until
from tests.unit.sourcekit import Ear, quick
from tests.unit.xenkit import FACTS

if TYPE_CHECKING:
    from pathlib import Path

NODE = vchan.server(7, "telemetry")


class Guest:
    """The library's functions, and the guest behind them; attributes are what the guest does."""

    def __init__(self) -> None:
        self.serves = True
        self.up = bytearray()
        self.down = bytearray()
        self.room = 1 << 16
        self.lie: int | None = None
        self.event = -1
        self.asked: list[tuple[int, bytes]] = []
        self.control = ctypes.pointer(vchan._Control(blocking=-1))
        self.closed = 0

    def library(self) -> Library:
        names = ("client_init", "read", "write", "wait", "buffer_space", "fd_for_select", "close")
        # Not the bound methods: those take no attributes, as functions that ctypes loads do.
        made = {f"libxenvchan_{name}": self._function(name) for name in names}
        return Library(SimpleNamespace(**made))

    def _function(self, name: str) -> Any:
        return lambda *args: getattr(self, name)(*args)

    def client_init(self, logger: None, domid: int, node: bytes) -> Any:
        self.asked.append((domid, node))
        if not self.serves:
            return None
        self.event = os.eventfd(0, os.EFD_CLOEXEC)
        return self.control

    def read(self, control: Any, buffer: Any, size: int) -> int:
        if self.lie is not None:
            return self.lie
        data = bytes(self.up[:size])
        del self.up[:size]
        ctypes.memmove(buffer, data, len(data))
        return len(data) if data or self.serves else -1

    def write(self, control: Any, data: bytes, size: int) -> int:
        if not self.serves:
            return -1
        taken = data[: min(size, self.room)]
        self.room -= len(taken)
        self.down += taken
        return len(taken)

    def wait(self, control: Any) -> int:
        try:
            os.eventfd_read(self.event)
        except BlockingIOError:
            ctypes.set_errno(errno.EAGAIN)
            return -1
        return 0

    def buffer_space(self, control: Any) -> int:
        return self.room

    def fd_for_select(self, control: Any) -> int:
        return self.event

    def close(self, control: Any) -> None:
        self.closed += 1
        os.close(self.event)
        self.event = -1

    def prints(self, data: bytes) -> None:
        self.up += data
        self.ring()

    def ring(self) -> None:
        os.eventfd_write(self.event, 1)

    def leaves(self) -> None:
        self.serves = False
        self.ring()


@pytest.fixture
def guest() -> Guest:
    return Guest()


def source_of(guest: Guest, node: str = NODE) -> VchanSource:
    return VchanSource(lambda: node, guest.library, quick())


async def test_bytes_go_both_ways(guest: Guest) -> None:
    ear, source = Ear(), source_of(guest)
    guest.up += b"before anybody came, "  # no event will tell of it
    await source.open(ear)
    await ear.hears(b"before anybody came, ")
    assert guest.asked == [(7, b"/local/domain/7/data/vchan/0/telemetry")]
    assert guest.control.contents.blocking == 0
    data = pattern(0, 1_000_000)
    guest.prints(data)
    await until(lambda: len(ear.data) == len(data) + 21, "all of it")
    assert ear.data[21:] == data
    assert source.write(b"typed") == 5
    assert guest.down == b"typed"
    await source.close()
    assert guest.closed == 1
    assert ear.said == []


async def test_a_guest_may_serve_late(guest: Guest) -> None:
    guest.serves = False
    ear, source = Ear(), source_of(guest)
    await source.open(ear)
    woken: list[bool] = []
    assert source.write(b"early") == 0
    source.when_writable(lambda: woken.append(True))
    await until(lambda: len(guest.asked) > 3, "asked again and again")
    guest.serves = True
    await until(lambda: bool(woken), "woken when it serves")
    assert source.write(b"early") == 5
    assert ear.said == [], "it was never there, so it was never gone"
    await source.close()


async def test_a_guest_that_closes_and_serves_anew(guest: Guest) -> None:
    ear, source = Ear(), source_of(guest)
    await source.open(ear)
    await until(lambda: guest.event >= 0, "connected")
    guest.up += b"last words"
    guest.leaves()
    await ear.is_told("gone")
    assert ear.data == b"last words"
    assert ear.said == ["gone: the guest closed it"]
    assert guest.closed == 1
    guest.serves = True
    await until(lambda: guest.event >= 0, "connected again")
    guest.prints(b" and new ones")
    await ear.is_told("gone", "back")
    await ear.hears(b"last words and new ones")
    await source.close()
    assert guest.closed == 2


async def test_a_write_notices_that_the_guest_has_closed(guest: Guest) -> None:
    ear, source = Ear(), source_of(guest)
    source.pause()
    await source.open(ear)
    await until(lambda: guest.event >= 0, "connected")
    guest.up += b"unread"
    guest.serves = False
    await until(lambda: source.write(b"x") == 0 and bool(ear.said), "told")
    assert ear.data == b"unread", "closing delivers what is left"
    await source.close()


async def test_a_full_ring_is_waited_for(guest: Guest) -> None:
    guest.room = 3
    ear, source = Ear(), source_of(guest)
    await source.open(ear)
    # the library's word comes in a thread, before the source has it
    await until(lambda: source.write(b"12345") == 3, "connected")
    woken: list[bool] = []
    source.when_writable(lambda: woken.append(True))
    guest.prints(b"not yet")  # an event that brings no room
    await ear.hears(b"not yet")
    assert not woken
    guest.room = 10
    guest.ring()
    await until(lambda: bool(woken), "woken")
    assert source.write(b"45") == 2
    await source.close()


async def test_what_comes_while_paused_stays_in_the_ring(guest: Guest) -> None:
    ear, source = Ear(), source_of(guest)
    source.pause()
    await source.open(ear)
    await until(lambda: guest.event >= 0, "connected")
    guest.prints(b"kept")
    woken: list[bool] = []
    source.when_writable(lambda: woken.append(True))
    await until(lambda: bool(woken), "the event was heard")
    assert bytes(guest.up) == b"kept"
    assert ear.data == b""
    source.resume()
    await ear.hears(b"kept")
    await source.close()


@pytest.mark.parametrize("lie", [vchan.CHUNK + 1, -7, 2**31 - 1])
async def test_a_length_that_cannot_be_ends_the_connection(guest: Guest, lie: int) -> None:
    ear, source = Ear(), source_of(guest)
    await source.open(ear)
    await until(lambda: guest.event >= 0, "connected")
    guest.lie = lie
    guest.ring()
    await ear.is_told("gone")
    assert ear.data == b""
    await source.close()


def test_only_a_guests_place_is_connected_to(guest: Guest) -> None:
    for node in ("/local/domain/7", "/tool/xenstored", "/vm/7/data", "/local/domain/7/" + "x" * 40):
        with pytest.raises(SourceError, match="no place of a guest's vchan server"):
            guest.library().connect(node)
    assert guest.asked == []


async def test_without_the_library_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vchan, "VERSION", str(tmp_path))
    with pytest.raises(SourceError, match="cannot use libxenvchan: this machine does not run Xen"):
        await VchanSource(lambda: NODE).open(Ear())
    (tmp_path / "major").write_text("9\n")
    (tmp_path / "minor").write_text("99\n")
    with pytest.raises(SourceError, match=r"cannot load libxenvchan\.so\.9\.99: .*; install .* libxenmisc9\.99"):
        vchan.load()


def test_the_annotation() -> None:
    channel = channels.parse("telemetry", "vchan")
    assert channel.vchan
    assert not channel.made
    assert not channel.shared
    assert channel.text() == "vchan"
    with pytest.raises(ValueError, match="vchan:"):
        channels.parse("telemetry", "vchan:/etc")
    nothing = SimpleNamespace(places=(), max_bytes=0)
    channels.check_allowed((channel,), nothing, ())  # it names no place of the host's


def test_an_image_may_ask_for_one() -> None:
    assert request._image_channel("telemetry", "vchan").vchan
    with pytest.raises(SpecError, match="an image cannot name places of the host"):
        request._image_channel("telemetry", "unix:/run/x.sock")


def spec(name: str = "telemetry", console: str | None = None) -> GuestSpec:
    wanted = (Channel(name, place="vchan"),)
    return GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs="/r", inmate="/r/i", channels=wanted, console=console)


def test_only_xen_has_it() -> None:
    with pytest.raises(PlanError, match="cannot make channel telemetry: only a guest on Xen can serve a vchan"):
        comm.refuse_vchan(spec())
    xen_comm.choose(spec(), XenWishes(), FACTS)
    xen_comm.choose(spec("a" * vchan.NAME_MAX), XenWishes(), FACTS)


@pytest.mark.parametrize(
    ("wanted", "no_vchan", "said"),
    [
        (spec("a" * (vchan.NAME_MAX + 1)), "", "names of up to 16 characters only"),
        (spec(console="telemetry"), "", "a vchan cannot be the console"),
        (spec(), "cannot load libxenvchan.so.4.17", "cannot make channel telemetry: cannot load libxenvchan"),
    ],
)
def test_what_xen_cannot_have_is_refused(wanted: GuestSpec, no_vchan: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        xen_comm.choose(wanted, XenWishes(), msgspec.structs.replace(FACTS, no_vchan=no_vchan))
