# SPDX-License-Identifier: Apache-2.0
"""What a container asks of a partition, and what was planned for it: pure data.

The partition generator makes a :class:`GuestSpec` of the bundle, a backend's ``plan()`` makes a
:class:`PartitionPlan` of that. Nothing here does I/O, so plans can be compared, stored in a record and
tested by value.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

import msgspec

from runphi_async.partition.channels import Channel
from runphi_async.partition.image import Handed
from runphi_async.partition.wishes import Wishes


class GuestKind(StrEnum):
    """What runs inside the partition."""

    #: a bare-metal program or RTOS image
    INMATE = "inmate"
    #: our guest kernel, the image's rootfs and our init, which runs the container's process
    LINUX = "linux"
    #: a kernel and a RAM disk of the image with an init of their own; console on the serial port
    KERNEL = "kernel"


class Rlimit(msgspec.Struct, frozen=True, omit_defaults=True):
    """One resource limit of the process, as in config.json (``RLIMIT_NOFILE`` …)."""

    type: str
    soft: int
    hard: int


class ProcessSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process a Linux guest runs."""

    args: tuple[str, ...]
    #: ``NAME=value``, in the order of config.json
    env: tuple[str, ...] = ()
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    hostname: str = ""
    terminal: bool = False
    #: 0 = the engine said nothing of the terminal's size
    rows: int = 0
    cols: int = 0
    umask: int | None = None
    rlimits: tuple[Rlimit, ...] = ()


class MountSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One mount of config.json, with what its source is on the host."""

    #: absolute and without ``..``, seen from the container's root
    destination: str
    type: str = ""
    #: of a bind mount: an absolute path of the host
    source: str = ""
    options: tuple[str, ...] = ()
    #: "directory", "file", or what else a bind mount's source is; "": there is none
    source_is: str = ""
    #: bytes the source's file system holds; asked for where shared memory is bound
    size: int = 0


class Bind(msgspec.Struct, frozen=True, omit_defaults=True):
    """A directory or file of the host that is shared with the guest under a name."""

    name: str
    source: str
    directory: bool
    readonly: bool = False
    #: with what is mounted below
    recursive: bool = False
    #: and with what will be
    slave: bool = False


class GuestSpec(Wishes, frozen=True, omit_defaults=True, kw_only=True):
    """What one container asks of a partition; paths are host paths, already resolved inside the rootfs."""

    id: str
    kind: GuestKind
    rootfs: str
    readonly_root: bool = False
    inmate: str | None = None
    kernel: str | None = None
    ramdisk: str | None = None
    dtb: str | None = None
    #: bytes; None = no limit asked for
    memory_limit: int | None = None
    #: microseconds of CPU a period; None = no limit asked for
    cpu_quota: int | None = None
    cpu_period: int | None = None
    #: host CPUs the container may use; empty = all
    cpuset: tuple[int, ...] = ()
    #: device nodes the container lists, as the host names them
    devices: tuple[str, ...] = ()
    #: its network namespace: a path, "" = one of its own that is yet to be made, None = the host's
    netns: str | None = None
    mounts: tuple[MountSpec, ...] = ()
    process: ProcessSpec | None = None


class PartitionPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the partition will be made: everything a backend needs to create the guest, decided beforehand.

    This is what the runtime reads. A hypervisor whose guests are more than a command line has a type of its own below
    this one, such as ``backends.jailhouse.plan.JailhousePlan``.
    """

    backend: str
    kind: GuestKind
    arch: str
    memory_bytes: int
    vcpus: int
    #: the VMM's command line; its working directory is the record directory; empty = no process for each guest
    argv: tuple[str, ...] = ()
    #: the host CPU of each vCPU; empty = unpinned
    pins: tuple[int, ...] = ()
    #: small files to write into the record directory, by relative name
    files: dict[str, bytes] = {}
    #: files of the image to copy there
    handed: tuple[Handed, ...] = ()
    #: the container's network namespace, as in GuestSpec
    netns: str | None = None
    #: MAC address of each interface of the guest
    macs: tuple[str, ...] = ()
    #: named streams; the memory of those the backend makes is found by ``consoles.sharedmem.shmfiles``
    channels: tuple[Channel, ...] = ()
    console: str | None = None
    #: one sentence a decision, for people
    explain: tuple[str, ...] = ()

    @property
    def console_channel(self) -> Channel | None:
        """The channel that is the console, None where that is the FIFO pair."""
        return next((channel for channel in self.channels if channel.name == self.console), None)

    def kept(self) -> Self:
        """Return what stays of it in the record, for whoever takes the guest over: files lie there by themselves."""
        return msgspec.structs.replace(self, files={}, explain=())

    def conf(self) -> tuple[str, ...]:
        """Return lines for ``config<name>.conf`` behind those that every plan has; see ``conf.py``."""
        return ()
