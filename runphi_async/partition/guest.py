# SPDX-License-Identifier: Apache-2.0
"""From what a container asked to what a backend can plan: ``create`` calls :func:`guest_spec` between the
two.

This is the one place where a path that somebody wrote becomes a path of the host. Files of the image are
resolved inside its rootfs and checked to be plain files there, so no backend can be led outside by a link.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from runphi_async import units
from runphi_async.errors import SpecError
from runphi_async.host import inroot
from runphi_async.partition import mounts, wishes
from runphi_async.partition.request import CONTROL, HOST
from runphi_async.partition.spec import GuestKind, GuestSpec, MountSpec, ProcessSpec, Rlimit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.oci.spec import Mount, Process, Spec
    from runphi_async.partition.request import PartitionRequest


#: more CPUs than Linux knows. Source: arch/x86/Kconfig, NR_CPUS
CPUS_MAX: Final = 8192


class PathConfig(Protocol):
    """The part of the configuration that is asked here."""

    @property
    def host_paths(self) -> Sequence[str]:
        """Folders or files of the host a container may name with ``host:``."""


def guest_spec(request: PartitionRequest, spec: Spec, id: str, bundle: str, config: PathConfig) -> GuestSpec:
    """Resolve the request against the bundle; every path of the result is a regular file of the host.

    :raises SpecError: when a file is missing, is no plain file, or may not be used.
    """
    rootfs = spec.rootfs(os.path.abspath(bundle))
    if CONTROL.search(spec.hostname):
        raise SpecError("cannot use the bundle: config.json: $.hostname: there is a control character in it")
    if request.kind is GuestKind.LINUX and spec.process is None:
        raise SpecError("cannot use the bundle: config.json has no process to run in the Linux guest")

    def path(what: str, name: str | None) -> str | None:
        return None if name is None else resolve_image(what, name, rootfs, config.host_paths)

    resources = spec.linux.resources if spec.linux else None
    memory = resources.memory if resources else None
    cpu = resources.cpu if resources else None
    return GuestSpec(
        **wishes.common(request),
        id=id,
        kind=request.kind,
        rootfs=rootfs,
        readonly_root=spec.root.readonly,
        inmate=path("inmate", request.inmate),
        kernel=path("kernel", request.kernel),
        ramdisk=path("ramdisk", request.ramdisk),
        dtb=path("dtb", request.dtb),
        memory_limit=request.memory or (_limit(memory.limit) if memory else None),
        cpu_quota=_limit(cpu.quota) if cpu else None,
        cpu_period=_limit(cpu.period) if cpu else None,
        cpuset=parse_cpuset(cpu.cpus) if cpu else (),
        devices=tuple(device.path for device in spec.linux.devices if device.path) if spec.linux else (),
        netns=network(spec),
        mounts=tuple(_mount(mount, os.path.abspath(bundle)) for mount in spec.mounts),
        process=_process(spec.process, spec.hostname) if spec.process else None,
    )


def network(spec: Spec) -> str | None:
    """Return the container's network namespace: a path, "" for a new one, None for the host's."""
    for namespace in spec.linux.namespaces if spec.linux is not None else ():
        if namespace.type == "network":
            if namespace.path and not os.path.isabs(namespace.path):
                raise SpecError(
                    f"cannot join network namespace {units.shown(namespace.path)}: it is no absolute path",
                    "linux.namespaces in config.json names it",
                )
            return namespace.path
    return None


def _mount(mount: Mount, bundle: str) -> MountSpec:
    options = tuple(mount.options)
    if mount.type != "bind" and not {"bind", "rbind"} & set(options):
        return mounts.spec_of(mount.destination, mount.type, mount.source, options)
    source = os.path.normpath(os.path.join(bundle, mount.source))
    try:
        mode = os.stat(source).st_mode
    except OSError:
        return mounts.spec_of(mount.destination, "bind", source, options)
    found = mounts.spec_of(mount.destination, "bind", source, options, source_is=_what(mode))
    if found.destination != mounts.SHM:
        return found
    size = os.statvfs(source)
    return msgspec.structs.replace(found, size=size.f_blocks * size.f_frsize)


def _what(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "directory"), (stat.S_ISREG, "file"), (stat.S_ISSOCK, "socket"), (stat.S_ISFIFO, "FIFO"),
    )  # fmt: skip
    return next((name for matches, name in kinds if matches(mode)), "device")


def resolve_image(what: str, name: str, rootfs: str, host_paths: Sequence[str]) -> str:
    """The host path of one file the container named.

    :param what: the file's role, for the message.
    """
    if name.startswith(HOST):
        path = _host_file(what, name.removeprefix(HOST), host_paths)
    else:
        path = inroot.resolve(rootfs, name)
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        reason = exc.strerror.lower() if exc.strerror else str(exc)
        raise SpecError(f"cannot use {what} {name}: {reason}") from exc
    if not stat.S_ISREG(mode):
        raise SpecError(f"cannot use {what} {name}: not a regular file")
    return path


def parse_cpuset(text: str) -> tuple[int, ...]:
    """CPU numbers of a list such as ``0-2,4``, ascending, each once."""
    try:
        cpus = units.parse_numbers(text)
    except ValueError as exc:
        raise SpecError(f"cannot read linux.resources.cpu.cpus {units.shown(text)}: {exc}") from None
    if cpus and cpus[-1] >= CPUS_MAX:
        raise SpecError(f"cannot read linux.resources.cpu.cpus {units.shown(text)}: there is no CPU {cpus[-1]}")
    return cpus


def _host_file(what: str, name: str, host_paths: Sequence[str]) -> str:
    real = os.path.realpath(name)
    for allowed in host_paths:
        root = os.path.realpath(allowed)
        if real == root or real.startswith(root.rstrip("/") + "/"):
            return real
    raise SpecError(
        f"cannot use {what} {HOST}{name}: the configuration allows no such host file",
        "list its folder under host_paths in the configuration",
    )


def _limit(value: int | None) -> int | None:
    """Engines write -1 or 0 for "no limit"."""
    return value if value is not None and value > 0 else None


def _process(process: Process, hostname: str) -> ProcessSpec:
    user, size = process.user, process.console_size
    return ProcessSpec(
        args=tuple(process.args),
        env=tuple(process.env),
        cwd=process.cwd or "/",
        uid=user.uid,
        gid=user.gid,
        additional_gids=tuple(user.additional_gids),
        hostname=hostname,
        terminal=process.terminal,
        rows=size.height if size else 0,
        cols=size.width if size else 0,
        umask=user.umask,
        rlimits=tuple(Rlimit(limit.type, limit.soft, limit.hard) for limit in process.rlimits),
    )
