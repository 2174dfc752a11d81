# SPDX-License-Identifier: Apache-2.0
"""This machine in an overlay, booted: its systemd is process 1 of namespaces of its own.

It sees the unified cgroup hierarchy from a cgroup of ours on, and no network; it can change neither a setting of the
kernel nor a device.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.system.overlay import Overlay
from tests.system.place import until

if TYPE_CHECKING:
    from types import TracebackType

SYSTEMD = "/lib/systemd/systemd"
#: where the unified hierarchy is: on a hybrid system, and on one that has nothing else
UNIFIED = next(each for each in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if each.is_dir())
#: Seconds until the last process has left a cgroup: the kernel counts the dead for a moment.
SETTLE = 5.0


class Booted(Overlay):
    """The booted machine; a context manager."""

    #: all that is started is a target that wants no units
    script = f"""
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for each in null zero full random urandom kvm; do
    [ ! -e "/dev/$each" ] || {{ : > "dev/$each"; mount --bind "/dev/$each" "dev/$each"; }}
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mkdir -p run/systemd/system
printf '[Unit]\\nDefaultDependencies=no\\n' > run/systemd/system/nothing.target
exec chroot . /usr/bin/env -i container=runphi-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    {SYSTEMD} --system --unit=nothing.target --show-status=no
"""

    def __enter__(self) -> Booted:
        self._group = UNIFIED / f"rpb{os.getpid()}"
        self._group.mkdir()
        return super().__enter__()

    def wait_ready(self) -> None:
        self._init = until(self._first, "a process 1")
        until(lambda: self.run("/bin/systemctl", "is-system-running").stdout == "running\n", "a booted machine")

    def _first(self) -> int:
        """Return systemd's process as seen from here, once it is systemd."""
        pid = self._holder.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n" else 0

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, exc, trace)
        deadline = time.monotonic() + SETTLE
        for group in sorted((name for name, _, _ in os.walk(self._group)), reverse=True):
            _remove(group, deadline)

    def unshare(self) -> list[str]:
        """Return the words that run a command in new namespaces."""
        spaces = ["--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc", "--net"]
        return [
            "/bin/sh",
            "-c",
            f'echo $$ > {self._group}/cgroup.procs && exec "$@"',
            "join",
            *super().unshare(),
            *spaces,
        ]

    def enter(self) -> list[str]:
        """Return the words that run a command in the namespaces."""
        return ["nsenter", "--target", str(self._init), "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net"]


def _remove(group: str, deadline: float) -> None:
    while True:
        try:
            os.rmdir(group)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
