# SPDX-License-Identifier: Apache-2.0
"""The OCI state of a container, as engines, hooks and people get it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.oci.state import State, timestamp
from runphi_async.record.lifecycle import Status

if TYPE_CHECKING:
    from runphi_async.record.store import Record


def document(record: Record) -> State:
    """Return the OCI state of a container."""
    stopped = record.status is Status.STOPPED
    annotations = dict(record.annotations)
    annotations |= {f"org.runphi.boot.{name}-ms": str(value) for name, value in record.boot.items()}
    if record.fallback is not None:
        annotations["org.runphi.accel-fallback"] = record.fallback
    if stopped:
        annotations["org.runphi.exit-code"] = str(record.exit_code)
        annotations["org.runphi.exit-reason"] = record.reason or ""
    return State(
        id=record.id,
        pid=0 if stopped else record.pid,
        status=record.status.shown,
        bundle=record.bundle,
        rootfs=record.rootfs,
        created=timestamp(int(record.created * 1_000_000_000)),
        annotations=annotations,
    )
