# SPDX-License-Identifier: Apache-2.0
"""Reading a bundle: what is asked for, by whom, and whether it is a partition at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from backends import detect
from runphi_async import regular
from runphi_async.errors import SpecError
from runphi_async.host import inroot
from runphi_async.oci import spec as oci
from runphi_async.partition import bootconfig, origin, podannotations, request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.config.schema import Config
    from runphi_async.partition.bootconfig import BootConfig
    from runphi_async.partition.request import PartitionRequest

#: Largest /boot/config.json that is read from an image, in bytes.
BOOT_CONFIG_MAX: Final = 1 << 20


class Asked(NamedTuple):
    """A bundle, read: its configuration and whether it asks for a partition."""

    raw: bytes
    spec: oci.Spec
    request: PartitionRequest | None


def read_bundle(bundle: str, of_images: Sequence[str]) -> Asked:
    """Read a bundle's config.json, and its image's /boot/config.json where that matters (blocks).

    :param of_images: annotations that an image's author may set.
    """
    path = os.path.join(bundle, oci.CONFIG_NAME)
    try:
        raw = regular.read(path, oci.DOCUMENT_MAX)
    except OSError as exc:
        raise SpecError(f"cannot read {path}: {exc.strerror}", "give the bundle directory with --bundle") from exc
    spec = oci.from_bytes(raw)
    origin.check_annotations(bundle, spec.annotations, of_images)
    spec = msgspec.structs.replace(spec, annotations=podannotations.of_container(spec.annotations))
    asked = request.request(spec, lambda: _boot_config(bundle, spec, of_images), detect.with_wishes())
    return Asked(raw, spec, asked)


def _boot_config(bundle: str, spec: oci.Spec, of_images: Sequence[str]) -> BootConfig | None:
    """Return what the image says of itself, None when it says nothing."""
    rootfs = os.path.normpath(os.path.join(bundle, spec.root.path))
    if not spec.root.path or not os.path.isdir(rootfs):
        return None
    data = inroot.read(rootfs, bootconfig.BOOT_CONFIG, BOOT_CONFIG_MAX)
    if data is None:
        return None
    config = bootconfig.parse(data)
    origin.check_boot_config(config, of_images)
    return config


def is_wanted(asked: Asked, config: Config) -> bool:
    """Whether the container becomes a partition: it asks for one, and its backend is not that of ordinary ones."""
    return asked.request is not None and (asked.request.backend or config.backend) not in request.PASS_THROUGH
