# SPDX-License-Identifier: Apache-2.0
"""`bin/start_jailhouse`, parsed and printed; ``backends.jailhouse.startup`` does it."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

import anyio

from backends.configured import load
from backends.jailhouse.settings import Jailhouse
from backends.jailhouse.startup import Orders, Startup
from runphi_async import wire
from runphi_async.aio import threads
from runphi_async.doctor.checkup import as_text
from runphi_async.errors import RunphiError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backends.base import Finding


def main(argv: Sequence[str]) -> int:
    """Start Jailhouse, look, or stop it; the status is 1 when something is in the way."""
    given = _parser().parse_args(argv)
    try:
        settings = load(os.environ.get("RUNPHI_CONFIG")).of(Jailhouse)
        asked = Orders(given.check, given.stop, given.module, given.config)
        run_dir = os.environ.get("RUNPHI_RUN_DIR") or wire.DEFAULT_RUN_DIR
        status = anyio.run(Startup(settings, asked, run_dir, _tell).run)
    except RunphiError as exc:
        sys.stderr.write(f"start_jailhouse: {exc}\n")
        status = 1
    return threads.let_go(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="start_jailhouse",
        description="Load Jailhouse's module, check the board, enable the hypervisor; do nothing twice.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only look, change nothing")
    what.add_argument("--stop", action="store_true", help="disable Jailhouse and remove its module; refused with cells")
    parser.add_argument("--module", metavar="FILE", default="", help="module to load (default: modprobe jailhouse)")
    parser.add_argument(
        "config", metavar="SYSCONFIG", nargs="?", default="",
        help="the board's system configuration (default: jailhouse.system_config of runphi's configuration)",
    )  # fmt: skip
    return parser


def _tell(found: Iterable[Finding]) -> None:
    sys.stdout.write(as_text(found))
