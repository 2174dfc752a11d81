# SPDX-License-Identifier: Apache-2.0
"""What a container asks of Xen alone: annotations ``org.runphi.xen.NAME``, decoded once.

Whatever reaches beyond the domain (a bridge, a device, a disk of the host) must also be allowed by the configuration's
table ``[xen]``; the halves check that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from backends.xen import fields
from runphi_async import digits
from runphi_async.errors import PlanError
from runphi_async.partition.channels import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: in front of the names, in ``Wishes.own`` of a partition and, behind ``org.runphi.``, among the annotations
PREFIX: Final = "xen."
#: What each annotation means.
WISHES: Final = {
    "pool": "cpupool to run in",
    "weight": "share of the CPU against other domains, 1 to 65535 (256 is usual)",
    "cap": "most CPU it may use, in percent of one CPU; 0 = no limit",
    "period": "microseconds of an RTDS period, for each vCPU",
    "budget": "microseconds of CPU in each RTDS period, for each vCPU",
    "vif": "network devices: xl's vif specifications, separated by semicolons",
    "disk": "disks: xl's disk specifications, separated by semicolons",
    "p9": "directories shared by 9pfs: xl's p9 specifications, separated by semicolons",
    "pci": "PCI devices to hand over, separated by semicolons",
    "channel": "names of extra PV channels, separated by semicolons",
    "iomem": "page ranges of device memory, START,COUNT in hexadecimal, separated by semicolons",
    "irqs": "interrupts to hand over, separated by semicolons",
    "dtdev": "device tree nodes to hand over, separated by semicolons",
    "static-shm": "memory shared with other guests: xl's static_shm specifications, separated by semicolons",
    "rootfs": "how a Linux guest gets the image: ramdisk or disk",
}
#: how a Linux guest may get the image
RAMDISK: Final = "ramdisk"
DISK: Final = "disk"
_WEIGHT_MAX: Final = 65535
#: What libxl takes, in microseconds.
PERIOD_MIN: Final = 10
PERIOD_MAX: Final = 10_000_000
#: How a device of the host is written; a node of a device tree may hold commas.
_DEVICES: Final = {
    "pci": re.compile(r"(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.IGNORECASE),
    "iomem": re.compile(r"[0-9a-f]+,[0-9a-f]+(?:@[0-9a-f]+)?", re.IGNORECASE),
    "irqs": re.compile(r"[0-9]{1,5}"),
    "dtdev": re.compile(r"/[\w,.+@/-]{1,500}", re.ASCII),
}

Fields = dict[str, str]


class XenWishes(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What is asked for; None and (): nothing is.

    :ivar pool: name of a cpupool.
    :ivar cap: percent of one CPU.
    :ivar vif: cards, disks, shared directories and memory field by field, each what ``fields`` lets it be.
    :ivar pci: devices, as xl.cfg has them.
    :ivar channel: names of extra PV channels.
    :ivar rootfs: ``RAMDISK`` or ``DISK``.
    """

    pool: str | None = None
    weight: int | None = None
    cap: int | None = None
    period: int | None = None
    budget: int | None = None
    vif: tuple[Fields, ...] = ()
    disk: tuple[Fields, ...] = ()
    p9: tuple[Fields, ...] = ()
    static_shm: tuple[Fields, ...] = ()
    pci: tuple[str, ...] = ()
    iomem: tuple[str, ...] = ()
    irqs: tuple[str, ...] = ()
    dtdev: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    rootfs: str | None = None


def read(own: Mapping[str, str]) -> XenWishes:
    """Decode them.

    :param own: ``Wishes.own`` of a partition.
    :raises PlanError: there is no such setting, which xl would ignore in silence and we must not; or it says what it
        cannot.
    """
    found: dict[str, Any] = {}
    for key, text in own.items():
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        if name not in WISHES:
            known = ", ".join(f"org.runphi.{PREFIX}{word}" for word in WISHES)
            raise PlanError(
                f"cannot understand annotation org.runphi.{key}: there is no such setting", f"known: {known}"
            )
        if text:
            found[name.replace("-", "_")] = _READERS[name](text)
    return XenWishes(**found)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _number(name: str, least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = digits.whole(text, most)
        if number is None or number < least:
            raise PlanError(f"cannot set {name} {text!r}: not a number from {least} to {most}")
        return number

    return read


def _named(what: str, form: fields.Form, needed: str) -> Callable[[str], tuple[Fields, ...]]:
    def read(text: str) -> tuple[Fields, ...]:
        found = tuple(fields.parse(what, part, form) for part in _parts(text))
        for part, said in zip(_parts(text), found, strict=True):
            if needed and needed not in said:
                raise PlanError(f"cannot understand {part!r}: it says no {needed}=")
        return found

    return read


def _devices(name: str) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        for device in _parts(text):
            if not _DEVICES[name].fullmatch(device):
                raise PlanError(f"cannot hand over {name} {device!r}: it is not written as xl.cfg has it")
        return _parts(text)

    return read


def _disks(text: str) -> tuple[Fields, ...]:
    return tuple(map(fields.disk, _parts(text)))


def _channels(text: str) -> tuple[str, ...]:
    """Return names of channels, each of which is a named stream."""
    for name in _parts(text):
        try:
            check_name(name)
        except ValueError as exc:
            raise PlanError(f"cannot make a channel: {exc}") from None
    return _parts(text)


def _rootfs(text: str) -> str:
    if text not in (RAMDISK, DISK):
        raise PlanError(f"cannot hand over the rootfs by {text!r}", f"one of: {RAMDISK}, {DISK}")
    return text


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "pool": str,
    "weight": _number("weight", 1, _WEIGHT_MAX),
    "cap": _number("cap", 0, digits.LARGEST),
    "period": _number("period", PERIOD_MIN, PERIOD_MAX),
    "budget": _number("budget", PERIOD_MIN, PERIOD_MAX),
    "vif": _named("network device", fields.VIF, ""),
    "disk": _disks,
    "p9": _named("directory", fields.P9, "path"),
    "static-shm": _named("memory", fields.STATIC_SHM, "id"),
    "pci": _devices("pci"),
    "iomem": _devices("iomem"),
    "irqs": _devices("irqs"),
    "dtdev": _devices("dtdev"),
    "channel": _channels,
    "rootfs": _rootfs,
}
