# SPDX-License-Identifier: Apache-2.0
"""From the tool to a cell's process: start it, and tell it what the hypervisor would do to the cell."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

from runphi_async.testing.fake_jailhouse.place import start_time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runphi_async.testing.fake_jailhouse.place import Place

_FDS: Final = 1 << 16


@contextlib.contextmanager
def address(place: Place, number: int) -> Iterator[str]:
    """Return the address of a cell's socket, short whatever the directory is called (a socket's holds 107 bytes)."""
    fd = os.open(place.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{number}.sock"
    finally:
        os.close(fd)


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
        from runphi_async.testing.fake_jailhouse.cellprocess import serve

        serve(place, number, tell)
        status = 0
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def call(place: Place, number: int, command: str, **arguments: Any) -> Any:
    """Ask a cell's process and return its answer; a process that was killed agrees to everything."""
    with address(place, number) as path, socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
            sock.sendall(json.dumps({"do": command, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as answers:
                line = answers.readline()
        except OSError:
            return True
    return json.loads(line) if line else True


def kill(path: Path) -> None:
    """End the process that a pid file names, if it is still that process."""
    pid, started = (int(word) for word in path.read_text().split())
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if start_time(pid) == started:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(fd)
