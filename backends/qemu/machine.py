# SPDX-License-Identifier: Apache-2.0
"""What the six QEMU halves share: facts about the host, settings, the chosen machine and the quoting of
option values.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from runphi_async.host.nic import Link
from runphi_async.partition.image import ImageFacts

if TYPE_CHECKING:
    from runphi_async.partition.mem import PerKind

#: start of RAM on aarch64's ``virt``; x86 RAM starts at 0
VIRT_RAM_BASE: Final = 0x4000_0000
#: where ``virt`` puts a flat image, 512 KiB above the start of RAM
VIRT_LOAD_ADDRESS: Final = 0x4008_0000
#: ``virt`` keeps the first MiB of RAM for its device tree when the image is loaded raw
VIRT_DTB_END: Final = 0x4010_0000


class Machine(StrEnum):
    """The QEMU machine types we plan for."""

    #: x86 without PCI and without a BIOS' slowness: the fastest to its first instruction
    MICROVM = "microvm"
    #: x86 with everything a stranger's kernel may want
    Q35 = "q35"
    #: the same of an older make: fewer devices to look for, so Linux in software boots sooner
    PC = "pc"
    #: arm64
    VIRT = "virt"


class HostFacts(msgspec.Struct, frozen=True):
    """What is true of this machine, gathered before a plan is made."""

    #: "kvm" or "tcg": what guests of the host's own architecture run on
    accel: str
    #: the host's architecture
    arch: str
    #: QEMU by guest architecture
    binaries: dict[str, str]
    online_cpus: tuple[int, ...]
    #: header of the image the guest starts with (``boot_image``)
    image: ImageFacts
    page_size: int = 4096
    #: the configured guest kernel
    kernel: str | None = None
    #: contents of the RAM disk with our init; each container's settings are appended to it
    initrd: bytes | None = None
    #: the listening QMP socket's descriptor in QEMU; None = QEMU makes the socket itself
    qmp_fd: int | None = None
    #: interfaces in the container's network namespace so far; None = it uses the host's
    links: tuple[Link, ...] | None = None
    #: why no network device can be made here, "" when it can
    no_taps: str = ""
    #: why it is this accelerator
    accel_reason: str = ""


class PlanConfig(Protocol):
    """What a plan asks of the ``[qemu]`` table of the configuration."""

    @property
    def memory_default(self) -> PerKind:
        """RAM of a guest whose container has no memory limit."""

    @property
    def memory_minimum(self) -> PerKind:
        """Least RAM of a guest."""


def value(text: str) -> str:
    """Quote a value inside a QEMU option list: a comma would start the next option."""
    return text.replace(",", ",,")


def accel_for(facts: HostFacts, arch: str) -> str:
    """KVM runs guests of the host's own architecture only."""
    return facts.accel if arch == facts.arch else "tcg"
