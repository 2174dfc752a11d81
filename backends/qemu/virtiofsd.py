# SPDX-License-Identifier: Apache-2.0
"""The two programs called virtiofsd: QEMU's own, in C, which ended with QEMU 7, and its successor in Rust.

Debian 12 has the first inside ``qemu-system-common``, Debian 13 the second as a package of its own. Neither is in PATH,
and their options differ, so a program is asked for its version once: the first says ``virtiofsd version 7.2.22``, the
second ``virtiofsd 1.13.2``.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from typing import Final

from runphi_async.errors import BackendError

#: where distributions keep it
PLACES: Final = ("/usr/libexec", "/usr/lib/qemu", "/usr/lib/virtiofsd", "/usr/lib")
#: seconds that a program may take to say its version
_PATIENCE: Final = 10.0
_NEWER: Final = re.compile(r"virtiofsd (\d+)\.(\d+)")


def find(name: str) -> str | None:
    """Return the path of an executable named by its path, or by a name looked up in PATH and its usual places."""
    return shutil.which(name) or (None if os.sep in name else shutil.which(name, path=os.pathsep.join(PLACES)))


def package() -> str:
    """Return the name of the package that has it in this machine's release."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    older = (release.get("ID"), release.get("VERSION_ID")) in (("debian", "12"), ("ubuntu", "22.04"))
    return "qemu-system-common" if older else "virtiofsd"


def hint() -> str:
    """Say how to get one."""
    return f"apt-get install {package()}, or set qemu.virtiofsd"


def options(said: str, listener: int, source: str) -> list[str]:
    """Return the options that share ``source`` on a listening socket.

    Both serve the same then: extended attributes, caches as the kernel likes them, locks that stay within the guest,
    one file system whatever is mounted in it, a sandbox of namespaces, and CAP_SYS_ADMIN for attributes of overlayfs.

    :param said: what ``--version`` printed.
    """
    if _NEWER.match(said):
        return [
            f"--fd={listener}", f"--shared-dir={source}", "--sandbox=namespace", "--cache=auto", "--xattr",
            "--modcaps=+sys_admin", "--no-announce-submounts", "--log-level=warn",
        ]  # fmt: skip
    return [f"--fd={listener}", "-o", f"source={escaped(source)},sandbox=namespace,cache=auto,xattr,modcaps=+sys_admin"]


def escaped(value: str) -> str:
    """Return the value of one of virtiofsd's options: libfuse takes the list apart at commas, and a backslash away."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def command(name: str, listener: int, source: str) -> list[str]:
    """Return the command line of a server (blocks for a moment when the program has not been seen before).

    :raises BackendError: there is none, or it does not run.
    """
    path = find(name)
    if path is None:
        raise BackendError(f"cannot share the root filesystem: there is no file server {name}", hint())
    status = os.stat(path)
    try:
        said = _version(path, status.st_mtime_ns, status.st_size)
    except (OSError, subprocess.SubprocessError) as exc:
        raise BackendError(f"cannot share the root filesystem: {path} does not say its version: {exc}", hint()) from exc
    return [path, *options(said, listener, source)]


@functools.lru_cache(maxsize=8)
def _version(path: str, mtime: int, size: int) -> str:
    """Ask a program for its version; time and size tell an upgraded one from the one asked before."""
    argv = [path, "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL)
    return done.stdout
