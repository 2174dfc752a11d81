# SPDX-License-Identifier: Apache-2.0
"""What a domain will be: pure data, which ``generator.py`` makes, and the xl.cfg that is written of it.

What depends on the record directory, which exists only after the plan, and the domain's uuid are added by
:func:`configuration`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import msgspec

from backends import recalled
from backends.xen import xlcfg
from backends.xen.boot import GUEST_INITRD, IMAGE
from backends.xen.comm import keys as channel_keys
from backends.xen.dev import ROOT_DISK
from runphi_async.partition.spec import GuestKind, PartitionPlan

if TYPE_CHECKING:
    from backends.xen.xlcfg import Value

CONFIG: Final = "xl.cfg"


class XenPlan(PartitionPlan, frozen=True, omit_defaults=True, kw_only=True):
    """A partition on Xen."""

    #: what xl.cfg says, but for what is known only when the domain is made
    keys: dict[str, str | int | tuple[str, ...]]
    #: of the container
    id: str
    #: the root filesystem a Linux guest gets, and whether it gets it as "ramdisk" or "disk"
    rootfs: str | None = None
    rootfs_by: str | None = None
    #: where that disk is made; None: there is none
    disk_dir: str | None = None
    #: our init's RAM disk with this container's settings
    initrd: bytes = b""

    def kept(self) -> Self:
        """Return what stays of it in the record: the RAM disk lies there as a file."""
        return msgspec.structs.replace(super().kept(), initrd=b"")


def domain_name(container_id: str, uuid: str) -> str:
    """Return the domain's name: the id for people, and something that keeps two roots' ids and bare numbers apart."""
    return f"{container_id}.{uuid[:8]}"


def configuration(plan: XenPlan, directory: str, uuid: str, disk: str | None = None) -> bytes:
    """Return the xl.cfg of a guest whose record is in ``directory``.

    :param uuid: finds the domain also when its making is cut short.
    :param disk: file with the root filesystem.
    """
    own: dict[str, Value] = {"name": domain_name(plan.id, uuid), "uuid": uuid}
    entries: dict[str, Value] = {**own, **plan.keys, **channel_keys(plan.channels, directory)}
    for file in plan.handed:
        entries["kernel" if file.name == IMAGE else "ramdisk"] = f"{directory}/{file.name}"
    if plan.initrd:
        entries["ramdisk"] = f"{directory}/{GUEST_INITRD}"
    if disk is not None:
        others = entries.get("disk", ())
        assert isinstance(others, tuple)
        entries["disk"] = (f"{disk},raw,{ROOT_DISK},rw", *others)
    return xlcfg.render(entries)


class _Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What was kept of a guest before its plan was (records of version 2).

    :ivar disk_dir: where the disk with its root filesystem was made.
    :ivar net: it has the container's interfaces.
    """

    kind: GuestKind
    disk_dir: str | None = None
    net: bool = False


_decoder = msgspec.json.Decoder(XenPlan)
_memory = msgspec.json.Decoder(_Memory)


def recall(kept: msgspec.Raw) -> XenPlan:
    """Return the plan that a record keeps, as far as a guest's later life asks for it.

    :raises msgspec.ValidationError: it is damaged.
    """
    return recalled.plan_of(kept, _decoder, _plan_of)


def _plan_of(memory: bytes) -> XenPlan:
    """Its one address is empty: only whether there are some counts by now."""
    known = _memory.decode(memory)
    return XenPlan(
        backend="xen",
        kind=known.kind,
        arch="",
        memory_bytes=0,
        vcpus=0,
        keys={},
        id="",
        disk_dir=known.disk_dir,
        macs=("",) if known.net else (),
    )
