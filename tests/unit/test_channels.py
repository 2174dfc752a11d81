# SPDX-License-Identifier: Apache-2.0
"""Named streams: what annotations and images may ask for, what QEMU is told, where the memory lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from consoles.sharedmem import shmfiles
from runphi_async.config.schema import Channels as ChannelsConfig
from runphi_async.config.schema import Config
from runphi_async.errors import NotFoundError, SpecError
from runphi_async.oci import spec as oci
from runphi_async.partition import channels
from runphi_async.partition.channels import Channel
from runphi_async.partition.request import PartitionRequest, request
from runphi_async.partition.spec import GuestKind
from runphi_async.record.lifecycle import Status
from runphi_async.record.store import Record
from runphi_async.terminals import channels as streams
from tests.unit.qemukit import ARM, LINUX, MULTIBOOT, PVH, option, options, plan
from tests.unit.wishkit import boot_config

KIB = 1024
TELEMETRY = Channel("telemetry", 64 * KIB)


def asked(boot: dict[str, Any] | None = None, /, **annotations: str) -> PartitionRequest:
    spec = oci.Spec(
        oci_version="1.0.2",
        annotations={"org.runphi.inmate": "/i", **{f"org.runphi.{k}": v for k, v in annotations.items()}}
        if boot is None
        else {f"org.runphi.{k}": v for k, v in annotations.items()},
    )
    found = request(spec, boot_config(boot))
    assert found is not None
    return found


# Section: asking


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ("shmem", Channel("a", 64 * KIB)),
        ("shmem,size=4KiB", Channel("a", 4 * KIB)),
        (" shmem,size=1M ", Channel("a", 1024 * KIB)),
        ("shmem:/dev/uio0:2,size=32KiB", Channel("a", 32 * KIB, "/dev/uio0:2")),
        ("shmem:mem:0x7faf1000+0x8000,size=32KiB", Channel("a", 32 * KIB, "mem:0x7faf1000+0x8000")),
        ("shmem:/dev/uio0:2,peer=1", Channel("a", 64 * KIB, "/dev/uio0:2", 1)),
        ("unix:/run/x.sock", Channel("a", place="unix:/run/x.sock")),
        ("serial:/dev/ttyS1,115200n8", Channel("a", place="serial:/dev/ttyS1,115200n8")),
    ],
)
def test_descriptions_are_understood(text: str, channel: Channel) -> None:
    assert channels.parse("a", text) == channel
    assert channels.parse("a", channel.text()) == channel


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a", "", "begin with one of"),
        ("a", "shm", "begin with one of"),
        ("a", "shmem:", "place behind 'shmem:' is missing"),
        ("a", "shmem,size=5000", "power of two"),
        ("a", "shmem,size=2K", "power of two"),
        ("a", "shmem,size=128M", "power of two"),
        ("a", "shmem,size=x", "not a size"),
        ("a", "shmem,depth=3", "no option 'depth'"),
        ("a", "shmem:relative", "write /path"),
        ("a", "shmem,peer=1", "only memory of a uio device"),
        ("a", "shmem:/dev/uio0:2,peer=x", "not a number"),
        ("a", "exec:rm -rf /", "only the configuration|begin with one of|command"),
        ("", "shmem", "no name"),
        ("../x", "shmem", "no name"),
        ("a/b", "shmem", "no name"),
        ("a,b=c", "shmem", "no name"),
        ("x" * 32, "shmem", "no name"),
        ("serial", "shmem", "is taken"),
    ],
)
def test_what_cannot_be_understood_is_said(name: str, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        channels.parse(name, text)
    with pytest.raises(SpecError, match=problem):
        asked(**{f"channel.{name}": text})


def test_annotations_and_images_may_ask() -> None:
    found = asked(**{"channel.telemetry": "shmem", "channel.log": "shmem,size=4K"})
    assert found.channels == (TELEMETRY, Channel("log", 4 * KIB))
    image = {"inmate": "/boot/i", "comm": {"telemetry": "shmem,size=8K", "log": "shmem"}}
    found = asked(image, **{"channel.telemetry": "shmem"})
    assert set(found.channels) == {TELEMETRY, Channel("log", 64 * KIB)}  # the annotation's word counts
    assert found.kind is GuestKind.INMATE


def test_an_image_may_not_name_places_of_the_host() -> None:
    with pytest.raises(SpecError, match="an image cannot name places of the host"):
        asked({"inmate": "/boot/i", "comm": {"a": "unix:/run/docker.sock"}})


def test_the_console_must_be_a_channel_that_there_is() -> None:
    found = asked(**{"channel.telemetry": "shmem", "console": "channel:telemetry"})
    assert found.console == "telemetry"
    with pytest.raises(SpecError, match="there is no such channel"):
        asked(console="channel:other")
    with pytest.raises(SpecError, match="not channel:NAME"):
        asked(console="telemetry")


def test_too_many_channels_are_refused() -> None:
    with pytest.raises(SpecError, match="8 is the most"):
        asked(**{f"channel.c{number}": "shmem" for number in range(9)})


def test_places_must_be_listed() -> None:
    wish = (Channel("a", 4096, "/dev/uio0:2"),)
    channels.check_allowed((TELEMETRY,), ChannelsConfig(), ())
    channels.check_allowed(wish, ChannelsConfig(places=("/dev/uio0:2",)), ())
    for places in ((), ("/dev/uio0",), ("/dev/uio0:1",)):
        with pytest.raises(SpecError, match=r"channels\.places"):
            channels.check_allowed(wish, ChannelsConfig(places=places), ("/dev",))


def test_sources_of_the_host_are_allowed_as_those_of_a_console_are() -> None:
    wish = (Channel("board", place="serial:/dev/ttyS7,115200n8"),)
    channels.check_allowed(wish, ChannelsConfig(), ("/dev/ttyS7",))
    with pytest.raises(SpecError, match=r"annotation org\.runphi\.channel\.board: .*host_paths of \[source\]"):
        channels.check_allowed(wish, ChannelsConfig(places=("serial:/dev/ttyS7,115200n8",)), ())


def test_memory_that_no_limit_counts_is_bounded() -> None:
    large = tuple(Channel(f"c{number}", 4096 * KIB) for number in range(3))
    channels.check_allowed(large[:2], ChannelsConfig(), ())
    with pytest.raises(SpecError, match=r"12 MiB of channels: 8 MiB is the most.*channels\.max_bytes"):
        channels.check_allowed(large, ChannelsConfig(), ())


# Section: what QEMU is told


@pytest.mark.parametrize(
    ("image", "more", "machine"),
    [
        (PVH, {}, "microvm,x-option-roms=off,acpi=on,pcie=on"),
        (MULTIBOOT, {}, "microvm,acpi=on,pcie=on"),
        (ARM, {}, "virt"),
        (PVH, {"machine": "q35"}, "q35,smm=off,sata=off,usb=off,smbus=off"),
    ],
)
def test_a_channel_is_a_device_on_pci(image: Any, more: dict[str, Any], machine: str) -> None:
    found = plan(image, channels=(TELEMETRY,), **more)
    assert option(found, "-machine") == machine
    assert (
        option(found, "-object")
        == "memory-backend-file,id=ch-telemetry,mem-path=ch.telemetry,size=65536,share=on"
    )  # fmt: skip
    assert "ivshmem-plain,memdev=ch-telemetry" in options(found, "-device")
    assert found.channels == (TELEMETRY,)
    assert "comm: channel telemetry: shmem,size=64KiB" in found.explain


def test_a_linux_guest_gets_it_too() -> None:
    found = plan(PVH, channels=(TELEMETRY,), console="telemetry", **LINUX)
    assert "ivshmem-plain,memdev=ch-telemetry" in options(found, "-device")
    assert found.console == "telemetry"
    assert "comm: channel telemetry is the console" in found.explain


def test_without_channels_nothing_changes() -> None:
    found = plan(PVH)
    assert option(found, "-machine") == "microvm,x-option-roms=off,acpi=off"
    assert "-object" not in found.argv


def test_a_place_of_the_host_is_no_device() -> None:
    found = plan(PVH, channels=(Channel("a", place="unix:/run/x"), Channel("b", 4096, "/dev/uio0:2")))
    assert not [device for device in options(found, "-device") if "ivshmem" in device]


# Section: its memory


def test_memory_is_made_found_and_given_back(tmp_path: Path) -> None:
    record = tmp_path / "c1"
    record.mkdir()
    made = shmfiles.make(str(record), "telemetry", 65536)
    try:
        status = os.stat(made)
        assert (status.st_mode & 0o777, status.st_size) == (0o600, 65536)
        assert status.st_blocks * 512 >= 65536, "all of it is there: a full /dev/shm must not kill later"
        assert shmfiles.find(str(record), "telemetry") == made
        assert shmfiles.sweep(str(tmp_path), ["c1"]) == []
        assert os.path.exists(made)
    finally:
        shmfiles.unlink(str(record))
    assert not os.path.exists(made)
    shmfiles.unlink(str(record))


def test_only_files_of_ours_are_unlinked(tmp_path: Path) -> None:
    record = tmp_path / "c1"
    record.mkdir()
    precious = tmp_path / "precious"
    precious.touch()
    (record / "ch.evil").symlink_to(precious)
    shmfiles.unlink(str(record))
    assert precious.exists()


def test_what_no_record_names_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in ("c1", "other"):
        (tmp_path / name / "record").mkdir(parents=True)
    left = shmfiles.make(str(tmp_path / "c1" / "record"), "a", 4096)
    others = shmfiles.make(str(tmp_path / "other" / "record"), "a", 4096)
    try:
        os.unlink(tmp_path / "c1" / "record" / "ch.a")
        assert shmfiles.sweep(str(tmp_path / "c1"), ["record"]) == [os.path.basename(left)]
        assert os.path.exists(others), "another supervisor's"
    finally:
        shmfiles.unlink(str(tmp_path / "other" / "record"))


def test_a_full_shm_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    record = tmp_path / "c1"
    record.mkdir()
    with pytest.raises(OSError, match=r".+"):
        shmfiles.make(str(record), "a", 1 << 50)
    assert not list(Path(shmfiles.SHM).glob(shmfiles.prefix(str(tmp_path)) + "*"))
    assert not list(record.iterdir())


# Section: their names


def test_names_of_a_guests_streams() -> None:
    record = Record(
        id="c1", name="c1", root="/r", bundle="/b", rootfs="/f", backend="qemu", status=Status.CREATED, created=0.0,
        boot_id="x", channels=(TELEMETRY, Channel("log", 4096)), log_dir="/var/log/runphi/c1",
    )  # fmt: skip
    assert streams.names(record) == ["telemetry", "log"]
    (logged,) = streams.logs(Config(), record, "log")
    assert (logged.kind, logged.path) == ("raw", "/var/log/runphi/c1/channels/log/console.log")
    with pytest.raises(NotFoundError, match="it has: telemetry, log"):
        streams.resolve(record, "serial")
    assert streams.resolve(record, "log") == "log"
    assert streams.resolve(record, None) is None
    record.console_channel = "log"
    assert streams.names(record) == ["telemetry", "serial"]
    assert streams.resolve(record, "log") is None  # it is the console
    assert streams.resolve(record, "serial") == "serial"
