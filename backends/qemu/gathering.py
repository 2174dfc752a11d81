# SPDX-License-Identifier: Apache-2.0
"""What a plan for QEMU wants to know of this machine and of the image: the part of the generator that reads files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backends.guest import elf, nics
from backends.qemu.machine import HostFacts
from runphi_async.errors import PlanError
from runphi_async.host import nic
from runphi_async.partition import boot
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runphi_async.partition.spec import GuestSpec


def gather(
    spec: GuestSpec,
    *,
    accel: str,
    binaries: Mapping[str, str],
    kernel: str | None = None,
    initrd_path: str | None = None,
    qmp_fd: int | None = None,
    accel_reason: str = "",
) -> HostFacts:
    """Collect it (blocks)."""
    return HostFacts(
        accel=accel,
        accel_reason=accel_reason,
        arch=os.uname().machine,
        binaries=dict(binaries),
        online_cpus=tuple(sorted(os.sched_getaffinity(0))),
        image=elf.inspect(boot.boot_image(spec, kernel)),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        kernel=kernel,
        initrd=_read(initrd_path) if initrd_path is not None and spec.kind is GuestKind.LINUX else None,
        qmp_fd=qmp_fd,
        links=nics.look(spec.netns),
        no_taps=nic.obstacle() if spec.netns is not None else "",
    )


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise PlanError(f"cannot read the guest's RAM disk {path}: {exc.strerror}") from exc
