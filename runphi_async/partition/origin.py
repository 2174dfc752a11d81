# SPDX-License-Identifier: Apache-2.0
"""What an image's author may ask for, and what only whoever runs the image.

An image speaks by its ``/boot/config.json``, and by the annotations of its manifest: podman puts these among the
caller's own, so config.json does not tell whose an annotation is. The manifest does: podman's storage keeps it, and the
bundle lies in that storage. What stands there with the same value is the image's word. Other engines pass no manifest's
annotations on (docs/reference/annotations-and-image-contract.md).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from runphi_async import regular
from runphi_async.errors import SpecError
from runphi_async.partition.request import HOST, PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from runphi_async.partition.bootconfig import BootConfig

#: podman's bundle: <storage>/<driver>-containers/<id>/userdata. Source: containers/storage, store.go
_BUNDLE: Final = re.compile(r"(?P<storage>/.*)/(?P<driver>[a-z0-9]+)-containers/(?P<id>[0-9a-f]{64})/userdata")
#: who lists the containers there, those that shall not outlive a reboot in the second
_LISTS: Final = ("containers.json", "volatile-containers.json")
_LIST_MAX: Final = 64 << 20
_MANIFEST: Final = "manifest"
#: beside it one for each further name: the key in base64, behind a sign. Source: containers/storage, images.go
_MANIFEST_OF: Final = "=bWFuaWZlc3Qt"
_MANIFEST_MAX: Final = 4 << 20
_MANIFESTS_MAX: Final = 16
#: key of /boot/config.json to the annotation that asks for the same
_BOOT: Final = {
    "inmate": "inmate",
    "starting_vaddress": "load-address",
    "kernel": "kernel",
    "any_ramdisk": "ramdisk",
    "dtb": "dtb",
    "linux": "linux",
    "net": "net",
    "netconf": "net",
    "rpu_req": "rpu",
}
_HINT: Final = "list it under annotations.of_images in the configuration, if images may say so"


class _Container(msgspec.Struct):
    id: str = ""
    image: str = ""


class _Manifest(msgspec.Struct):
    annotations: dict[str, str] | None = None


def check_annotations(bundle: str, annotations: Mapping[str, str], allowed: Sequence[str]) -> None:
    """Refuse annotations of an image's manifest that only its caller may set (blocks).

    :param allowed: names that an image may set, without the prefix; ``*`` ends a family.
    :raises SpecError: naming the annotation; or whose it is cannot be told.
    """
    asked = {key: value for key, value in annotations.items() if key.startswith(PREFIX)}
    callers = [key for key, value in asked.items() if value.startswith(HOST) or not _may(key, allowed)]
    place = _BUNDLE.fullmatch(bundle)
    if not callers or place is None:
        return
    storage, driver = place["storage"], place["driver"]
    try:
        image = _image_of(f"{storage}/{driver}-containers", place["id"])
        said = _annotations_of(f"{storage}/{driver}-images/{image}") if image is not None else []
    except (OSError, msgspec.MsgspecError) as exc:
        raise SpecError(
            f"cannot use annotation {callers[0]}: whether it is the image's or the caller's cannot be told: {exc}",
            _HINT,
        ) from exc
    for key in callers:
        if any(manifest.get(key) == asked[key] for manifest in said):
            raise SpecError(
                f"cannot use annotation {key}: it comes from the image, and only who runs the image may set it", _HINT
            )


def check_boot_config(config: BootConfig, allowed: Sequence[str]) -> None:
    """Refuse keys of an image's /boot/config.json that an image may not set.

    :raises SpecError: naming the key.
    """
    asked = [(key, name) for key, name in _BOOT.items() if getattr(config, key)]
    asked += [(f"comm.{name}", f"channel.{name}") for name in config.comm]
    for key, name in asked:
        if not _may(PREFIX + name, allowed):
            raise SpecError(f"cannot use {key} of the image's /boot/config.json: images may not ask for it", _HINT)


def _may(key: str, allowed: Iterable[str]) -> bool:
    name = key.removeprefix(PREFIX)
    return any(name.startswith(entry[:-1]) if entry.endswith("*") else name == entry for entry in allowed)


def _image_of(directory: str, container: str) -> str | None:
    """Return the image a container of podman's was made of; None: of none, or there is no such storage."""
    absent = 0
    for name in _LISTS:
        try:
            data = regular.read(os.path.join(directory, name), _LIST_MAX)
        except FileNotFoundError:
            absent += 1
            continue
        for found in msgspec.json.decode(data, type=list[_Container]):
            if found.id == container and not found.image:
                return None  # it was made of a directory
            if found.id == container:
                if not re.fullmatch("[0-9a-f]{64}", found.image):
                    raise FileNotFoundError("the container's image has no such name")
                return found.image
    if absent == len(_LISTS):
        return None
    raise FileNotFoundError("podman's storage does not list the container")


def _annotations_of(directory: str) -> list[Mapping[str, str]]:
    names = sorted(name for name in os.listdir(directory) if name == _MANIFEST or name.startswith(_MANIFEST_OF))
    if not names or len(names) > _MANIFESTS_MAX:
        raise FileNotFoundError(f"the image has {len(names)} manifests")
    found: list[Mapping[str, str]] = []
    for name in names:
        data = regular.read(os.path.join(directory, name), _MANIFEST_MAX)
        found.append(msgspec.json.decode(data, type=_Manifest).annotations or {})
    return found
