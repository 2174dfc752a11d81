# SPDX-License-Identifier: Apache-2.0
"""Reading a bundle: what is asked for, by whom, and whether it is a partition at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from runphi_async import regular
from runphi_async.errors import SpecError
from runphi_async.host import inroot
from runphi_async.oci import spec as oci
from runphi_async.partition import bootconfig, origin, podannotations, request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.config.schema import Config
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
    boot: dict[str, Any] | None = None
    if request.wants_boot_config(spec) and spec.root.path:
        rootfs = os.path.normpath(os.path.join(bundle, spec.root.path))
        data = inroot.read(rootfs, bootconfig.BOOT_CONFIG, BOOT_CONFIG_MAX) if os.path.isdir(rootfs) else None
        if data is not None:
            config = bootconfig.parse(data)
            origin.check_boot_config(config, of_images)
            boot = msgspec.to_builtins(config)
    return Asked(raw, spec, request.request(spec, boot))


def is_wanted(asked: Asked, config: Config) -> bool:
    """Whether the container becomes a partition: it asks for one, and its backend is not that of ordinary ones."""
    return asked.request is not None and (asked.request.backend or config.backend) not in request.PASS_THROUGH
