# SPDX-License-Identifier: Apache-2.0
"""The state documents: what `state` and `list` print and what hooks read on their stdin.

Three forms of one thing, each with the fields, the order and the line ends of runc's, because engines and
people compare the two runtimes. Called by the verbs `state` and `list` and by whoever runs hooks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

#: the runtime specification whose documents we write
OCI_VERSION = "1.0.2"


class State(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A container as the OCI runtime specification shows it."""

    oci_version: str = OCI_VERSION
    id: str
    #: the init stub on the host; 0 when the container has stopped
    pid: int = 0
    #: creating, created, running, paused or stopped
    status: str
    bundle: str
    rootfs: str = ""
    #: as :func:`timestamp` writes it
    created: str = ""
    annotations: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    #: name of the user; runc fills it in for `list` only
    owner: str = ""

    def __post_init__(self) -> None:
        if not self.annotations:
            msgspec.structs.force_setattr(self, "annotations", msgspec.UNSET)

    def to_bytes(self) -> bytes:
        """Encode for `state`: indented, and without a newline at the end, as runc does."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    def hook_bytes(self) -> bytes:
        """Encode for the stdin of hooks: the fields of the specification, no pid when there is none."""
        return msgspec.json.encode(
            _HookState(
                oci_version=self.oci_version,
                id=self.id,
                status=self.status,
                pid=self.pid or msgspec.UNSET,
                bundle=self.bundle,
                annotations=self.annotations,
            )
        )


class _HookState(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    oci_version: str
    id: str
    status: str
    pid: int | msgspec.UnsetType
    bundle: str
    annotations: dict[str, str] | msgspec.UnsetType


def list_bytes(states: Iterable[State]) -> bytes:
    """Encode for `list --format json`: one line; ``null`` when there is no container."""
    return msgspec.json.encode(list(states) or None) + b"\n"


def timestamp(nanoseconds: int) -> str:
    """Return a time of the real-time clock as RFC 3339 in UTC, with the nanoseconds Go would print."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"
