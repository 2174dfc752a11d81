# SPDX-License-Identifier: Apache-2.0
"""Starts the process of a fake cell, which outlives the tool as a cell does."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from runphi_async.testing.fake_jailhouse.place import Place


_FDS: Final = 1 << 16


def spawn(place: Place, number: int) -> None:
    """Start the process of a cell and wait until it listens. It outlives the tool, as a cell does."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_cell(place, number, tell)
    os.close(tell)
    os.waitpid(pid, 0)
    try:
        if os.read(ready, 1) != b"+":
            text = (place.run / f"{number}.err").read_text()
            raise RuntimeError(f"the process of cell {number} did not start: {text}")
    finally:
        os.close(ready)


def _become_cell(place: Place, number: int, tell: int) -> None:
    # Twice forked, the process belongs to nobody. It must hold none of the tool's descriptors: one is the mutex.
    status = 1
    try:
        if os.fork() != 0:
            os._exit(0)
        os.setsid()
        errors = os.open(place.run / f"{number}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(errors, 2)
        os.closerange(3, tell)
        os.closerange(tell + 1, _FDS)
        os.chdir("/")
        for number_ in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP):
            signal.signal(number_, signal.SIG_IGN)
        from runphi_async.testing.fake_jailhouse import cellprocess, inmates

        cellprocess.serve(place, number, tell, inmates.run)
        status = 0
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)
