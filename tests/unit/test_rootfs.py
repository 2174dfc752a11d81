# SPDX-License-Identifier: Apache-2.0
"""How an image's files get into a Linux guest without a file server, checked with the tools that read such things."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from backends.guest import rootfs
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for owners and device nodes")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "etc").mkdir(parents=True)
    (top / "empty").mkdir(mode=0o700)
    (top / "etc" / "data").write_bytes(bytes(range(256)) * 40)
    (top / "etc" / "odd\udcff name").write_bytes(b"abc")
    os.link(top / "etc" / "data", top / "zz-hard")
    (top / "link").symlink_to("/etc/data")
    (top / "outside").symlink_to("/etc/passwd")
    os.mkfifo(top / "fifo")
    if os.geteuid() == 0:
        os.chown(top / "etc" / "data", 1234, 4321)
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chmod(top / "etc" / "data", 0o4755)
    return top


@needs_root
@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_the_archive_is_the_tree(tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with archive.open("wb") as file:
        rootfs.append_archive(file, str(tree))
    out = tmp_path / "out"
    out.mkdir()
    with archive.open("rb") as file:
        subprocess.run(["cpio", "-idm", "--quiet"], stdin=file, cwd=out, check=True)
    for path, status in rootfs._walk(str(tree)):
        got = os.lstat(out / rootfs.TREE / path)
        assert (got.st_mode, got.st_uid, got.st_gid, got.st_rdev) == (
            status.st_mode, status.st_uid, status.st_gid, status.st_rdev), path  # fmt: skip
    new = out / rootfs.TREE
    assert (new / "etc" / "data").read_bytes() == (tree / "etc" / "data").read_bytes()
    assert (new / "zz-hard").samefile(new / "etc" / "data")
    assert os.readlink(new / "outside") == "/etc/passwd"
    assert (new / "etc" / "odd\udcff name").read_bytes() == b"abc"


def test_the_size_of_an_archive_is_known_before(tree: Path, tmp_path: Path) -> None:
    (tree / "to-dir").symlink_to("etc")
    (tree / ("long" * 60)).write_bytes(b"12345")
    out = tmp_path / "archive"
    with out.open("wb") as file:
        rootfs.append_archive(file, str(tree))
    assert rootfs.archive_size(str(tree), 1 << 30) == out.stat().st_size
    assert 1000 < rootfs.archive_size(str(tree), 1000) < out.stat().st_size


def test_a_link_is_counted_once(tree: Path) -> None:
    size = rootfs.measure(str(tree))
    (tree / "more").write_bytes(b"x" * 8192)
    assert rootfs.measure(str(tree)) == size + 8192 + 512
    os.link(tree / "more", tree / "more2")
    assert rootfs.measure(str(tree)) == size + 8192 + 2 * 512


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with (tmp_path / "archive").open("wb") as file, pytest.raises(BackendError, match="/nonexistent"):
        rootfs.append_archive(file, "/nonexistent")


@needs_root
@pytest.mark.skipif(shutil.which("debugfs", path="/sbin:/usr/sbin") is None, reason="needs e2fsprogs")
async def test_the_disk_is_the_tree(tree: Path, tmp_path: Path) -> None:
    disk = tmp_path / "images" / "disk.img"
    await rootfs.make_disk(str(disk), str(tree), rootfs.measure(str(tree)))
    shown = subprocess.run(
        ["/sbin/debugfs", "-R", "stat /etc/data", str(disk)], capture_output=True, text=True, check=True
    ).stdout
    assert "Mode:  04755" in shown
    assert "User:  1234   Group:  4321   Project:     0   Size: 10240" in shown
    assert disk.stat().st_blocks * 512 < 64 << 20, "the image is sparse"


async def test_a_disk_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    with pytest.raises(BackendError, match="cannot make a disk of the root filesystem"):
        await rootfs.make_disk(str(disk), "/nonexistent", 0)
    assert not disk.exists()
