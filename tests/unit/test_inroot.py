# SPDX-License-Identifier: Apache-2.0
"""No path of an image leads out of the image."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from runphi_async.errors import SpecError
from runphi_async.host import inroot

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "roo t"
    (root / "boot").mkdir(parents=True)
    (root / "boot/inmate.elf").write_bytes(b"inmate")
    (tmp_path / "secret").write_bytes(b"secret")
    return root


def link(rootfs: Path, name: str, target: str) -> str:
    (rootfs / name).symlink_to(target)
    return "/" + name


@pytest.mark.parametrize("path", ["/boot/inmate.elf", "boot/inmate.elf", "//boot/./../../boot/inmate.elf"])
def test_plain_paths(rootfs: Path, path: str) -> None:
    assert inroot.resolve(str(rootfs), path) == str(rootfs / "boot/inmate.elf")
    assert inroot.read(str(rootfs), path, 6) == b"inmate"


@pytest.mark.parametrize(
    "target",
    ["/boot/inmate.elf", "../../../../boot/inmate.elf", "boot/../boot/inmate.elf", "/../boot/inmate.elf"],
)
def test_links_stay_inside(rootfs: Path, target: str) -> None:
    assert inroot.resolve(str(rootfs), link(rootfs, "l", target)) == str(rootfs / "boot/inmate.elf")


@pytest.mark.parametrize("target", ["../secret", "/secret", "../../../../../../etc/passwd", "/etc/passwd"])
def test_links_do_not_lead_out(rootfs: Path, target: str) -> None:
    path = link(rootfs, "l", target)
    with pytest.raises(SpecError, match="not found there") as caught:
        inroot.resolve(str(rootfs), path)
    assert repr(path) in caught.value.msg
    assert str(rootfs) in caught.value.msg
    assert inroot.read(str(rootfs), path, 9) is None


def test_links_of_directories_and_of_the_host(rootfs: Path, tmp_path: Path) -> None:
    link(rootfs, "d", "/")
    assert inroot.resolve(str(rootfs), "/d/d/../d/boot/inmate.elf") == str(rootfs / "boot/inmate.elf")
    link(rootfs, "up", "..")
    assert inroot.read(str(rootfs), "/up/secret", 9) is None
    (tmp_path / "alias").symlink_to(rootfs)
    assert inroot.resolve(str(tmp_path / "alias"), "boot/inmate.elf") == str(rootfs / "boot/inmate.elf")


def test_loops(rootfs: Path) -> None:
    link(rootfs, "a", "b")
    link(rootfs, "b", "a")
    for function in (inroot.resolve, lambda root, path: inroot.read(root, path, 9)):
        with pytest.raises(SpecError, match="too many symbolic links"):
            function(str(rootfs), "/a")


def test_magic_links() -> None:
    with open("/etc/passwd") as file:
        for path in (f"/self/fd/{file.fileno()}", "/self/exe", "/self/root/etc/passwd", "/self/cwd/x"):
            with pytest.raises(SpecError):
                inroot.resolve("/proc", path)


def test_only_regular_files(rootfs: Path) -> None:
    os.mkfifo(rootfs / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.getcwd()
        os.chdir(rootfs)
        sock.bind("socket")
        os.chdir(here)
    names = ["/fifo", "/boot", "/", ".", "..", "/socket"]
    if os.geteuid() == 0:
        try:
            os.mknod(rootfs / "null", 0o20666, os.makedev(1, 3))
            names.append("/null")
        except PermissionError:
            pass
    for name in names:
        for function in (inroot.resolve, lambda root, path: inroot.read(root, path, 9)):
            with pytest.raises(SpecError, match="not a regular file"):
                function(str(rootfs), name)


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "not a file name"), ("a\0b", "not a file name"), ("/boot/inmate.elf/x", "not a directory")],
)
def test_bad_paths(rootfs: Path, path: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        inroot.resolve(str(rootfs), path)


def test_long_names(rootfs: Path) -> None:
    with pytest.raises(SpecError, match="too long"):
        inroot.resolve(str(rootfs), "x" * 300)


def test_no_rootfs(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot use root filesystem"):
        inroot.read(str(tmp_path / "none"), "/x", 1)


def test_limit(rootfs: Path) -> None:
    with pytest.raises(SpecError, match="larger than 5 bytes"):
        inroot.read(str(rootfs), "/boot/inmate.elf", 5)


def test_moved_meanwhile(rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: str(real(path)) + " (deleted)")
    with pytest.raises(SpecError, match="moved"):
        inroot.resolve(str(rootfs), "/boot/inmate.elf")


def test_no_descriptor_is_left(rootfs: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for path in ("/boot/inmate.elf", "/boot", "/none"):
        with contextlib.suppress(SpecError):
            inroot.resolve(str(rootfs), path)
    assert os.listdir("/proc/self/fd") == before
