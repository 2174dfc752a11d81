# SPDX-License-Identifier: Apache-2.0
"""The table of backends: the one file that a new backend touches outside its own folder.

``RUNPHI_TESTING_BACKENDS=1`` in the supervisor's environment adds those of ``runphi_async.testing``, for tests: an
environment variable, because no configuration that an administrator may copy should be able to.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.base import Hears, LooksAhead
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.base import Backend, HypervisorLog
    from runphi_async.config.schema import Config

log = logging.getLogger(__name__)

#: Module of each backend; it has a function ``backend(config, run_dir) -> Backend``.
BACKENDS: Final[Mapping[str, str]] = {
    "jailhouse": "backends.jailhouse.backend",
    "qemu": "backends.qemu.backend",
    "xen": "backends.xen.backend",
}
#: Those that look ahead when a supervisor starts.
AHEAD: Final = ("qemu",)
#: Backends for tests.
TESTING: Final[Mapping[str, str]] = {"fake": "runphi_async.testing.backend"}
TESTING_VARIABLE: Final = "RUNPHI_TESTING_BACKENDS"


class Detection(NamedTuple):
    """The backends in use: made when first asked for, then kept.

    :ivar log: the hypervisor's own console, for the backend whose guests print there.
    """

    config: Config
    run_dir: str
    known: dict[str, Backend]
    log: HypervisorLog | None = None


async def backend(name: str, detection: Detection) -> Backend:
    """Return the backend called ``name``.

    :raises PlanError: there is none of that name.
    """
    if name not in detection.known:
        table = {**BACKENDS, **TESTING} if os.environ.get(TESTING_VARIABLE) == "1" else BACKENDS
        module = table.get(name)
        if module is None:
            names = ", ".join(sorted(table))
            raise PlanError(f"unknown backend {name!r}", f"this version has: {names}")
        made: Backend = importlib.import_module(module).backend(detection.config, detection.run_dir)
        detection.known[name] = made
        if detection.log is not None and isinstance(made, Hears):
            made.hear(detection.log)
    return detection.known[name]


async def look_ahead(detection: Detection) -> None:
    """Let backends that need no hardware of their own find out what takes time; whatever goes wrong, verbs go on."""
    for name in AHEAD:
        try:
            made = await backend(name, detection)
            if isinstance(made, LooksAhead):
                await made.look_ahead()
        except Exception:
            log.exception("backend %s cannot look ahead", name)
