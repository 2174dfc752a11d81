# SPDX-License-Identifier: Apache-2.0
"""RAM disks of Linux guests: a small writer of cpio archives (format newc), without a tool and always the same bytes.

``bin/prepare-guest`` makes the base once a machine; a backend appends a second archive with one container's
configuration to it. Linux unpacks archives that follow each other as if they were one.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from runphi_async.partition.mounts import GuestMount
    from runphi_async.partition.spec import ProcessSpec

#: what the guest's init reads
CONF_NAME: Final = "runphi.conf"
#: the next archive must begin at a multiple of 4; 512 is what cpio itself does
BLOCK: Final = 512
_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"


class Entry(NamedTuple):
    """One file of an archive."""

    name: str
    mode: int
    data: bytes = b""
    #: major and minor of a device node
    device: tuple[int, int] = (0, 0)


def _pad(data: bytes, unit: int) -> bytes:
    return data + b"\0" * (-len(data) % unit)


def _record(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, nlink, mtime, size, device of the file system, device node, size of the name, check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _pad(header + name, 4) + _pad(entry.data, 4)


def archive(entries: Iterable[Entry]) -> bytes:
    """Return a newc archive of the entries: sorted by name, owned by root, times zero."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    records = [_record(entry, inode) for inode, entry in enumerate(ordered, start=1)]
    records.append(_record(Entry(_TRAILER, 0), 0))
    return _pad(b"".join(records), BLOCK)


def base_initrd(modules: Iterable[Path], init: bytes, net: Iterable[Path] = ()) -> bytes:
    """Return the part that is the same for every container.

    :param modules: kernel modules in the order they are to be loaded.
    :param init: the static executable that becomes the guest's first process.
    :param net: modules that only a guest with a network loads.
    """
    entries = [
        *(Entry(name, stat.S_IFDIR | 0o755) for name in ("dev", "modules", "proc", "rootfs", "sys")),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("init", stat.S_IFREG | 0o755, init),
    ]
    held: set[str] = set()
    for listed, group in (("modules.order", modules), ("modules.net", net)):
        order = []
        for module in group:
            name = f"modules/{module.name}"
            if name not in held:
                held.add(name)
                entries.append(Entry(name, stat.S_IFREG | 0o644, module.read_bytes()))
                order.append(f"/{name}\n")
        entries.append(Entry(listed, stat.S_IFREG | 0o644, "".join(order).encode()))
    return archive(entries)


def container_conf(
    process: ProcessSpec,
    *,
    readonly: bool = False,
    rootfs: str = "share",
    mounts: Iterable[GuestMount] | None = None,
    net: bool = False,
) -> bytes:
    """Return the configuration file of one container: NUL-terminated records ``key=value``.

    :param readonly: mount the image's rootfs read-only.
    :param rootfs: how the guest gets it: "share", "ramdisk" or "disk".
    :param mounts: the container's mounts; None: those that every container has.
    :param net: the host will tell on the control port what the interfaces are like.
    :raises SpecError: when a value holds a NUL, which no process could be given anyway.
    """
    found = [
        *(("arg", arg) for arg in process.args),
        *(("env", variable) for variable in process.env),
        ("cwd", process.cwd or "/"),
        ("uid", str(process.uid)),
        ("gid", str(process.gid)),
        ("groups", ",".join(map(str, process.additional_gids))),
        ("tty", str(int(process.terminal))),
        ("rows", str(process.rows)),
        ("cols", str(process.cols)),
        ("readonly", str(int(readonly))),
        *(("rlimit", f"{limit.type}:{limit.soft}:{limit.hard}") for limit in process.rlimits),
    ]
    if rootfs != "share":
        found.append(("rootfs", rootfs))
    if mounts is not None:
        found.append(("own-mounts", "1"))
        found += [("mount", f"{m.flags} {m.type} {m.source} {m.data} {m.destination}") for m in mounts]
    if net:
        found.append(("net", "1"))
    if process.hostname:
        found.append(("hostname", process.hostname))
    if process.umask is not None:
        found.append(("umask", str(process.umask)))
    return records(*found)


def records(*pairs: tuple[str, str]) -> bytes:
    """Return records of the configuration file; appended to others they count as well.

    :raises SpecError: a value holds a NUL.
    """
    for key, value in pairs:
        if "\0" in value:
            raise SpecError(f"cannot hand the process to the guest: {key} contains a NUL byte")
    return b"".join(f"{key}={value}".encode(errors="surrogateescape") + b"\0" for key, value in pairs)


def with_conf(base: bytes, conf: bytes, copies: Mapping[str, bytes] | None = None) -> bytes:
    """Return the RAM disk of one container: the base, then an archive with its configuration.

    :param copies: files for bind mounts, by the names of their sources, where the guest shares none with the host.
    """
    entries = [Entry(CONF_NAME, stat.S_IFREG | 0o600, conf)]
    if copies:
        entries.append(Entry("share", stat.S_IFDIR | 0o755))
        entries += [Entry(f"share/{name}", stat.S_IFREG | 0o644, data) for name, data in copies.items()]
    return _pad(base, BLOCK) + archive(entries)
