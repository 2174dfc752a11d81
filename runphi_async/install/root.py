# SPDX-License-Identifier: Apache-2.0
"""The directory tree that is changed: the machine's own, or one given by ``--destdir``, and safe ways to change it."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from typing import Final

#: what runPHI is called below /usr/share; the original's name
HOME: Final = "/usr/share/runPHI"
#: where the launchers are
SBIN: Final = "/usr/sbin"
#: what was changed on this machine, and how it was before
STATE: Final = "/var/lib/runphi/install"
CONFIG: Final = "/etc/runphi/config.toml"
#: added to the name of a file that is not yet complete
NEW: Final = ".runphi-new"


class Root:
    """A tree; every name is absolute in it."""

    def __init__(self, destdir: str = "") -> None:
        self.destdir = "" if destdir in ("", "/") else os.path.abspath(destdir)

    def __call__(self, path: str) -> str:
        """Return where a file of the tree is on this machine."""
        return self.destdir + path

    @property
    def is_machine(self) -> bool:
        """Whether this is the machine itself, where services and package managers are at work."""
        return not self.destdir

    def missing_directories(self, path: str) -> list[str]:
        """Return the directories that must be made for a file or directory, the outermost first."""
        missing = []
        while path not in ("", "/") and not os.path.isdir(self(path)):
            missing.append(path)
            path = os.path.dirname(path)
        return missing[::-1]

    def read(self, path: str) -> bytes | None:
        """Return what is in a file; None when there is none."""
        try:
            with open(self(path), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file whole or not at all; one that was there keeps mode and owner."""
        real = os.path.realpath(self(path))
        os.makedirs(os.path.dirname(real), exist_ok=True)
        new = real + NEW
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                old = os.stat(real) if os.path.exists(real) else None
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) if old else mode)
                if old and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, real)
        except BaseException:
            remove(new)
            raise
        sync(os.path.dirname(real))

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link in the place of whatever was there, in one step."""
        os.makedirs(os.path.dirname(self(path)), exist_ok=True)
        new = self(path) + NEW
        remove(new)
        os.symlink(target, new)
        os.rename(new, self(path))
        sync(os.path.dirname(self(path)))


def digest(path: str) -> str:
    """Return what tells whether something changed: of a link its target, of a file its contents, "" of nothing."""
    if os.path.islink(path):
        return "link:" + os.readlink(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def digest_of(data: bytes) -> str:
    """Return the digest of a file that has these contents."""
    return hashlib.sha256(data).hexdigest()


def remove(path: str) -> None:
    """Remove a file, a link or a whole tree; what is not there is removed already."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def sync(directory: str) -> None:
    """Make the names in a directory last through a loss of power."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def relative(path: str, target: str) -> str:
    """Return the text of a link at ``path`` to ``target``: relative, so that it holds in every tree."""
    return os.path.relpath(target, os.path.dirname(path))
