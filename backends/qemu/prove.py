# SPDX-License-Identifier: Apache-2.0
"""``python -m backends.qemu.prove``: prove the accelerator now and say what came out, as ``bin/prepare-guest`` does."""

from __future__ import annotations

import asyncio
import os
import sys

from backends.qemu.backend import QemuBackend
from runphi_async.config import loading
from runphi_async.errors import RunphiError


async def _main() -> int:
    try:
        backend = QemuBackend(loading.load(os.environ.get(loading.PATH_VARIABLE)), "")
        found = await backend.accelerators()
    except RunphiError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    for guests, answer in found.items():
        sys.stdout.write(f"{guests} guests run with {answer.name}: {answer.reason}\n")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
