# SPDX-License-Identifier: Apache-2.0
"""A room: namespaces in which a command runs on a root file system of its own, and with which all of it ends.

``Room`` is what the machine sees of it: a scratch directory, cgroups, one process. What happens behind the door, as the
first process of the namespaces, is ``inside.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

CHECKOUT: Final = Path(__file__).resolve().parent.parent.parent
#: Seconds the kernel may take to end all processes of a room, and to give their cgroups back.
SETTLE: Final = 30.0
#: Pause between two looks at it.
POLL: Final = 0.02
PR_SET_PDEATHSIG: Final = 1
#: Held by whoever made a room: what nobody holds was left by one who was killed.
LOCK: Final = "lock"
#: What the room keeps on the machine's disk beside the overlay: overlayfs takes no overlay as its upper layer, and
#: engines keep their layers here.
ON_DISK: Final = (
    "/tmp", "/var/tmp", "/var/cache/apt/archives", "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker",
    "/var/lib/kubelet", "/var/lib/runphi-quickstart",
)  # fmt: skip
UNSHARE: Final = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child")
#: The answer to whoever asks for what ran too long, as timeout(1) gives it.
TIMED_OUT: Final = 124


class Hierarchy(NamedTuple):
    """A cgroup hierarchy of this machine."""

    point: str
    #: of version 1; of version 2 nothing
    controllers: str
    #: the cgroup we are in
    own: str


class Bind(NamedTuple):
    """Something of the machine that the room sees."""

    source: str
    target: str
    readonly: bool = True


def hierarchies(mountinfo: str, own: str) -> list[Hierarchy]:
    """Return the machine's cgroup hierarchies, in the order they are mounted.

    :param mountinfo: see proc_pid_mountinfo(5).
    :param own: this process's cgroups, see cgroups(7).
    """
    groups = [line.split(":", 2)[1:] for line in own.splitlines()]
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point, (kind, _, options) = before.split()[4], after.split()
        if kind not in ("cgroup", "cgroup2") or not point.startswith("/sys/fs/cgroup"):
            continue
        for controllers, path in groups:
            if (
                (not controllers)
                if kind == "cgroup2"
                else controllers and set(controllers.split(",")) <= {*options.split(",")}
            ):
                found[point] = Hierarchy(point, controllers, path.rstrip("/"))
    return list(found.values())


class Room:
    """A place to run commands in; a context manager.

    :param layers: directories that the root is made of, the uppermost first.
    :param keep: a directory that takes what is changed; without it the changes are thrown away.
    """

    def __init__(self, layers: Sequence[Path], name: str, scratch: Path, keep: Path | None = None) -> None:
        self._layers = layers
        self._name = name
        self._parent = scratch
        self._keep = keep
        self._binds: list[Bind] = []
        self._groups: list[Path] = []

    def __enter__(self) -> Self:
        self._parent.mkdir(parents=True, exist_ok=True)
        with open(self._parent / f".{LOCK}", "w") as making:
            fcntl.flock(making, fcntl.LOCK_EX)
            self._sweep()
            self.scratch = Path(tempfile.mkdtemp(prefix=f"{self._name}-", dir=self._parent))
            self._lock = open(self.scratch / LOCK, "w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        for path in ON_DISK:
            self.on_disk(path).mkdir(parents=True, mode=0o1777 if path.endswith("tmp") else 0o711)
            self.on_disk(path).chmod(0o1777 if path.endswith("tmp") else 0o755)
        for name in ("upper", "work", "root"):
            (self.scratch / name).mkdir(mode=0o755)
        self._cgroups = _here()
        try:
            self._make_groups()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove_groups(self._groups)
        shutil.rmtree(self.scratch)
        self._lock.close()

    def _sweep(self) -> None:
        """Remove what is left of rooms whose makers were killed."""
        for path in self._parent.iterdir():
            with contextlib.suppress(BlockingIOError, FileNotFoundError, NotADirectoryError), open(path / LOCK) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_groups([Path(each.point + each.own) / path.name for each in _here()])
                shutil.rmtree(path)

    def on_disk(self, path: str) -> Path:
        """Return where the machine has one of the directories in `ON_DISK`."""
        return self.scratch / "disk" / path.strip("/").replace("/", "-")

    def bind(self, source: Path, target: str, *, readonly: bool = True) -> None:
        """Let the room see a file or directory of the machine."""
        self._binds.append(Bind(str(source), target, readonly))

    def place(self, path: str) -> Path:
        """Return where the machine must put what the room shall find at a path of its root; its parents are made."""
        made = self._keep or self.scratch / "upper"
        for parent in reversed(PurePosixPath(path).parents[:-1]):
            made = made / parent.name
            if not made.exists():
                made.mkdir(mode=0o755)
                known = [layer / str(parent).lstrip("/") for layer in self._layers]
                for layer in (each for each in known if each.is_dir()):
                    shutil.copystat(layer, made)
                    break
        return made / PurePosixPath(path).name

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        seconds: float,
        *,
        cwd: str = "/",
        sink: Callable[[bytes], object] | None = None,
    ) -> int:
        """Run a command; return its exit status when all processes of the room are gone.

        :param seconds: then it is ended, and the status is 124.
        :param sink: is given what they print; without it they have our own output.
        """
        request = {
            "root": str(self.scratch / "root"),
            "lower": [str(path) for path in self._layers],
            "upper": str(self._keep or self.scratch / "upper"),
            "work": str(self.scratch / "work"),
            "name": self._name,
            "disk": [[str(self.on_disk(path)), path] for path in ON_DISK],
            "binds": self._binds,
            "cgroups": self._cgroups,
            "argv": list(argv),
            "env": dict(env),
            "cwd": cwd,
        }  # fmt: skip
        words = [
            *UNSHARE,
            "--propagation",
            "private",
            sys.executable,
            "-m",
            "tests.release.inside",
            json.dumps(request),
        ]
        piped = None if sink is None else subprocess.PIPE
        process = subprocess.Popen(
            words, cwd=CHECKOUT, preexec_fn=self._before, stdout=piped, stderr=piped and subprocess.STDOUT
        )
        deadline = time.monotonic() + seconds
        try:
            if sink is not None and process.stdout is not None and not _pump(process.stdout.fileno(), sink, deadline):
                return TIMED_OUT
            return process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        finally:
            # SIGKILL of unshare is SIGKILL of the namespace's first process, and so of all, in this order
            if process.poll() is None:
                process.kill()
            process.wait()
            self._wait_empty()
            if process.stdout is not None:
                process.stdout.close()

    # Section: cgroups

    def _make_groups(self) -> None:
        """Make a cgroup in every hierarchy: what runs in the room takes it for the top."""
        for hierarchy in self._cgroups:
            parent = Path(hierarchy.point + hierarchy.own)
            group = parent / self.scratch.name
            group.mkdir()
            self._groups.append(group)
            for file in ("cpuset.cpus", "cpuset.mems"):
                # of version 1: an empty set takes no process
                if hierarchy.controllers and (group / file).exists():
                    (group / file).write_text((parent / file).read_text())

    def _before(self) -> None:
        """Done by what becomes unshare: it is to end with us, and to live in the room's cgroups."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for group in self._groups:
            (group / "cgroup.procs").write_text("0")

    def _wait_empty(self) -> None:
        """Wait until no process of the room is left."""
        deadline = time.monotonic() + SETTLE
        while any(_populated(group) for group in self._groups) and time.monotonic() < deadline:
            time.sleep(POLL)


def _here() -> list[Hierarchy]:
    """Return the hierarchies of this machine, and where we are in them."""
    proc = Path("/proc/self")
    return hierarchies((proc / "mountinfo").read_text(), (proc / "cgroup").read_text())


def _populated(group: Path) -> bool:
    """Tell whether there are processes in a cgroup or below."""
    for folder, _, _ in os.walk(group):
        with contextlib.suppress(FileNotFoundError):
            if (Path(folder) / "cgroup.procs").read_text():
                return True
    return False


def _remove_groups(groups: list[Path]) -> None:
    """Remove cgroups whose processes have ended, with all below them."""
    deadline = time.monotonic() + SETTLE
    for group in groups:
        for folder, _, _ in list(os.walk(group, topdown=False)):
            while os.path.isdir(folder):
                try:
                    os.rmdir(folder)
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(POLL)


def _pump(source: int, sink: Callable[[bytes], object], deadline: float) -> bool:
    """Hand on what comes to its end; return False if that has not come in time."""
    while select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data = os.read(source, 1 << 16)
        if not data:
            return True
        sink(data)
    return False


def copy_checkout(target: Path) -> None:
    """Make a clone of this checkout as it is now, with what was changed and not committed yet."""
    if not (CHECKOUT / ".git").exists():  # of an archive
        shutil.copytree(CHECKOUT, target, symlinks=True, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
        return
    quiet = ["git", "clone", "--quiet", "--no-hardlinks", str(CHECKOUT), str(target)]
    subprocess.run(quiet, check=True, stdin=subprocess.DEVNULL)
    git = ["git", "-C", str(CHECKOUT)]
    listed = [*git, "ls-files", "-z", "--modified", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
        source, copy = CHECKOUT / name, target / name
        if name and not source.exists():
            with contextlib.suppress(FileNotFoundError):
                copy.unlink()
        elif name:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
