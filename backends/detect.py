# SPDX-License-Identifier: Apache-2.0
"""The table of backends: the one file that a new backend touches outside its own folder.

A folder has a module ``backend`` with a function ``backend(config, run_dir) -> Backend``, and a module ``settings``
whose ``BRINGS`` says what else it brings.

``RUNPHI_TESTING_BACKENDS=1`` in the supervisor's environment adds those of ``runphi_async.testing``, for tests: an
environment variable, because no configuration that an administrator may copy should be able to.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from backends.base import Accounting, Hears, LooksAhead
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.base import Backend, Brings, Discrepancy, HypervisorLog
    from runphi_async.config.schema import Config

log = logging.getLogger(__name__)

#: Folder of each backend.
BACKENDS: Final[Mapping[str, str]] = {
    "qemu": "backends.qemu",
    "jailhouse": "backends.jailhouse",
    "xen": "backends.xen",
}
#: Backends for tests.
TESTING: Final[Mapping[str, str]] = {"fake": "runphi_async.testing"}
TESTING_VARIABLE: Final = "RUNPHI_TESTING_BACKENDS"


class Detection(NamedTuple):
    """The backends in use: made when first asked for, then kept.

    :ivar log: the hypervisor's own console, for the backend whose guests print there.
    """

    config: Config
    run_dir: str
    known: dict[str, Backend]
    log: HypervisorLog | None = None


def table() -> Mapping[str, str]:
    """Return the folders of all backends that may be asked for, by name."""
    return {**BACKENDS, **TESTING} if os.environ.get(TESTING_VARIABLE) == "1" else BACKENDS


def brought() -> dict[str, Brings]:
    """Return what each backend brings beside itself; none of them is loaded for that."""
    return {name: importlib.import_module(f"{folder}.settings").BRINGS for name, folder in table().items()}


def with_wishes() -> frozenset[str]:
    """Return the backends with annotations of their own."""
    return frozenset(name for name, brings in brought().items() if brings.wishes)


async def backend(name: str, detection: Detection) -> Backend:
    """Return the backend called ``name``.

    :raises PlanError: there is none of that name.
    """
    if name not in detection.known:
        folder = table().get(name)
        if folder is None:
            names = ", ".join(sorted(table()))
            raise PlanError(f"unknown backend {name!r}", f"this version has: {names}")
        made: Backend = importlib.import_module(f"{folder}.backend").backend(detection.config, detection.run_dir)
        detection.known[name] = made
        if detection.log is not None and isinstance(made, Hears):
            made.hear(detection.log)
    return detection.known[name]


async def of_verb(verb: str, detection: Detection) -> Backend:
    """Return the backend that a verb is about."""
    return await backend(next(name for name, brings in brought().items() if verb in brings.verbs), detection)


async def look_ahead(detection: Detection) -> None:
    """Let backends that need no hardware of their own find out what takes time; whatever goes wrong, verbs go on."""
    for name in (name for name, brings in brought().items() if brings.looks_ahead):
        try:
            made = await backend(name, detection)
            if isinstance(made, LooksAhead):
                await made.look_ahead()
        except Exception:
            log.exception("backend %s cannot look ahead", name)


async def look_over(detection: Detection) -> list[Discrepancy]:
    """Compare what containers have claimed with what hypervisors show, where anything was ever claimed.

    :raises RunphiError: a hypervisor does not answer, or an account cannot be read.
    """
    found: list[Discrepancy] = []
    for name, brings in brought().items():
        if brings.ledger and await anyio.Path(detection.run_dir, brings.ledger).exists():
            made = await backend(name, detection)
            found += await made.look_over() if isinstance(made, Accounting) else []
    return found
