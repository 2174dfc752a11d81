# SPDX-License-Identifier: Apache-2.0
"""What a plan for Xen wants to know of this machine and of the image: the only part of the generator that reads files.

It changes none of them; all of it blocks.
"""

from __future__ import annotations

import contextlib
import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.guest import elf, nics, rootfs
from backends.xen import net, notes
from backends.xen.machine import HostFacts
from consoles.errors import SourceError
from consoles.sharedmem import vchan
from runphi_async import regular
from runphi_async.errors import PlanError
from runphi_async.partition import boot, mounts
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from backends.xen.asking import XlInfo
    from backends.xen.wishes import XenWishes
    from runphi_async.partition.spec import GuestSpec

#: What libxl runs as device model when the configuration of a domain names none. Source: Debian's xen-utils.
DEVICE_MODELS: Final = ("/usr/libexec/xen-qemu-system-i386", "/usr/lib/xen-*/bin/qemu-system-i386")
#: Where xl itself lies, and not the script that Debian puts before it.
XL_PROGRAMS: Final = ("/usr/lib/xen-*/bin/xl", "/usr/sbin/xl", "/usr/local/sbin/xl")
#: Largest file of which a guest gets a copy: hosts, hostname, resolv.conf.
_COPY_MAX: Final = 1 << 20


def gather(spec: GuestSpec, wishes: XenWishes, told: XlInfo, kernel: str, initrd: str) -> tuple[HostFacts, bool]:
    """Return what is true of the machine, and whether the image has the notes of a PV kernel.

    :param kernel: the configured kernel of Linux guests, and ``initrd`` the RAM disk with our init.
    """
    image = boot.boot_image(spec, kernel, "xen.kernel")
    linux = spec.kind is GuestKind.LINUX
    facts = HostFacts(
        arch=os.uname().machine,
        cpus=tuple(range(int(told.info.get("nr_cpus", "1")))),
        free_memory=told.free,
        pools=told.pools,
        scheduler=told.info.get("xen_scheduler", ""),
        hvm=told.hvm,
        device_model=next(iter(sorted(path for pattern in DEVICE_MODELS for path in glob.glob(pattern))), None),
        image=elf.inspect(image),
        static_shm=bool(wishes.static_shm) and _knows("static_shm"),
        no_vchan=_no_vchan() if any(channel.vchan for channel in spec.channels) else "",
        page_size=os.sysconf("SC_PAGE_SIZE"),
        initrd=_initrd(initrd) if linux else None,
        rootfs_bytes=_measure(spec.rootfs) if linux else 0,
        copies=_copies(spec) if linux else {},
        links=nics.look(spec.netns),
        no_vifs=net.obstacle(),
    )
    return facts, notes.is_pv_kernel(image)


def _knows(key: str) -> bool:
    """Whether xl has a key: it takes those it does not know without a word, so its programs are read (blocks)."""
    paths = [path for pattern in XL_PROGRAMS for path in glob.glob(pattern)]
    return any(key.encode() in Path(path).read_bytes() for path in paths)


def _no_vchan() -> str:
    """Why libxenvchan cannot be had, "" when it can (blocks)."""
    try:
        vchan.load()
    except SourceError as exc:
        return str(exc)
    return ""


def _initrd(path: str) -> bytes | None:
    """Return our init's RAM disk, None when there is none (blocks)."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read()
    return None


def _copies(spec: GuestSpec) -> dict[str, bytes]:
    """Read the files that the guest gets copies of (blocks)."""
    found = {}
    for mount in filter(mounts.is_copied, spec.mounts):
        try:
            found[mount.source] = regular.read(mount.source, _COPY_MAX)
        except OSError as exc:
            raise PlanError(f"cannot mount {mount.source} at {mount.destination}: {exc.strerror}") from exc
    return found


def _measure(path: str) -> int:
    try:
        return rootfs.measure(path)
    except OSError as exc:
        raise PlanError(f"cannot read the root filesystem: {exc.filename}: {exc.strerror}") from exc
