# SPDX-License-Identifier: Apache-2.0
"""Mounts of config.json against what a guest gets: carried out, the guest's own, or refused; never dropped unseen."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from runphi_async.errors import PlanError
from runphi_async.oci import spec as oci
from runphi_async.partition import mountoptions, mounts
from runphi_async.partition.guest import guest_spec
from runphi_async.partition.mounts import GuestMount
from runphi_async.partition.request import request
from runphi_async.partition.spec import Bind, GuestKind, GuestSpec, MountSpec

if TYPE_CHECKING:
    from pathlib import Path

RO, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8


def spec(*asked: MountSpec, kind: GuestKind = GuestKind.LINUX) -> GuestSpec:
    return GuestSpec(id="c1", kind=kind, rootfs="/r", mounts=asked)


def bound(destination: str, source: str = "/h", *options: str, source_is: str = "directory") -> MountSpec:
    return MountSpec(destination, "bind", source, ("rbind", *options), source_is)


def kernels(destination: str, type: str, *options: str) -> MountSpec:
    return MountSpec(destination, type, type, options)


def test_bind_mounts_are_shared_and_made_in_order() -> None:
    found = mounts.decide(
        spec(
            bound("/data", "/h/data", "rw", "rprivate"),
            kernels("/run", "tmpfs", "nosuid", "mode=755"),
            bound("/run/key", "/h/key", "ro", "nosuid", "rslave", source_is="file"),
        )
    )
    assert found.binds == (
        Bind("m0", "/h/data", directory=True, recursive=True),
        Bind("m1", "/h/key", directory=False, readonly=True, recursive=True, slave=True),
    )
    assert found.guest == (
        GuestMount("bind", "/data", source="m0"),
        GuestMount("tmpfs", "/run", NOSUID, data="mode=755"),
        GuestMount("bind", "/run/key", RO | NOSUID, "m1"),
    )
    assert found.explain == (
        "mount: /data is /h/data",
        "mount: /run is tmpfs, nosuid",
        "mount: /run/key is /h/key, read-only, nosuid",
    )


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        (kernels("/proc", "proc", "noexec", "nodev"), GuestMount("remount", "/proc", NODEV | NOEXEC)),
        (kernels("/dev", "tmpfs", "nosuid", "mode=755", "size=65536k"), GuestMount("remount", "/dev", NOSUID)),
        (kernels("/sys", "sysfs", "ro"), GuestMount("remount", "/sys", RO)),
        (kernels("/dev/pts", "devpts", "noexec", "newinstance", "gid=5"), GuestMount("remount", "/dev/pts", NOEXEC)),
        (kernels("/sys/fs/cgroup", "cgroup", "ro", "all"), GuestMount("cgroup2", "/sys/fs/cgroup", RO)),
        (kernels("/dev/mqueue", "mqueue", "nodev"), GuestMount("mqueue", "/dev/mqueue", NODEV)),
        (kernels("/t", "tmpfs", "tmpcopyup", "size=1m", "uid=5"), GuestMount("tmpfs-copy", "/t", data="size=1m,uid=5")),
        (bound("/sys", "/sys", "ro"), GuestMount("remount", "/sys", RO)),
        (bound("/dev/shm", "/h/shm"), GuestMount("tmpfs", "/dev/shm", NOSUID | NODEV, data="mode=1777")),
        (
            MountSpec("/dev/shm", "bind", "/h/shm", ("rbind",), "directory", size=4096),
            GuestMount("tmpfs", "/dev/shm", NOSUID | NODEV, data="mode=1777,size=4096"),
        ),
    ],
)  # fmt: skip
def test_what_is_the_guests_own(asked: MountSpec, made: GuestMount) -> None:
    found = mounts.decide(spec(asked))
    assert found.guest == (made,)
    assert found.binds == ()


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (bound("/a", "/h/none", source_is=""), "cannot mount /h/none at /a: there is no such file or directory"),
        (bound("/a", "/h/s", source_is="socket"), "it is a socket, and a guest's kernel cannot reach"),
        (bound("/a", "/h", "size=1m"), "a bind mount has no option 'size=1m'"),
        (bound("/a", "/h", "shared"), "with option shared: a guest's mounts cannot appear on the host; use rprivate"),
        (kernels("/a", "overlay", "lowerdir=/x"), "a file system of type 'overlay'"),
        (MountSpec("/a"), "a file system of type 'none'"),
        (kernels("/a", "tmpfs", "x" * 300), "too long or hold white space"),
        (kernels("/a", "tmpfs", "mode=755 - /etc"), "too long or hold white space"),
    ],
)
def test_what_a_guest_cannot_have(asked: MountSpec, text: str) -> None:
    with pytest.raises(PlanError, match=text):
        mounts.decide(spec(asked))


def test_a_backend_that_shares_nothing() -> None:
    resolv = bound("/etc/resolv.conf", "/h/resolv", source_is="file")
    found = mounts.decide(spec(resolv, kernels("/run", "tmpfs")), shares=False)
    assert found.guest == (GuestMount("tmpfs", "/run"),)
    assert "mount: /etc/resolv.conf is the image's, as the engine's cannot be shared" in found.explain
    with pytest.raises(PlanError, match="cannot mount /h/data at /data: this backend shares nothing"):
        mounts.decide(spec(resolv, bound("/data", "/h/data")), shares=False)


@pytest.mark.parametrize("kind", [GuestKind.INMATE, GuestKind.KERNEL])
def test_other_guests_are_told_what_they_do_not_see(kind: GuestKind) -> None:
    usual = (kernels("/proc", "proc"), bound("/etc/hosts", source_is="file"), bound("/dev/shm"))
    assert mounts.decide(spec(*usual, kind=kind)).explain == ()
    found = mounts.decide(spec(*usual, bound("/a"), bound("/b", source_is=""), kind=kind))
    assert found == mounts.Mounts((), (), (f"mount: not seen by a guest of kind {kind}: /a, /b",))


def test_options_count_in_order() -> None:
    assert mountoptions.parse("/a", ("ro", "nosuid", "rw")).flags == NOSUID
    assert mountoptions.parse("/a", ("rro",)).flags == RO
    found = mountoptions.parse("/a", ("bind", "slave", "unbindable"))
    assert (found.bind, found.recursive, found.slave, found.data) == (True, False, True, ())


def test_what_a_source_is_on_the_host(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))

    def found(**mount: Any) -> MountSpec:
        config = {"root": {"path": "rootfs"}, "process": {"env": ["LINUX=1"]}, "mounts": [mount]}
        read = oci.from_bytes(msgspec.json.encode(config))
        asked = request(read)
        assert asked is not None
        (made,) = guest_spec(asked, read, "c1", str(tmp_path), NoPaths()).mounts
        return made

    kinds = {"rootfs": "directory", "file": "file", "fifo": "FIFO", "socket": "socket", "nothing": ""}
    for name, kind in kinds.items():
        # relative to the bundle, as the OCI specification has it
        for source in (name, str(tmp_path / name)):
            made = found(destination="data/../a", type="bind", source=source)
            assert made == MountSpec("/a", "bind", str(tmp_path / name), (), kind)
    assert found(destination="/a", source="/dev/null", options=["bind"]).source_is == "device"
    assert found(destination="/dev/shm", type="bind", source=str(tmp_path)).size > 0
    assert found(destination="/t", type="tmpfs", source="shm") == MountSpec("/t", "tmpfs", "shm")


class NoPaths:
    host_paths = ()
