# SPDX-License-Identifier: Apache-2.0
"""Commands that are killed while they make something, at moments that are events and not times.

What a command was killed in must be begun anew or gone on with by the next run: that something is there does not mean
that it is whole. :func:`hooked` kills a Python program at its n-th change below a directory, with a half-written file
where it was about to write one; :func:`killed_when` kills any command once something can be seen.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

#: Seconds that a command may take on a busy machine, and until it has come to where it is killed.
PATIENCE: Final = 240.0
#: Run by every Python that is started with it: counts changes, and ends its process group at the one that is asked for.
_HOOK: Final = """
import atexit, os, sys
below, moment, told = os.environ["KILL_BELOW"], int(os.environ["KILL_AT"]), os.environ["KILL_TOLD"]
changes = 0
def look(event, args):
    global changes
    if event == "open":
        path, mode, flags = args
        if not (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            return
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"):
        path = args[0] if event not in ("os.symlink", "os.link") else args[1]
    else:
        return
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(below):
        return
    changes += 1
    if changes == moment:
        if event == "open" and not os.path.exists(path):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(fd, b"half")
        os.killpg(0, 9)
sys.addaudithook(look)
def tell():
    with open(told, "a") as file:
        file.write(f"{changes}\\n")
atexit.register(tell)
"""


def hooked(place: Path, below: Path, moment: int = 0) -> dict[str, str]:
    """Return variables with which Python programs are killed at a change; 0: they only count.

    :param place: a directory of the test's own.
    :param below: where changes count.
    """
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(_HOOK)
    told = place / "changes"
    told.unlink(missing_ok=True)
    return {"PYTHONPATH": str(place), "KILL_BELOW": str(below), "KILL_AT": str(moment), "KILL_TOLD": str(told)}


def counted(place: Path) -> int:
    """Return the changes that the last hooked run made."""
    return sum(map(int, (place / "changes").read_text().split()))


def run(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a process group of its own."""
    return subprocess.run(
        argv, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def killed_when(
    seen: Callable[[], bool], argv: Sequence[str], env: Mapping[str, str], number: int = signal.SIGKILL, *,
    alone: bool = False,
) -> None:  # fmt: skip
    """Run a command, and end it with all it started once something is seen.

    :param alone: end the command itself; what it started goes on.
    """
    process = subprocess.Popen(
        # whoever runs the tests in the background has them ignore ctrl-c, and so would all that they start
        ["/usr/bin/env", "--default-signal=INT", *argv], env=env,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    try:
        while not seen():
            assert process.poll() is None, f"it ended before it was to be killed, with {process.returncode}"
            assert time.monotonic() < deadline, "it never came to where it is to be killed"
            time.sleep(0.001)
        if alone:
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)
    finally:
        if process.poll() is None and number == signal.SIGKILL:
            process.kill()
        assert process.wait(PATIENCE) != 0, "it was to be killed"
