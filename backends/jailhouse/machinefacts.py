# SPDX-License-Identifier: Apache-2.0
"""Reads what ``ready`` judges: module, firmware, system configuration, /proc and CPUs. All of it blocks, none of it
asks the hypervisor.

The machine's files are looked for beside the configured sysfs tree, so a fake board has its own.
"""

from __future__ import annotations

import os
import platform
import re
from typing import TYPE_CHECKING, Final

from backends.jailhouse import codec, sysfs
from backends.jailhouse.model import System
from backends.jailhouse.ready import Machine
from runphi_async.board import loading
from runphi_async.board.ranges import Range
from runphi_async.errors import CellError

if TYPE_CHECKING:
    from backends.jailhouse.settings import Jailhouse
    from backends.jailhouse.sysfs import View

#: Where the kernel looks for firmware, RELEASE standing for its own. Source: drivers/base/firmware_loader/main.c.
_FIRMWARE: Final = (
    "lib/firmware/updates/RELEASE",
    "lib/firmware/updates",
    "lib/firmware/RELEASE",
    "lib/firmware",
)
_CUSTOM: Final = "sys/module/firmware_class/parameters/path"
_IMAGE: Final = re.compile(r"jailhouse.*\.bin")
_REGION: Final = re.compile(r"\s*([0-9a-f]+)-([0-9a-f]+) : (.*)", re.IGNORECASE)


def read(settings: Jailhouse, view: View, system_path: str = "", program: str = "") -> Machine:
    """Read everything.

    :param view: what sysfs shows.
    :param system_path: the system configuration; default: the configured one.
    :param program: the tool that will be called, "" when there is none.
    """
    root = prefix(settings.sysfs)
    release = os.uname().release
    path = system_path or settings.system_config
    system, problem = _system(path)
    return Machine(
        uid=os.geteuid(),
        tool=program,
        machine=_machine(root),
        kernel=release,
        view=view,
        module=_module(root, release),
        device=_device(f"{root}/dev/jailhouse") if view.module else "",
        firmware=_firmware(root, release),
        wanted=_wanted(root),
        system_path=path,
        system=system,
        problem=problem,
        iomem=_iomem(f"{root}/proc/iomem"),
        cmdline=_text(f"{root}/proc/cmdline").strip(),
        online=online(settings.sysfs),
        gic=_gic(_text(f"{root}/proc/interrupts")),
        iommus=_listed(f"{root}/sys/class/iommu"),
        board=loading.load(settings.board) if settings.board else None,
    )


def prefix(directory: str) -> str:
    """Return what stands before the machine's files: "" for this machine's own, a fake board's directory for its."""
    return directory.rstrip("/").removesuffix(sysfs.DIRECTORY)


def online(directory: str) -> tuple[int, ...] | None:
    """Return the CPUs that are online, None when nobody says."""
    text = _text(f"{prefix(directory)}/sys/devices/system/cpu/online")
    return sysfs.numbers(text) if text else None


def _text(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _listed(path: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(path)))
    except OSError:
        return ()


def _machine(root: str) -> str:
    """Return the machine's architecture; a fake board says it in a file."""
    return _text(f"{root}/proc/sys/kernel/arch").strip() or platform.machine()


def _module(root: str, release: str) -> bool | None:
    names = _text(f"{root}/lib/modules/{release}/modules.dep")
    return re.search(r"(^|/)jailhouse\.ko[^:/]*:", names, re.MULTILINE) is not None if names else None


def _device(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


def _firmware(root: str, release: str) -> tuple[str, ...]:
    folders = [f"{root}/{folder.replace('RELEASE', release)}" for folder in _FIRMWARE]
    if custom := _text(f"{root}/{_CUSTOM}").strip():
        folders.insert(0, custom)
    return tuple(sorted({name for folder in folders for name in _listed(folder) if _IMAGE.fullmatch(name)}))


def _wanted(root: str) -> str:
    """Return the image that the driver asks for: x86 has one for each vendor's virtualization."""
    flags = next((line for line in _text(f"{root}/proc/cpuinfo").splitlines() if line.startswith("flags")), "").split()
    if "vmx" in flags:
        return "jailhouse-intel.bin"
    return "jailhouse-amd.bin" if "svm" in flags else "jailhouse.bin"


def _system(path: str) -> tuple[System | None, str]:
    if not path:
        return None, ""
    try:
        with open(path, "rb") as file:
            config = codec.decode(file.read())
    except OSError as exc:
        return None, f"{path} cannot be read: {exc.strerror}"
    except CellError as exc:
        return None, f"{path}: {exc.msg}"
    if not isinstance(config, System):
        return None, f"{path} is the configuration of cell '{config.name}'"
    return config, ""


def _iomem(path: str) -> tuple[tuple[Range, str], ...] | None:
    """Return the regions; None without the file, or when it shows zeros because its reader is not root."""
    found = []
    for line in _text(path).splitlines():
        match = _REGION.fullmatch(line)
        if match is not None:
            found.append((Range(int(match[1], 16), int(match[2], 16) + 1), match[3]))
    return tuple(found) if any(part.size > 1 for part, _ in found) else None


def _gic(interrupts: str) -> int | None:
    match = re.search(r"\bGICv([234])\b", interrupts)
    return int(match[1]) if match is not None else None
