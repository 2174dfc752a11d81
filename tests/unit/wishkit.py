# SPDX-License-Identifier: Apache-2.0
"""Wishes of a guest as a container writes them: through the one door where texts become values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from backends import detect
from runphi_async.oci.spec import Spec
from runphi_async.partition import bootconfig
from runphi_async.partition.request import request
from runphi_async.partition.wishes import Wishes, common

if TYPE_CHECKING:
    from collections.abc import Callable

    from runphi_async.partition.bootconfig import BootConfig


def annotated(xen: dict[str, str] | None = None, /, **settings: str) -> dict[str, Any]:
    """Return what annotations ``org.runphi.NAME`` ask for, as fields of a GuestSpec; ``xen``: those of Xen alone."""
    said = {f"org.runphi.{name.replace('_', '-')}": value for name, value in settings.items()}
    said |= {f"org.runphi.xen.{name.replace('_', '-')}": value for name, value in (xen or {}).items()}
    asked = request(Spec(annotations={"org.runphi.inmate": "/i", **said}), backends=detect.with_wishes())
    assert asked is not None
    unasked = common(Wishes())
    return {name: value for name, value in common(asked).items() if value != unasked[name]}


def boot_config(raw: dict[str, Any] | None) -> Callable[[], BootConfig | None]:
    """Return the image's ``/boot/config.json`` for ``request``, read as from a file."""
    return lambda: None if raw is None else bootconfig.parse(msgspec.json.encode(raw))
