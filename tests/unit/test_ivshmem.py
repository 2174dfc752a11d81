# SPDX-License-Identifier: Apache-2.0
"""Jailhouse's shared-memory device as the root cell sees it: /dev/uioN played by a file with one page a map."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from consoles.errors import SourceError
from consoles.sharedmem import ivshmem, regions
from consoles.sharedmem.regions import PAGE, Mapping, open_region
from consoles.sources.shmem import ShmemSource
from runphi_async.partition import channels
from runphi_async.testing.shmempeer import Peer
from tests.unit.consolekit import until
from tests.unit.sourcekit import Ear

if TYPE_CHECKING:
    from pathlib import Path

#: name and pages of each map, as recorded on a real root cell
MAPS = (("registers", 1), ("state_table", 1), ("rw_section", 4), ("input_sections", 2), ("output_section", 1))


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file behind /dev/uio0: uio's convention is that map N begins at N pages."""
    monkeypatch.setattr(regions, "DEV", str(tmp_path / "dev"))
    monkeypatch.setattr(regions, "SYSFS", str(tmp_path / "sys"))
    (tmp_path / "dev").mkdir()
    file = tmp_path / "dev" / "uio0"
    file.write_bytes(bytes(16 * PAGE))
    for number, (name, pages) in enumerate(MAPS):
        maps = tmp_path / "sys" / "uio0" / "maps" / f"map{number}"
        maps.mkdir(parents=True)
        (maps / "name").write_text(name + "\n")
        (maps / "size").write_text(f"{pages * PAGE:#018x}\n")
    return file


def word(file: Path, offset: int) -> int:
    with open(file, "rb") as opened:
        opened.seek(offset)
        return int.from_bytes(opened.read(4), "little")


def test_registers_states_and_memory_are_where_they_should_be(device: Path) -> None:
    with open(device, "r+b") as file:
        file.write((1).to_bytes(4, "little"))  # we are peer 1
        file.seek(PAGE + 8)
        file.write((7).to_bytes(4, "little"))  # state of peer 2
    uio = ivshmem.UioDevice("/dev/uio0")
    assert uio.id == 1
    assert uio.state(2) == 7
    assert uio.rw.size == 4 * PAGE
    assert word(device, 0x08) == 1  # interrupts are on
    uio.set_state(1)
    assert word(device, 0x10) == 1
    uio.ring(2, 0)
    assert word(device, 0x0C) == 2 << 16
    uio.rw.store(4, 99)
    assert word(device, 2 * PAGE + 4) == 99
    assert isinstance(uio._states, Mapping)
    with pytest.raises(TypeError):
        uio._states.store(0, 1)  # the hypervisor lets nobody write it
    uio.answer()
    uio.close()
    uio.close()


def test_a_device_without_memory_is_refused(device: Path) -> None:
    (device.parent.parent / "sys" / "uio0" / "maps" / "map2" / "name").write_text("input_sections\n")
    with pytest.raises(SourceError, match="no rw_section"):
        ivshmem.UioDevice("/dev/uio0")


def test_a_device_that_is_gone_is_refused(device: Path) -> None:
    os.unlink(device)
    with pytest.raises(SourceError, match="cannot open /dev/uio0"):
        ivshmem.UioDevice("/dev/uio0")


async def test_a_channel_in_its_memory_rings_and_is_rung(device: Path) -> None:
    """The file is always readable, as an interrupt that never ends; epoll refuses files, so a pipe stands in."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    channel = channels.parse("telemetry", "shmem:/dev/uio0:2,size=4KiB,peer=2")
    source = channels.source(channel, "/nowhere")
    assert isinstance(source, ShmemSource)
    opener = source._open_bell
    assert opener is not None

    def opened() -> object:
        bell = opener()
        os.dup2(reader, bell.fileno())
        return bell

    source._open_bell = opened  # type: ignore[assignment]
    ear = Ear()
    await source.open(ear)
    assert word(device, 0x10) == 1
    peer = Peer(open_region("/dev/uio0:2"))
    peer.open()
    peer.write(b"rung")
    os.write(writer, b"\1\0\0\0")
    await until(lambda: ear.data == b"rung")
    assert word(device, 0x0C) == 2 << 16
    assert source.write(b"back") == 4
    assert peer.read() == b"back"
    await source.close()
    os.close(reader)
    os.close(writer)


# Section: a directory that stands for a device


@pytest.fixture
def played(tmp_path: Path) -> Path:
    """What the fake Jailhouse makes: a file for each map, and two FIFOs."""
    folder = tmp_path / "uio0"
    folder.mkdir()
    for name, pages in MAPS[:3]:
        (folder / name).write_bytes(bytes(pages * PAGE))
    for fifo in ("stores", "interrupts"):
        os.mkfifo(folder / fifo)
    return folder


def test_a_directory_is_a_device_too(played: Path) -> None:
    hypervisor = os.open(played / "stores", os.O_RDONLY | os.O_NONBLOCK)
    bells = os.open(played / "interrupts", os.O_RDWR | os.O_NONBLOCK)
    device = ivshmem.UioDevice(str(played))
    device.set_state(1)
    device.ring(2, 0)
    stores = os.read(hypervisor, 64)
    assert stores == b"".join(
        offset.to_bytes(4, "little") + value.to_bytes(4, "little")
        for offset, value in ((0x08, 1), (0x10, 1), (0x0C, 2 << 16))
    )
    os.write(bells, b"\1\0\0\0")
    device.answer()
    assert os.read(hypervisor, 64) == stores[:8]  # interrupts are on again
    with pytest.raises(BlockingIOError):
        os.read(device.fileno(), 4)
    device.close()
    assert os.read(hypervisor, 64) == b""  # as the driver's release: whoever plays the hypervisor sees it
    os.close(hypervisor)
    os.close(bells)


def test_a_register_takes_everything_also_when_nobody_plays_the_hypervisor(played: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot use .*/stores: No such device"):
        ivshmem.UioDevice(str(played))
    hypervisor = os.open(played / "stores", os.O_RDONLY | os.O_NONBLOCK)
    device = ivshmem.UioDevice(str(played))
    os.close(hypervisor)
    device.set_state(1)
    assert (played / "registers").read_bytes()[0x10] == 1
    device.close()


def test_the_state_table_can_be_watched_by_itself(device: Path, played: Path) -> None:
    for path, file, at in (("/dev/uio0", device, PAGE), (str(played), played / "state_table", 0)):
        table = ivshmem.StateTable(path)
        assert table.state(2) == 0
        with open(file, "r+b") as opened:
            opened.seek(at + 8)
            opened.write((3).to_bytes(4, "little"))
        assert table.state(2) == 3
        table.close()
    assert ivshmem.place_of("/dev/uio0", "rw_section") == "/dev/uio0:2"
    assert ivshmem.place_of(str(played), "rw_section") == f"{played}/rw_section"


def test_a_device_is_found_by_its_pci_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivshmem, "PCI", str(tmp_path))
    with pytest.raises(SourceError, match=r"PCI device 0001:00:02\.0: bind it to uio_ivshmem .*ffc003 ffffff"):
        ivshmem.find("0001:00:02.0")
    (tmp_path / "0001:00:02.0" / "uio" / "uio3").mkdir(parents=True)
    assert ivshmem.find("0001:00:02.0") == "/dev/uio3"
