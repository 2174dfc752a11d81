# SPDX-License-Identifier: Apache-2.0
"""``python -m runphi_async.doctor.prove``: prove the accelerator and say what came out; for ``bin/prepare-guest``."""

from __future__ import annotations

import asyncio
import sys

from backends.configured import load
from backends.qemu.backend import QemuBackend
from runphi_async.errors import RunphiError


async def _main() -> int:
    try:
        backend = QemuBackend(load(), "")
        found = await backend.accelerators()
    except RunphiError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    for guests, answer in found.items():
        sys.stdout.write(f"{guests} guests run with {answer.name}: {answer.reason}\n")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
