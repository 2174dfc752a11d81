# SPDX-License-Identifier: Apache-2.0
"""Versions of all that takes part in running a container, for the report of ``runphi doctor``."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import anyio

from backends.configured import programs
from runphi_async.doctor import checkup
from runphi_async.version import VERSION

if TYPE_CHECKING:
    from runphi_async.config.schema import Config

#: Programs that answer to ``--version``, beside those the configuration names.
PROGRAMS: Final = (
    *("containerd", "ctr", "containerd-shim-runc-v2", "podman", "conmon", "crun", "docker", "dockerd", "crio"),
    *("jailhouse", "netavark", "gcc"),
)
#: Debian packages, for programs that do not tell their version and for what is no program.
PACKAGES: Final = (
    *("qemu-system-x86", "qemu-system-arm", "qemu-system-common", "qemu-system-xen", "virtiofsd", "containerd"),
    *("containerd.io", "runc", "crun", "podman", "conmon", "docker.io", "docker-ce", "docker-cli", "xen-utils-common"),
    *("xen-hypervisor-common", "busybox-static", "netavark", "aardvark-dns", "gcc", "python3", "systemd"),
)
#: Seconds that dpkg may take.
PATIENCE: Final = 10.0
XEN: Final = "/sys/hypervisor/version"


async def versions(config: Config) -> list[str]:
    """Return a line for each thing."""
    named = [*programs(config), config.real_runc() or "runc", *PROGRAMS]
    paths = {name: shutil.which(name, path=checkup.PATH) for name in dict.fromkeys(named)}
    said = await asyncio.gather(*(checkup.version(path) for path in paths.values()))
    lines = [
        f"runPHI async {VERSION}, Python {platform.python_version()}, {checkup.packages()}",
        f"Linux {platform.release()} {platform.version()} on {platform.machine()}, {_distribution()}",
    ]
    for (name, path), text in zip(paths.items(), said, strict=True):
        if path is not None:
            lines.append(f"{path}: {text or 'does not say its version'}")
        elif name not in PROGRAMS:
            lines.append(f"{name}: not there")
    lines += await anyio.to_thread.run_sync(_xen)
    return lines + await anyio.to_thread.run_sync(_packages)


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown distribution")
    except OSError:
        return "unknown distribution"


def _xen() -> list[str]:
    """Say which Xen we are on; ``xl`` itself does not tell without being dom0."""
    parts = []
    for name in ("major", "minor", "extra"):
        try:
            with open(os.path.join(XEN, name)) as file:
                parts.append(file.read(64).strip())
        except OSError:
            return []
    return [f"Xen {parts[0]}.{parts[1]}{parts[2]}"]


def _packages() -> list[str]:
    argv = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\\n", *PACKAGES]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [f"package {line.split(maxsplit=1)[1]}" for line in done.stdout.splitlines() if line.startswith("ii")]
