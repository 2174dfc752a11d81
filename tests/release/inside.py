# SPDX-License-Identifier: Apache-2.0
"""The first process of a room: mounts its world, moves into it, starts the command and reaps what it leaves behind.

When it ends, the kernel ends every process of the room and takes all mounts away.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

#: Of /dev these are links, and each world has terminals of its own.
LINKS: Final = {
    "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx",
    "core": "/proc/kcore",
}  # fmt: skip
#: A machine has block devices; a room sees only loops, on which nothing of the machine lies.
BLOCK: Final = "loop"
#: Files of the machine without which no name can be looked up.
NETWORK: Final = ("/etc/resolv.conf",)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def build(request: dict[str, Any]) -> None:
    """Mount all file systems at their places below the new root."""
    root = request["root"]
    layers = ":".join(request["lower"])
    mount(
        "-t", "overlay", "-o", f"lowerdir={layers},upperdir={request['upper']},workdir={request['work']}", "room", root
    )
    for point, kind, options in (
        ("/proc", "proc", "nosuid,nodev,noexec"),
        ("/sys", "sysfs", "nosuid,nodev,noexec"),
        ("/dev", "tmpfs", "nosuid,mode=755,size=16m"),
        ("/run", "tmpfs", "nosuid,nodev,mode=755"),
    ):
        mount("-t", kind, "-o", options, kind, root + point)
    _devices(root + "/dev")
    _cgroups(root, request["cgroups"])
    for source, target in request["disk"]:
        os.makedirs(root + target, exist_ok=True)
        mount("--bind", source, root + target)
    for source, target, readonly in request["binds"]:
        _bind(source, root + target, readonly)
    for path in NETWORK:
        # a copy: what runs in the room may replace it
        Path(root + path).unlink(missing_ok=True)
        Path(root + path).write_bytes(Path(path).read_bytes())
    Path(root + "/etc/hosts").write_text(f"127.0.0.1 localhost {request['name']}\n::1 localhost\n")
    Path(root + "/etc/hostname").write_text(f"{request['name']}\n")


def _devices(where: str) -> None:
    """Make the nodes the machine has; a file system of our own, so that none made here shows there."""
    for folder, names, files in os.walk("/dev"):
        names[:] = [name for name in names if name not in ("pts", "shm", "mqueue", "hugepages")]
        for name in files:
            path = f"{folder}/{name}"
            status = os.lstat(path)
            if stat.S_ISCHR(status.st_mode) or (stat.S_ISBLK(status.st_mode) and name.startswith(BLOCK)):
                os.makedirs(where + folder.removeprefix("/dev"), exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    if name in LINKS:
                        continue
                    made = where + path.removeprefix("/dev")
                    os.mknod(made, status.st_mode, status.st_rdev)
                    os.chmod(made, stat.S_IMODE(status.st_mode))
                    os.chown(made, status.st_uid, status.st_gid)
    for name, target in LINKS.items():
        os.symlink(target, f"{where}/{name}")
    for name, kind, options in (
        ("pts", "devpts", "newinstance,ptmxmode=666,mode=620,gid=5"),
        ("shm", "tmpfs", "nosuid,nodev,mode=1777"),
        ("mqueue", "mqueue", "nosuid,nodev,noexec"),
    ):
        os.mkdir(f"{where}/{name}")
        mount("-t", kind, "-o", options, kind, f"{where}/{name}")


def _cgroups(root: str, mounts: list[list[str]]) -> None:
    top = root + "/sys/fs/cgroup"
    if all(point != "/sys/fs/cgroup" for point, _, _ in mounts):
        mount("-t", "tmpfs", "-o", "nosuid,nodev,noexec,mode=755", "tmpfs", top)
    for point, controllers, _ in mounts:
        os.makedirs(root + point, exist_ok=True)
        if controllers:
            mount("-t", "cgroup", "-o", controllers, "cgroup", root + point)
        else:
            mount("-t", "cgroup2", "cgroup2", root + point)
    unified = Path(top)
    if (unified / "cgroup.controllers").exists():
        # version 2 gives controllers on only where no process is
        (unified / "init").mkdir()
        (unified / "init" / "cgroup.procs").write_text("0")
        able = (unified / "cgroup.controllers").read_text().split()
        (unified / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in able))


def _bind(source: str, target: str, readonly: bool) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "ab"):
            pass
    mount("--bind", source, target)
    if readonly:
        mount("-o", "remount,bind,ro", target)


def enter(root: str) -> None:
    """Make the new root the root of these namespaces; the machine's mounts are gone from sight."""
    os.chdir(root)
    subprocess.run(["pivot_root", ".", "."], check=True)
    # both are mounted here now, the old one on top
    subprocess.run(["umount", "--lazy", "."], check=True)
    os.chdir("/")


def serve(argv: list[str], env: dict[str, str], cwd: str) -> int:
    """Run the command; reap everybody's orphans until it has ended."""
    process = subprocess.Popen(argv, env=env, cwd=cwd)
    while True:
        pid, status = os.wait()
        if pid == process.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main() -> int:
    """Do all of it; return the command's exit status."""
    request = json.loads(sys.argv[1])
    socket.sethostname(request["name"])
    build(request)
    enter(request["root"])
    return serve(request["argv"], request["env"], request["cwd"])


if __name__ == "__main__":
    sys.exit(main())
