# SPDX-License-Identifier: Apache-2.0
"""This machine, to be changed at will: an overlay on its root in a mount namespace, gone with the test.

What was changed lies in one directory, so ``differences`` compares the whole machine file by file and cheaply.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from runphi_async.testing.containerd import passed_on
from tests.system.place import ROOT, ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

#: What runPHI keeps, and what it was installed as: the machine in the overlay has never seen it, whatever was done here
#: before.
HIDDEN = ("/etc/runphi", "/var/lib/runphi", "/var/log/runphi", "/usr/share/runPHI")
#: What engines leave when they are used. It is hidden, too: in the overlay no engine has ever run, whatever ran here,
#: so that a comparison meets the worst machine everywhere.
ENGINES_OWN = (
    "/etc/cni/net.d/cni.lock", "/etc/containers/networks", "/etc/docker/key.json", "/opt/containerd",
    "/var/lib/cni", "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker",
)  # fmt: skip
#: Run in the new namespace; its mounts go with it. $1: place, $2: checkout, $3: what is hidden. A layer of whiteouts
#: (character devices 0, 0, as the kernel's overlayfs.rst has it) hides files.
_LAYERS = """set -e
mount -t tmpfs -o size=1g,mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root" "$1/hidden"
for each in $3; do mkdir -p "$1/hidden${each%/*}"; mknod "$1/hidden$each" c 0 0; done
mount -t overlay -o "lowerdir=$1/hidden:/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs run
"""
#: A checkout below /tmp, or on another file system than the root, is put back.
_CHECKOUT = """
[ -e ".$2" ] || { mkdir -p ".$2"; mount --bind "$2" ".$2"; }
"""


class Overlay:
    """The machine in an overlay; a context manager."""

    #: what is done there in the end; the kernel's file systems are the machine's own
    script = """
for each in proc sys dev; do mount --rbind "/$each" "$each"; done
echo ready
read -r _
"""

    def __enter__(self) -> Self:
        self.path = Path(tempfile.mkdtemp(prefix="rpo", dir="/tmp"))
        script = _LAYERS + _CHECKOUT + self.script
        argv = [
            *self.unshare(),
            "/bin/sh",
            "-c",
            script,
            "hold",
            str(self.path),
            str(ROOT),
            " ".join([*HIDDEN, *ENGINES_OWN]),
        ]
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        # everything is reached through the holder, whose namespace it is
        self.merged = Path(f"/proc/{self._holder.pid}/root{self.path}/root")
        self.upper = Path(f"/proc/{self._holder.pid}/root{self.path}/upper")
        self._space = ""
        self._stock: dict[str, tuple[object, ...]] = {}
        try:
            self.wait_ready()
            self._space = os.readlink(f"/proc/{self._holder.pid}/ns/mnt")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def wait_ready(self) -> None:
        """Wait until the machine can be used."""
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n", "cannot make an overlay"

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        while left := self.processes():  # a guardian may have started another supervisor
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                ended(pid)
        self._holder.stdin.close()
        self._holder.kill()
        self._holder.wait()
        self._holder.stdout.close()
        shutil.rmtree(self.path)

    def processes(self) -> list[int]:
        """Return the processes that live there: whoever is in the namespace, which nobody else can be in."""
        found = []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(OSError):
                if pid != self._holder.pid and os.readlink(f"/proc/{pid}/ns/mnt") == self._space:
                    found.append(pid)
        return found

    def unshare(self) -> list[str]:
        """Return the words that run a command in new namespaces."""
        return ["unshare", "--mount", "--propagation", "private"]

    def enter(self) -> list[str]:
        """Return the words that run a command in the namespaces."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]

    def command(self, *argv: str, env: dict[str, str] | None = None) -> list[str]:
        """Return the command line that runs a command there, with this environment and no other but an accelerator."""
        variables = [f"{name}={value}" for name, value in {**passed_on(), **(env or {})}.items()]
        return [*self.enter(), "--", "chroot", f"{self.path}/root", "/usr/bin/env", "-i", *variables, *argv]

    def run(self, *argv: str, env: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command there. Its output goes to files: what it leaves behind must not make us wait."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            options = {"stdin": subprocess.DEVNULL, "check": False, "timeout": 300, "text": True, **more}
            if "input" in options:
                del options["stdin"]
            done = subprocess.run(self.command(*argv, env=env), stdout=out, stderr=err, **options)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())

    def must(self, *argv: str, **more: Any) -> str:
        """Run a command that must succeed; return what it printed."""
        done = self.run(*argv, **more)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def differences(self, *, but: tuple[str, ...] = ()) -> list[str]:
        """Say what is not as it was when stock was taken, or else as on the machine, file by file.

        :param but: files that are left out, with everything below them.
        """
        found = []
        for path, changed in self._changed():
            if not any(path == each or path.startswith(each + "/") for each in but):
                if path in self._stock:
                    found += [] if _print(changed) == self._stock[path] else [f"{path}: is not as it was"]
                else:
                    found += [f"{path}: {what}" for what in _compare(Path(path), changed)]
        return sorted(
            found + [f"{path}: is gone" for path in self._stock if not os.path.lexists(f"{self.upper}{path}")]
        )

    def take_stock(self) -> None:
        """From here on, compare with what is there now: what engines leave when they are used is not looked at."""
        self._stock = {path: _print(changed) for path, changed in self._changed()}

    def _changed(self) -> Iterator[tuple[str, Path]]:
        """Yield what differs from the machine, and where it lies."""
        for folder, names, files in os.walk(self.upper):
            for name in [*names, *files]:
                changed = Path(folder) / name
                yield "/" + str(changed.relative_to(self.upper)), changed


def _print(path: Path) -> tuple[object, ...]:
    """Return all of a file that a comparison sees."""
    info = path.lstat()
    words = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else info.st_rdev
    return info.st_mode, info.st_uid, info.st_gid, words


def _compare(old: Path, new: Path) -> list[str]:
    after = new.lstat()
    if stat.S_ISCHR(after.st_mode) and after.st_rdev == 0:
        return ["is gone"]
    if not os.path.lexists(old) or any(old.is_relative_to(each) for each in (*HIDDEN, *ENGINES_OWN)):
        return ["is new"]
    before = old.lstat()
    fields = ("st_mode", "st_uid", "st_gid")
    odd = [f"{field}: {getattr(before, field)} → {getattr(after, field)}" for field in fields
           if getattr(before, field) != getattr(after, field)]  # fmt: skip
    if new.is_symlink():
        odd += [] if os.readlink(old) == os.readlink(new) else ["points elsewhere"]
    elif new.is_file():
        odd += [] if old.read_bytes() == new.read_bytes() else ["has other contents"]
    return odd
