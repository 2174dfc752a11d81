# SPDX-License-Identifier: Apache-2.0
"""RAM disks: what Linux will find in the archives, and that the same input gives the same bytes."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.guest.initrd import BLOCK, Entry, archive, base_initrd, container_conf, with_conf
from runphi_async.errors import SpecError
from runphi_async.partition.mounts import GuestMount
from runphi_async.partition.spec import ProcessSpec, Rlimit

if TYPE_CHECKING:
    from pathlib import Path

Parsed = dict[str, tuple[list[int], bytes]]


def parse(data: bytes) -> list[Parsed]:
    """Read archives that follow each other, as the kernel's unpack_to_rootfs() does: name -> (fields, content)."""
    archives: list[Parsed] = []
    files: Parsed = {}
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += 1
            continue
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        begin = (at + 110 + name_size + 3) & ~3
        at = (begin + size + 3) & ~3
        if name == "TRAILER!!!":
            archives.append(files)
            files = {}
        else:
            files[name] = (fields, data[begin : begin + size])
    assert not files, "the last archive has no end"
    return archives


def conf_of(process: ProcessSpec, *, readonly: bool = False) -> list[str]:
    conf = container_conf(process, readonly=readonly)
    assert conf.endswith(b"\0")
    return conf.decode().split("\0")[:-1]


def test_base_holds_init_modules_and_their_order(tmp_path: Path) -> None:
    modules = [tmp_path / "zz.ko", tmp_path / "aa.ko"]
    for module in modules:
        module.write_bytes(module.name.encode() * 7)
    (files,) = parse(base_initrd(modules, b"\x7fELF init"))
    assert files["init"][1] == b"\x7fELF init"
    assert files["init"][0][1] == stat.S_IFREG | 0o755
    assert files["modules.order"][1] == b"/modules/zz.ko\n/modules/aa.ko\n"
    assert files["modules/aa.ko"][1] == b"aa.ko" * 7
    assert files["dev/console"][0][9:11] == [5, 1]
    assert stat.S_ISDIR(files["dev"][0][1])


def test_modules_of_the_network_are_a_list_of_their_own(tmp_path: Path) -> None:
    modules = {name: tmp_path / f"{name}.ko" for name in ("virtio", "failover", "net")}
    for module in modules.values():
        module.write_bytes(b"")
    (files,) = parse(base_initrd([modules["virtio"]], b"", modules.values()))
    assert files["modules.order"][1] == b"/modules/virtio.ko\n"
    # what is loaded already is not loaded again
    assert files["modules.net"][1] == b"/modules/failover.ko\n/modules/net.ko\n"


def test_same_input_same_bytes() -> None:
    entries = [Entry("b", stat.S_IFREG | 0o644, b"2"), Entry("a", stat.S_IFREG | 0o644, b"1")]
    assert archive(entries) == archive(reversed(entries))
    (files,) = parse(archive(entries))
    assert list(files) == ["a", "b"]
    for fields, _ in files.values():
        assert fields[2:4] == [0, 0]  # owner
        assert fields[5] == 0  # time


def test_directory_comes_before_what_is_in_it(tmp_path: Path) -> None:
    module = tmp_path / "a.ko"
    module.write_bytes(b"")
    (files,) = parse(base_initrd([module], b""))
    names = list(files)
    assert names.index("modules") < names.index("modules/a.ko")


@pytest.mark.parametrize("length", [0, 1, 3, 4, 511, 512, 513])
def test_conf_is_a_second_archive(length: int) -> None:
    base = archive([Entry("init", stat.S_IFREG | 0o755, b"x" * length)])
    whole = with_conf(base, b"arg=sh\0")
    assert whole.startswith(base)
    assert len(whole) % BLOCK == 0
    first, second = parse(whole)
    assert first["init"][1] == b"x" * length
    assert second["runphi.conf"][1] == b"arg=sh\0"
    assert second["runphi.conf"][0][1] == stat.S_IFREG | 0o600


def test_base_that_is_not_padded_is_still_followed_properly() -> None:
    assert len(parse(with_conf(archive([]).rstrip(b"\0") + b"\0", b"arg=a\0"))) == 2


def test_conf_records() -> None:
    process = ProcessSpec(
        args=("sh", "-c", "echo a=b\nc"),
        env=("PATH=/bin", "EMPTY="),
        cwd="/srv",
        uid=1000,
        gid=100,
        additional_gids=(5, 6),
        hostname="box",
        terminal=True,
        rows=40,
        cols=100,
        umask=0o027,
        rlimits=(Rlimit("RLIMIT_NOFILE", 1024, 4096),),
    )
    assert conf_of(process, readonly=True) == [
        "arg=sh",
        "arg=-c",
        "arg=echo a=b\nc",
        "env=PATH=/bin",
        "env=EMPTY=",
        "cwd=/srv",
        "uid=1000",
        "gid=100",
        "groups=5,6",
        "tty=1",
        "rows=40",
        "cols=100",
        "readonly=1",
        "rlimit=RLIMIT_NOFILE:1024:4096",
        "hostname=box",
        "umask=23",
    ]


def test_conf_leaves_out_what_was_not_asked_for() -> None:
    records = conf_of(ProcessSpec(args=("a",)))
    assert not [record for record in records if record.startswith(("umask", "hostname", "rlimit", "env"))]
    assert "tty=0" in records


def test_conf_of_mounts_and_network() -> None:
    mounts = [GuestMount("bind", "/a b", 1, "m0"), GuestMount("tmpfs", "/t", 6, data="size=1m")]
    conf = container_conf(ProcessSpec(args=("a",)), mounts=mounts, net=True).decode().split("\0")[:-1]
    assert conf[-4:] == ["own-mounts=1", "mount=1 bind m0 - /a b", "mount=6 tmpfs - size=1m /t", "net=1"]
    assert "own-mounts=1" in container_conf(ProcessSpec(args=("a",)), mounts=()).decode().split("\0")


@pytest.mark.parametrize(
    "process",
    [ProcessSpec(args=("a\0env=X=1",)), ProcessSpec(args=("a",), env=("A=\0",)), ProcessSpec(args=("a",), cwd="/\0")],
)
def test_a_nul_byte_cannot_smuggle_in_a_record(process: ProcessSpec) -> None:
    with pytest.raises(SpecError, match="NUL byte"):
        container_conf(process)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_any_arguments_arrive_in_order(args: list[str]) -> None:
    records = conf_of(ProcessSpec(args=tuple(args)))
    assert [record.removeprefix("arg=") for record in records if record.startswith("arg=")] == args
