# SPDX-License-Identifier: Apache-2.0
"""From the tool to a cell's process: start it, and tell it what the hypervisor would do to the cell."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

from runphi_async.testing.fake_jailhouse.place import start_time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runphi_async.testing.fake_jailhouse.place import Place


@contextlib.contextmanager
def address(place: Place, number: int) -> Iterator[str]:
    """Return the address of a cell's socket, short whatever the directory is called (a socket's holds 107 bytes)."""
    fd = os.open(place.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{number}.sock"
    finally:
        os.close(fd)


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
