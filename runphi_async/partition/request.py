# SPDX-License-Identifier: Apache-2.0
"""Does a container ask for a partition, and for which? ``create`` calls :func:`request` before anything else.

Three layers may ask, and the first that says what to boot decides:

1. annotations ``org.runphi.*`` (:data:`ANNOTATIONS`);
2. the process's environment: ``INMATE=``, ``LINUX=``, ``KERNEL=`` and ``RAMDISK=``;
3. ``/boot/config.json`` of the image (``bootconfig.py``).

What to boot: an inmate wins over ``linux``, and ``linux`` over a bare kernel or RAM disk. ``linux``
together with a kernel is still a Linux guest on the image's rootfs, only with that kernel. Annotations may
add details (memory, vcpus, command line …) to what a lower layer asks for; lower layers never mix with each
other. Annotations alone, without a word on what to boot, mean the image's rootfs as a Linux guest.
``org.runphi.backend=runc`` takes any container out of this.

Paths name files of the image and must be absolute. ``host:/path`` names a file of the host: annotations and
environment may say so when the file's real path lies below one of the configuration's ``host_paths``; an
image's config.json may not."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

from runphi_async import units
from runphi_async.errors import SpecError
from runphi_async.partition import bootconfig, channels, logplan, wishes
from runphi_async.partition.logplan import LogOrder
from runphi_async.partition.rules import check_annotation
from runphi_async.partition.spec import GuestKind
from runphi_async.partition.wishes import Wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from runphi_async.oci.spec import Spec
    from runphi_async.partition.bootconfig import BootConfig
    from runphi_async.partition.channels import Channel

PREFIX: Final = "org.runphi."
HOST: Final = "host:"
#: what follows is the name of a rule for the console (runphi_async/terminals/watching.py)
RULE: Final = "rule."
#: the backend names that mean "no partition, please"; `docker` is what the original calls it
PASS_THROUGH: Final = ("runc", "docker")

#: what each annotation means; the name follows :data:`PREFIX`
ANNOTATIONS: Final = {
    "backend": "the hypervisor: qemu or xen; runc (or docker) = no partition",
    "arch": "the guest's architecture: x86_64 or aarch64",
    "inmate": "bare-metal or RTOS image",
    "linux": "1 = run the container's process on a guest kernel",
    "kernel": "guest kernel",
    "ramdisk": "initial RAM disk",
    "dtb": "device tree",
    "cmdline": "command line of the guest",
    "load-address": "where a flat image is loaded, 0x…",
    "memory": "guest RAM such as 64M, instead of the memory limit",
    "machine": "QEMU's machine type: microvm, q35, pc or virt; Xen's kind of guest: pv, pvh or hvm",
    "vcpus": "number of virtual CPUs, instead of the CPU limit",
    "log": "what is logged: raw, cri, json-file, timed with options, or none",
    "console": "channel:NAME = this channel is the console",
    "net": "yes or no; for a cell also the name of a shared memory device of the board",
    "rpu": "1 = run the image on a remote processor of the board",
    "colors": "cache colours of a cell's memory, such as 0-3",
    "console-port": "where a cell prints: virtual, none, or the name of a UART or shared memory device of the board",
}
#: ``org.runphi.channel.<name>``: a named stream beside the console
CHANNEL: Final = "channel."

#: engines start these to hold a pod's namespaces; they never run a workload
_PAUSE: Final = {
    "io.kubernetes.cri.container-type": "sandbox",
    "io.kubernetes.cri-o.ContainerType": "sandbox",
    "io.podman.annotations.infra": "true",
}

_ARCHES: Final = {
    "x86_64": "x86_64",
    "x86-64": "x86_64",
    "amd64": "x86_64",
    "aarch64": "aarch64",
    "arm64": "aarch64",
}
MAX_VCPUS: Final = 255
#: C0, DEL, C1, and the separators that some readers take for the end of a line
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class PartitionRequest(Wishes, frozen=True, omit_defaults=True, kw_only=True):
    """What the container asked for: paths are still those of the image."""

    kind: GuestKind
    #: what asked: "annotation", "environment" or "/boot/config.json"
    source: str
    backend: str | None = None
    inmate: str | None = None
    kernel: str | None = None
    ramdisk: str | None = None
    dtb: str | None = None
    #: bytes
    memory: int | None = None
    #: None: as the configuration says; empty: nothing is logged
    log: tuple[LogOrder, ...] | None = None


def no_boot_config() -> None:
    """Return nothing: the image has no ``/boot/config.json``."""


def request(
    spec: Spec, boot_config: Callable[[], BootConfig | None] = no_boot_config, backends: Collection[str] = ()
) -> PartitionRequest | None:
    """Decide whether the container becomes a partition; None = it belongs to runc.

    :param boot_config: returns ``/boot/config.json`` of the image, None when it has none; asked only where that still
        matters, which spares a look into the rootfs.
    :param backends: those with annotations of their own, ``org.runphi.BACKEND.NAME``, which they decode themselves.
    :raises SpecError: when it asks for one in a way that cannot be understood.
    """
    if is_pause(spec.annotations):
        return None
    own = _own(spec.annotations, backends)
    said = _from_annotations(spec.annotations, own)
    if said.get("backend") in PASS_THROUGH:
        return None
    layers: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
        ("annotation", lambda: said),
        ("environment", lambda: _from_environment(spec.process.env if spec.process else ())),
        (bootconfig.BOOT_CONFIG, lambda: _from_boot_config(boot_config())),
    )
    for source, layer in layers:
        found = layer()
        kind = _kind(found)
        if kind is not None:
            return _build(kind, source, {**found, **said, "channels": _merged(found, said), "own": own})
    return _build(GuestKind.LINUX, "annotation", {**said, "own": own}) if said else None


def is_pause(annotations: Mapping[str, str]) -> bool:
    """Whether this is a pod's pause or infra container."""
    return any(annotations.get(key) == value for key, value in _PAUSE.items())


def _kind(said: Mapping[str, Any]) -> GuestKind | None:
    if said.get("inmate"):
        return GuestKind.INMATE
    if said.get("linux"):
        return GuestKind.LINUX
    if said.get("kernel") or said.get("ramdisk"):
        return GuestKind.KERNEL
    return None


def _build(kind: GuestKind, source: str, said: Mapping[str, Any]) -> PartitionRequest:
    fields = {key: value for key, value in said.items() if key != "linux"}
    if kind is not GuestKind.INMATE:
        fields.pop("inmate", None)
    asked = {channel.name: channel for channel in fields.pop("channels", ())}
    if len(asked) > channels.MAX_CHANNELS:
        raise SpecError(f"cannot give a guest {len(asked)} channels: {channels.MAX_CHANNELS} is the most")
    console = fields.get("console")
    if console is not None and console not in asked:
        raise SpecError(
            f"cannot use channel '{console}' as the console: there is no such channel",
            f"add annotation {PREFIX}{CHANNEL}{console}=shmem",
        )
    return PartitionRequest(kind=kind, source=source, channels=tuple(asked.values()), **fields)


def _merged(*layers: Mapping[str, Any]) -> tuple[Channel, ...]:
    """The channels of all layers; a later one's word on a name counts."""
    return tuple({channel.name: channel for layer in layers for channel in layer.get("channels", ())}.values())


# Section: the three layers


def _from_annotations(annotations: Mapping[str, str], own: Mapping[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for key, value in annotations.items():
        if not key.startswith(PREFIX):
            continue
        _refuse_controls(key, value)
        name = key.removeprefix(PREFIX)
        if name in own:
            continue
        if name.startswith(RULE):  # about the console, and no word on what to boot
            check_annotation(key, value)
            continue
        if name.startswith(CHANNEL):
            said["channels"] = (*said.get("channels", ()), _channel(f"annotation {key}", name, value))
            continue
        if name not in ANNOTATIONS:
            raise SpecError(f"cannot understand annotation {key}: there is no such setting", _nearest(name))
        parse = _PARSERS.get(name)
        field = name.replace("-", "_")
        said[field] = _parsed(f"annotation {key}", value, parse) if parse else value
    return {key: value for key, value in said.items() if value not in ("", False, None)}


def _own(annotations: Mapping[str, str], backends: Collection[str]) -> dict[str, str]:
    """Return the settings of one backend alone, which are no word on what to boot."""
    names = {key.removeprefix(PREFIX): value for key, value in annotations.items() if key.startswith(PREFIX)}
    return {name: value for name, value in names.items() if "." in name and name.partition(".")[0] in backends}


def _refuse_controls(key: str, value: str) -> None:
    """Refuse what would end a line, or a terminal's patience, in whatever an annotation is written into.

    A rule's pattern may hold a tab.
    """
    if any(CONTROL.search(text) for text in (key, value.replace("\t", " "))):
        raise SpecError(f"cannot use annotation {key!a}: there is a control character in it", "remove it")


def _channel(where: str, name: str, text: str) -> Channel:
    return _parsed(where, text, lambda value: channels.parse(name.removeprefix(CHANNEL), value))  # type: ignore[no-any-return]


def _from_environment(env: list[str] | tuple[str, ...]) -> dict[str, Any]:
    values = dict(entry.split("=", 1) for entry in env if "=" in entry)
    said: dict[str, Any] = {}
    for name in ("INMATE", "KERNEL", "RAMDISK"):
        if values.get(name):
            said[name.lower()] = _parsed(f"environment variable {name}", values[name], _path)
    if "LINUX" in values:
        said["linux"] = _parsed("environment variable LINUX", values["LINUX"], units.parse_bool)
    return said


def _from_boot_config(config: BootConfig | None) -> dict[str, Any]:
    if config is None:
        return {}
    # with os_var "linux" the original's images name their kernel under "inmate"
    kernel = config.kernel or (config.inmate if config.linux else "")
    inmate = "" if config.linux else config.inmate
    if config.os_var and not (config.linux or inmate or kernel):
        raise SpecError(
            f"cannot use {bootconfig.BOOT_CONFIG} of the image: os_var '{config.os_var}' without inmate",
            'name the image to boot under "inmate"',
        )
    ramdisk = config.any_ramdisk
    said: dict[str, Any] = {
        "inmate": inmate,
        "kernel": kernel,
        "ramdisk": ramdisk,
        "dtb": config.dtb,
        "linux": config.linux and not (kernel or ramdisk),
        "net": config.net and wishes.net(config.net),
        "netconf": config.netconf,
        "rpu": config.rpu_req,
    }
    for name in ("inmate", "kernel", "ramdisk", "dtb"):
        if said[name]:
            said[name] = _parsed(f"{name} in {bootconfig.BOOT_CONFIG}", said[name], _image_path)
    said["channels"] = tuple(_image_channel(name, text) for name, text in config.comm.items())
    if config.starting_vaddress != "":
        where = f"starting_vaddress in {bootconfig.BOOT_CONFIG}"
        said["load_address"] = _parsed(where, str(config.starting_vaddress), units.parse_int)
    return {key: value for key, value in said.items() if value not in ("", False, ())}


def _image_channel(name: str, text: str) -> Channel:
    channel = _channel(f"comm.{name} in {bootconfig.BOOT_CONFIG}", name, text)
    if not channel.made and not channel.vchan:
        raise SpecError(f"cannot use comm.{name} in {bootconfig.BOOT_CONFIG}: an image cannot name places of the host")
    return channel


# Section: values


def _parsed(where: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as exc:
        hint = f"to run this container without a partition set annotation {PREFIX}backend={PASS_THROUGH[0]}"
        raise SpecError(f"cannot understand {where}: {exc}", hint) from None


def _path(text: str) -> str:
    path = text.strip()
    if path and not os.path.isabs(path.removeprefix(HOST)):
        raise ValueError(f"'{text}' is not an absolute path")
    if "\0" in path:
        raise ValueError("a path cannot hold a NUL")
    return path


def _image_path(text: str) -> str:
    path = _path(text)
    if path.startswith(HOST):
        raise ValueError("an image cannot name files of the host")
    return path


def _arch(text: str) -> str:
    try:
        return _ARCHES[text.strip().lower()]
    except KeyError:
        raise ValueError(f"'{text}' is not one of x86_64, aarch64") from None


def _vcpus(text: str) -> int:
    count = units.parse_int(text)
    if not 1 <= count <= MAX_VCPUS:
        raise ValueError(f"{count} is not between 1 and {MAX_VCPUS}")
    return count


def _net(text: str) -> wishes.NetWish | None:
    return wishes.net(text, annotated=True) if text else None


def _colors(text: str) -> tuple[int, ...] | None:
    return units.parse_numbers(text) if text else None


def _memory(text: str) -> int:
    size = units.parse_size(text)
    if size == 0:
        raise ValueError("a guest needs memory")
    return size


_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "arch": _arch,
    "inmate": _path,
    "linux": units.parse_bool,
    "kernel": _path,
    "ramdisk": _path,
    "dtb": _path,
    "load-address": units.parse_int,
    "memory": _memory,
    "vcpus": _vcpus,
    "log": logplan.parse,
    "net": _net,
    "colors": _colors,
    "console": channels.parse_console,
    "rpu": units.parse_bool,
}


def _nearest(name: str) -> str:
    from difflib import get_close_matches  # needed only for this message

    close = get_close_matches(name.lower().replace("_", "-"), ANNOTATIONS, n=1)
    if close:
        return f"did you mean {PREFIX}{close[0]}?"
    return f"known: {', '.join(PREFIX + known for known in ANNOTATIONS)}"
