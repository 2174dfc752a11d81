# SPDX-License-Identifier: Apache-2.0
"""The image's own wish: ``/boot/config.json`` in its rootfs, in the format of the original runPHI.

``request.py`` takes it as the last of its three layers. Known keys are strictly typed, because a number
where a path belongs is a mistake somebody wants to hear about; unknown keys are tolerated, because other
runtimes put theirs here too."""

from __future__ import annotations

import msgspec

from runphi_async.errors import SpecError
from runphi_async.oci.spec import locate, refuse_odd

#: where the file lies inside the rootfs
BOOT_CONFIG = "/boot/config.json"


class BootConfig(msgspec.Struct, frozen=True):
    """``/boot/config.json``; an empty string means the same as a missing key."""

    #: "linux" = ``inmate`` or ``kernel`` is a Linux kernel; anything else ("zephyr" …) = bare metal
    os_var: str = ""
    inmate: str = ""
    #: where a flat image wants to lie, decimal or 0x…
    starting_vaddress: str | int = ""
    kernel: str = ""
    ramdisk: str = ""
    initrd: str = ""
    cpio: str = ""
    dtb: str = ""
    net: str = ""
    netconf: str = ""
    #: the image wants a remote processing unit (a Cortex-R core of the board)
    rpu_req: bool = False
    #: named streams: name → ``shmem,size=64KiB``
    comm: dict[str, str] = {}

    @property
    def linux(self) -> bool:
        """Whether the image says it is a Linux system."""
        return self.os_var.lower() == "linux"

    @property
    def any_ramdisk(self) -> str:
        """The RAM disk, whichever of its three names the image used."""
        return self.ramdisk or self.initrd or self.cpio


def parse(data: bytes) -> BootConfig:
    """Read the file's bytes, or raise :class:`SpecError` that says where it is wrong."""
    try:
        found = msgspec.json.decode(data, type=BootConfig)
        refuse_odd(data, found, f"{BOOT_CONFIG} of the image")
        return found
    except msgspec.ValidationError as exc:
        raise _located(exc) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        hint = "it must hold one JSON object"
        raise SpecError(f"cannot read {BOOT_CONFIG} of the image: {exc}", hint) from exc


def _located(exc: msgspec.ValidationError) -> SpecError:
    place, problem = locate(exc)
    return SpecError(f"cannot read {BOOT_CONFIG} of the image: {place}: {problem}")
