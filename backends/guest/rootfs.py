# SPDX-License-Identifier: Apache-2.0
"""How a Linux guest without a file server gets the image's root filesystem: in its RAM disk, or on a disk made of it.

On Xen 9pfs, what virtiofs is for QEMU guests, needs a device model and a guest kernel with 9p; Debian's small kernel
has none. A Jailhouse cell has nothing of the kind at all. So the guest gets a copy, and what it writes ends with it
(docs/explanation/xen.md has the measurements). Both are made by walking the tree with owners, modes, links and device
nodes as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

from runphi_async.errors import BackendError
from runphi_async.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

#: Directory of the RAM disk that our init makes the root.
TREE: Final = "rootfs"
_MAGIC: Final = b"070701"
_TRAILER: Final = b"TRAILER!!!"
_COPY: Final = 1 << 20
#: Seconds mke2fs may take; a gigabyte takes some ten on a slow disk.
MAKE_SECONDS: Final = 300.0
#: Room for the guest's own files on its disk, besides what the image holds.
FREE: Final = 256 * MIB


def measure(rootfs: str) -> int:
    """Return the bytes that the files of a tree take in a guest, links counted once (blocks)."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for _, status in _walk(rootfs):
        if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            total += -(-status.st_size // 4096) * 4096
        total += 512
    return total


def _walk(rootfs: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path relative to the tree, status) of everything in it, parents first; links are not followed."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(os.path.join(rootfs, below)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = os.path.join(below, entry.name)
                status = entry.stat(follow_symlinks=False)
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path)


def archive_size(rootfs: str, limit: int) -> int:
    """Return the bytes of what ``append_archive`` writes; looking ends where they exceed ``limit`` (blocks)."""
    total = _length(TREE.encode(), 0) + _length(_TRAILER, 0)
    seen: set[tuple[int, int]] = set()
    for path, status in _walk(rootfs):
        key, size = (status.st_dev, status.st_ino), 0
        if stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and key not in seen):
            size = status.st_size
        seen.add(key)
        total += _length(os.fsencode(f"{TREE}/{path}"), size)
        if total > limit:
            break
    return total


def _length(name: bytes, size: int) -> int:
    head = len(_MAGIC) + 13 * 8 + len(name) + 1
    return head + -head % 4 + size + -size % 4


def append_archive(out: BinaryIO, rootfs: str) -> None:
    """Append a tree to a RAM disk as a cpio archive, below ``rootfs/`` (blocks).

    :raises BackendError: a file cannot be read, or is too large for the format.
    """
    numbers: dict[tuple[int, int], int] = {}
    try:
        top = os.stat(rootfs)
        _header(out, TREE.encode(), top, 1, 0)
        number = 1
        for path, status in _walk(rootfs):
            name = os.fsencode(f"{TREE}/{path}")
            number += 1
            key = (status.st_dev, status.st_ino)
            first = numbers.setdefault(key, number)
            if stat.S_ISREG(status.st_mode):
                # Of a file with several names only the first carries its bytes; the kernel links the others to it.
                _file(out, os.path.join(rootfs, path), name, status, first, whole=first == number)
            elif stat.S_ISLNK(status.st_mode):
                target = os.fsencode(os.readlink(os.path.join(rootfs, path)))
                _header(out, name, status, number, len(target))
                _write(out, target)
            elif not stat.S_ISSOCK(status.st_mode):
                _header(out, name, status, first, 0)
    except OSError as exc:
        raise BackendError(f"cannot pack the root filesystem: {exc.filename}: {exc.strerror}") from exc
    out.write(_record(_TRAILER, (0,) * 13))


def _file(out: BinaryIO, path: str, name: bytes, status: os.stat_result, number: int, *, whole: bool) -> None:
    size = status.st_size if whole else 0
    if size > 0xFFFF_FFFF:
        raise BackendError(
            f"cannot pack the root filesystem: {path} is too large", "a RAM disk holds files below 4 GiB"
        )
    _header(out, name, status, number, size)
    if size == 0:
        return
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        left = size
        while left:
            data = file.read(min(left, _COPY))
            if not data:
                raise BackendError(f"cannot pack the root filesystem: {path} shrank meanwhile")
            out.write(data)
            left -= len(data)
    out.write(b"\0" * (-size % 4))


def _header(out: BinaryIO, name: bytes, status: os.stat_result, number: int, size: int) -> None:
    device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if stat.S_IFMT(status.st_mode) in (
        stat.S_IFCHR, stat.S_IFBLK) else (0, 0)  # fmt: skip
    links = status.st_nlink if stat.S_ISREG(status.st_mode) else 1
    mtime = max(0, min(int(status.st_mtime), 0xFFFF_FFFF))
    fields = (number, status.st_mode, status.st_uid, status.st_gid, links, mtime, size, 0, 0, *device, len(name) + 1, 0)
    out.write(_record(name, fields))


def _record(name: bytes, fields: tuple[int, ...]) -> bytes:
    if name == _TRAILER:
        fields = (*fields[:11], len(name) + 1, 0)
    data = _MAGIC + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return data + b"\0" * (-len(data) % 4)


def _write(out: BinaryIO, data: bytes) -> None:
    out.write(data + b"\0" * (-len(data) % 4))


async def make_disk(path: str, rootfs: str, size: int) -> None:
    """Make an ext4 image of a tree; cancelled or failed, none is left.

    :param size: bytes of the tree's files.
    :raises BackendError: mke2fs is not there or failed.
    """
    mib = (size + size // 8 + FREE) // MIB
    argv = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", rootfs, path, f"{mib}M"]
    process: asyncio.subprocess.Process | None = None
    done = False
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            "/sbin/mke2fs", *argv,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(MAKE_SECONDS):
            _, err = await process.communicate()
        if process.returncode != 0:
            lines = err.decode(errors="replace").strip().splitlines() or [f"mke2fs ended with {process.returncode}"]
            raise BackendError(f"cannot make a disk of the root filesystem: {lines[-1]}")
        done = True
    except OSError as exc:
        raise BackendError(
            f"cannot make a disk of the root filesystem: {exc.strerror}", "apt-get install e2fsprogs, free some space"
        ) from exc
    except TimeoutError as exc:
        raise BackendError(f"cannot make a disk of the root filesystem: not done in {MAKE_SECONDS:.0f} s") from exc
    finally:
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
        if not done:
            with contextlib.suppress(OSError):
                os.unlink(path)
