# SPDX-License-Identifier: Apache-2.0
"""What ``runphi doctor`` says of devices, limits and permissions, beside what ``doctor.py`` says of the kernel."""

from __future__ import annotations

import os
import resource
import stat
from typing import Final, NamedTuple

from backends.base import Finding, Level
from runphi_async.config.loading import DEFAULT_PATH, PATH_VARIABLE

KVM: Final = "/dev/kvm"
TUN: Final = "/dev/net/tun"
#: Descriptors below which a few dozen guests are too many: each takes about ten.
FEW_FILES: Final = 4096
#: What says in /proc/cpuinfo that a CPU can run guests itself, and the module that makes use of it.
_FLAGS: Final = {"vmx": "kvm_intel", "svm": "kvm_amd"}


class Devices(NamedTuple):
    """Devices and limits, as read.

    :ivar kvm, tun: why the device cannot be used; "" when it can.
    :ivar flag: the CPU's flag for virtualization, or "".
    :ivar config: mode and owner of the configuration file; None without one.
    """

    machine: str
    kvm: str
    tun: str
    flag: str
    files: int
    config_path: str
    config: tuple[int, int] | None


def examine() -> list[Finding]:
    """Read and judge (blocks)."""
    return judge(read())


def judge(devices: Devices) -> list[Finding]:
    """Say what the devices mean for guests."""
    return [_kvm(devices), *_tun(devices), _files(devices), *_config(devices)]


def _kvm(devices: Devices) -> Finding:
    if not devices.kvm:
        text = f"{KVM} can be opened; whether guests run well on it is proven by running one, see qemu"
        return Finding(Level.OK, "host", text)
    text = f"accelerator: none, QEMU emulates ({KVM}: {devices.kvm})"
    if devices.machine != "x86_64":
        return Finding(Level.NOTE, "host", text, "modprobe kvm, on a kernel that was started in EL2")
    if devices.flag:
        return Finding(Level.NOTE, "host", text, f"modprobe {_FLAGS[devices.flag]}; see who may open {KVM}")
    mend = "switch virtualization on in the firmware, or nested virtualization in the host of this machine"
    return Finding(Level.NOTE, "host", text, mend)


def _tun(devices: Devices) -> list[Finding]:
    if not devices.tun:
        return []
    return [Finding(Level.NOTE, "host", f"no networks for QEMU guests ({TUN}: {devices.tun})", "modprobe tun")]


def _files(devices: Devices) -> Finding:
    text = f"{devices.files} open files allowed"
    if devices.files < FEW_FILES:
        mend = "start the supervisor with systemd (LimitNOFILE=), or the engine with a larger limit"
        return Finding(Level.WARNING, "host", f"only {text}: enough for few guests", mend)
    return Finding(Level.OK, "host", text)


def _config(devices: Devices) -> list[Finding]:
    if devices.config is None:
        text = f"no configuration at {devices.config_path}: the defaults hold"
        return [Finding(Level.OK, "runphi", text)]
    mode, owner = devices.config
    what = f"configuration {devices.config_path}"
    if mode & 0o022 or owner != 0:
        mend = f"chown root {devices.config_path}; chmod go-w {devices.config_path}"
        return [Finding(Level.ERROR, "runphi", f"{what} can be changed by others than root", mend)]
    return [Finding(Level.OK, "runphi", what)]


def read() -> Devices:
    """Look at the machine."""
    path = os.environ.get(PATH_VARIABLE) or DEFAULT_PATH
    try:
        info = os.stat(path)
        config = (stat.S_IMODE(info.st_mode), info.st_uid)
    except OSError:
        config = None
    return Devices(
        machine=os.uname().machine,
        kvm=_problem(KVM),
        tun=_problem(TUN),
        flag=_flag(),
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        config_path=path,
        config=config,
    )


def _problem(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return (exc.strerror or str(exc)).lower()
    return ""


def _flag() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            words = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return ""
    return next((flag for flag in _FLAGS if flag in words), "")
