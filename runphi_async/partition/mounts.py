# SPDX-License-Identifier: Apache-2.0
"""Which mounts of config.json a guest has: the decision every backend shares.

Each mount is carried out, is the guest's own already, or is refused; none is dropped unseen. docs/reference/mounts.md
has the table. The guest's init makes them in the order of config.json, in its own root, so no link of the image leads
anywhere; a bind mount's source is shared with it under a name, ``m0``, ``m1`` …
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

import msgspec

from runphi_async.errors import PlanError
from runphi_async.host import syscalls
from runphi_async.partition import mountoptions
from runphi_async.partition.spec import Bind, GuestKind, MountSpec

if TYPE_CHECKING:
    from runphi_async.partition.mountoptions import Options
    from runphi_async.partition.spec import GuestSpec

#: mounted by the guest's init itself: engines ask for them in every container
OWN: Final = {
    "/proc": ("proc",),
    "/sys": ("sysfs",),
    "/dev": ("tmpfs", "devtmpfs"),
    "/dev/pts": ("devpts",),
}
#: file systems of the guest's kernel that need nothing of the host
KERNELS: Final = {
    "proc": "proc",
    "sysfs": "sysfs",
    "devpts": "devpts",
    "mqueue": "mqueue",
    "tmpfs": "tmpfs",
    "ramfs": "ramfs",
    # the guest's kernel has the second version only
    "cgroup": "cgroup2",
    "cgroup2": "cgroup2",
}
#: shared memory works within one kernel only: the guest has its own
SHM: Final = "/dev/shm"
#: places that show the kernel: bound from the host's they are the guest's own
_SYSTEM: Final = ("/proc", "/sys", "/dev", "/dev/pts", "/sys/fs/cgroup", "/dev/mqueue")
#: files that engines write before they create a container: a copy is as good
COPIED: Final = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
#: what engines bind into every container, asked or not
ENGINES: Final = frozenset(
    {
        "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab", SHM, "/dev/termination-log",
        "/run/.containerenv", "/run/secrets", "/var/run/secrets/kubernetes.io/serviceaccount",
    }
)  # fmt: skip


class GuestMount(msgspec.Struct, frozen=True):
    """One mount that the guest's init makes; backends/guest/init/mounts.c says what the types are."""

    type: str
    destination: str
    flags: int = 0
    #: of a bind mount: its name in the share
    source: str = "-"
    data: str = "-"


class Mounts(msgspec.Struct, frozen=True):
    """The mounts decided, and why."""

    guest: tuple[GuestMount, ...]
    binds: tuple[Bind, ...]
    explain: tuple[str, ...]


def decide(spec: GuestSpec, *, shares: bool = True, copies: bool = False) -> Mounts:
    """Decide on each mount.

    :param shares: the backend can share directories and files of the host with its guests.
    :param copies: it cannot, but hands over copies of small files.
    :raises PlanError: a mount that the guest cannot have, and why.
    """
    if spec.kind is not GuestKind.LINUX:
        return Mounts((), (), unseen(spec))
    guest: list[GuestMount] = []
    binds: list[Bind] = []
    left_out: list[str] = []
    for mount in spec.mounts:
        options = mountoptions.parse(mount.destination, mount.options)
        if mount.type != "bind" and not options.bind:
            guest.append(_kernels(mount, options))
        elif mount.destination in _SYSTEM and mount.source == mount.destination:
            guest.append(GuestMount("remount", mount.destination, options.flags))
        elif mount.destination == SHM:
            size = f",size={mount.size}" if mount.size else ""
            flags = options.flags | syscalls.MS_NOSUID | syscalls.MS_NODEV
            guest.append(GuestMount("tmpfs", SHM, flags, data=f"mode=1777{size}"))
        elif not shares and not (copies and is_copied(mount)):
            if mount.destination not in ENGINES:
                raise PlanError(
                    f"cannot mount {mount.source} at {mount.destination}: this backend shares nothing with its guests",
                    "copy it into the image, or use org.runphi.backend=qemu",
                )
            left_out.append(mount.destination)
        else:
            bind = _bind(mount, options, f"m{len(binds)}")
            binds.append(bind)
            guest.append(GuestMount("bind", mount.destination, options.flags, bind.name))
    return Mounts(tuple(guest), tuple(binds), _explain(guest, binds, left_out, shares))


def is_copied(mount: MountSpec) -> bool:
    """Whether a guest that shares no files can have a copy."""
    return mount.destination in COPIED and mount.source_is == "file"


def _kernels(mount: MountSpec, options: Options) -> GuestMount:
    if mount.type in OWN.get(mount.destination, ()):
        return GuestMount("remount", mount.destination, options.flags)
    kind = KERNELS.get(mount.type)
    if kind is None:
        raise PlanError(
            f"cannot mount {mount.destination}: a guest cannot have a file system of type '{mount.type or 'none'}'",
            f"mount it on the host and bind it; a guest has bind mounts and {', '.join(sorted(KERNELS))}",
        )
    data = options.data if kind not in ("cgroup2", "proc", "sysfs", "mqueue") else ()
    if options.copy_up and kind == "tmpfs":
        kind = "tmpfs-copy"
    return GuestMount(kind, mount.destination, options.flags, data=",".join(data) or "-")


def _bind(mount: MountSpec, options: Options, name: str) -> Bind:
    if not mount.source_is:
        raise PlanError(
            f"cannot mount {mount.source} at {mount.destination}: there is no such file or directory on the host",
            "make it first",
        )
    if mount.source_is not in ("directory", "file"):
        raise PlanError(
            f"cannot mount {mount.source} at {mount.destination}: it is a {mount.source_is}, "
            "and a guest's kernel cannot reach what is behind it",
            "leave the mount out",
        )
    if options.data:
        raise PlanError(f"cannot mount {mount.destination}: a bind mount has no option '{options.data[0]}'")
    return Bind(
        name=name,
        source=mount.source,
        directory=mount.source_is == "directory",
        readonly=bool(options.flags & syscalls.MS_RDONLY),
        recursive=options.recursive,
        slave=options.slave,
    )


def _explain(guest: list[GuestMount], binds: list[Bind], left_out: list[str], shares: bool) -> tuple[str, ...]:
    sources = {bind.name: bind.source if shares else f"a copy of {bind.source}" for bind in binds}
    lines = []
    for mount in guest:
        if mount.type == "remount":
            continue
        flags = _words(mount.flags)
        what = sources.get(mount.source, mount.type)
        lines.append(f"mount: {mount.destination} is {what}{f', {flags}' if flags else ''}")
    lines += [f"mount: {destination} is the image's, as the engine's cannot be shared" for destination in left_out]
    return tuple(lines)


def _words(flags: int) -> str:
    names = ((1, "read-only"), (2, "nosuid"), (4, "nodev"), (8, "noexec"))
    return ", ".join(name for bit, name in names if flags & bit)


def unseen(spec: GuestSpec) -> tuple[str, ...]:
    """Say which mounts a guest without our init does not see, beside those of every container."""
    own = [
        mount.destination
        for mount in spec.mounts
        if mount.destination not in ENGINES and (mount.type == "bind" or {"bind", "rbind"} & set(mount.options))
    ]
    if not own:
        return ()
    return (f"mount: not seen by a guest of kind {spec.kind}: {', '.join(own)}",)


def spec_of(destination: str, type: str, source: str, options: tuple[str, ...], *, source_is: str = "") -> MountSpec:
    """Return a mount as planners see it, its destination made absolute and plain."""
    plain = posixpath.normpath("/" + destination.lstrip("/"))
    return MountSpec(destination=plain, type=type, source=source, options=options, source_is=source_is)
