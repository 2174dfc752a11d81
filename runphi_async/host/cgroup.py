# SPDX-License-Identifier: Apache-2.0
"""The container's control group, by files alone: cgroup v1, hybrid and v2.

The life cycle makes one at `create` (init stub and hypervisor process live in it, so that the engine's
metrics show the guest), limits it, counts its OOM kills and removes it at `delete`. A `Cgroup` holds no state
but its path: after a restart of the supervisor the same path gives the same object.

In v1 and hybrid systems every mounted v1 hierarchy is used, and the v2 one is only joined, because systemd
tracks services there. The v2 hierarchy has the limits only when no v1 controller is mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async import digits
from runphi_async.errors import CgroupError
from runphi_async.host.cgroup_limits import Limits as Limits
from runphi_async.host.cgroup_limits import v1_files, v2_files
from runphi_async.host.processes import children

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: how long :meth:`Cgroup.kill_all` waits for the killed to be gone, in seconds
KILL_DEADLINE: Final = 10.0
#: how long :meth:`Cgroup.remove` tries again while the kernel still counts a dead process, in seconds
REMOVE_DEADLINE: Final = 2.0
#: first pause between two tries of rmdir, doubled each time: nothing tells when the kernel is done with it
REMOVE_PAUSE: Final = 0.001

#: v1 controllers, to tell them from the mount options of a superblock
_V1_CONTROLLERS: Final = frozenset(
    {"blkio", "cpu", "cpuacct", "cpuset", "debug", "devices", "freezer", "hugetlb", "memory", "misc",
     "net_cls", "net_prio", "perf_event", "pids", "rdma"}
)  # fmt: skip
#: v2 controllers whose files we write or read
_V2_CONTROLLERS: Final = ("cpuset", "cpu", "memory", "pids")
#: a v1 limit at or above this is "no limit" (the kernel shows the largest number of pages)
_V1_NO_LIMIT: Final = 1 << 62


class Hierarchy(NamedTuple):
    """A mounted hierarchy; one that is only joined (``name=systemd``, v2 in a hybrid) has no controllers."""

    mount: str
    controllers: frozenset[str]
    v2: bool = False


class Stats(NamedTuple):
    """Use of a cgroup; times in nanoseconds, a limit of None is none."""

    memory_usage: int = 0
    memory_limit: int | None = None
    cpu_total: int = 0
    cpu_user: int = 0
    cpu_kernel: int = 0
    pids: int = 0


def hierarchies(mountinfo: str = "/proc/self/mountinfo") -> tuple[Hierarchy, ...]:
    """Return the hierarchies to use on this machine."""
    v1: dict[frozenset[str], Hierarchy] = {}
    v2: str | None = None
    with open(mountinfo) as file:
        for line in file:
            left, _, right = line.rstrip("\n").partition(" - ")
            kind, _, options = right.split(" ", 2)
            mount = _unescape(left.split(" ")[4])
            if kind == "cgroup2":
                v2 = v2 or mount
            elif kind == "cgroup":
                # a key of its own for each name, so that a second mount of one hierarchy is left out
                found = frozenset(
                    word for word in options.split(",") if word in _V1_CONTROLLERS or word.startswith("name=")
                )
                controllers = frozenset(word for word in found if word in _V1_CONTROLLERS)
                v1.setdefault(found, Hierarchy(mount, controllers))
    found_v1 = tuple(v1.values())
    if v2 is None:
        return found_v1
    if any(hierarchy.controllers for hierarchy in found_v1):
        return (*found_v1, Hierarchy(v2, frozenset(), v2=True))
    return (*found_v1, Hierarchy(v2, frozenset(_V2_CONTROLLERS), v2=True))


def _unescape(path: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, char)
    return path


def clean(path: str) -> str:
    # normpath of an absolute path cannot leave the root, so no ".." does
    clean = "/" + os.path.normpath("/" + path).lstrip("/")
    if clean == "/" or "\0" in clean:
        raise CgroupError(f"cannot use cgroupsPath {path!r}: a container needs a cgroup of its own")
    return clean


class Cgroup:
    """One path in every hierarchy."""

    def __init__(self, path: str, used: Sequence[Hierarchy]) -> None:
        self.path = clean(path)
        self._used = tuple(used)

    def create(self) -> None:
        """Make the cgroup in every hierarchy; one that is there already is taken as it is."""
        made: list[str] = []
        try:
            for hierarchy in self._used:
                made += _make(hierarchy, self.path)
        except CgroupError:
            for directory in reversed(made):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            raise

    def apply(self, limits: Limits) -> None:
        """Set limits; 0 means "not given", as in the OCI specification."""
        for controller, files in (v2_files if self._is_v2() else v1_files)(limits).items():
            directory = self._directory(controller)
            wanted = [(file, value) for file, value in files if value is not None]
            if wanted and directory is None:
                raise CgroupError(
                    f"cannot limit {controller} of cgroup {self.path}: no {controller} controller is mounted"
                )
            _write_in_any_order([(f"{directory}/{file}", value) for file, value in wanted])

    def join(self, pid: int) -> None:
        """Move a process into the cgroup."""
        for hierarchy in self._used:
            _write(f"{hierarchy.mount}{self.path}/cgroup.procs", str(pid))

    def join_family(self, pid: int) -> None:
        """Move a process, then its children: later ones are born in the cgroup, and one may have ended meanwhile."""
        self.join(pid)
        for child in children(pid):
            try:
                self.join(child)
            except CgroupError as exc:
                if getattr(exc.__cause__, "errno", None) != errno.ESRCH:
                    raise

    def pids(self) -> list[int]:
        """Return the processes in the cgroup; empty when it is gone."""
        found: set[int] = set()
        for hierarchy in self._used:
            found.update(map(int, _read(f"{hierarchy.mount}{self.path}/cgroup.procs").split()))
        return sorted(found - {0})  # 0: a process of a pid namespace we cannot see into

    def oom_kills(self) -> int:
        """Return how many processes of the cgroup the kernel has killed for want of memory."""
        name = "memory.events" if self._is_v2() else "memory.oom_control"
        return _table(self._content("memory", name)).get("oom_kill", 0)

    def stats(self) -> Stats:
        """Return what the cgroup uses; zero where no controller counts it."""
        pids = _number(self._content("pids", "pids.current"))
        if self._is_v2():
            times = _table(self._content("cpu", "cpu.stat"))
            total, user, kernel = (times.get(f"{name}_usec", 0) * 1000 for name in ("usage", "user", "system"))
            usage, limit = (self._content("memory", f"memory.{name}") for name in ("current", "max"))
        else:
            total, user, kernel = (
                _number(self._content("cpuacct", f"cpuacct.usage{name}")) for name in ("", "_user", "_sys")
            )
            usage, limit = (self._content("memory", f"memory.{name}_in_bytes") for name in ("usage", "limit"))
        ceiling = _number(limit)
        return Stats(_number(usage), ceiling if 0 < ceiling < _V1_NO_LIMIT else None, total, user, kernel, pids)

    def kill_all(self, deadline: float = KILL_DEADLINE, *, spare: int = 0) -> None:
        """Kill every process in the cgroup, and those they still start, until it is empty.

        :param spare: pid of one that lives on.
        """
        until = time.monotonic() + deadline
        while victims := [pid for pid in self.pids() if pid not in (1, spare, os.getpid())]:
            rest = until - time.monotonic()
            if rest <= 0:
                raise CgroupError(f"cannot kill the processes {victims} of cgroup {self.path}: they do not end")
            self._kill(victims, rest)

    def _kill(self, victims: Iterable[int], patience: float) -> None:
        with contextlib.ExitStack() as stack:
            pidfds: dict[int, int] = {}
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    pidfds[pid] = os.pidfd_open(pid)
                    stack.callback(os.close, pidfds[pid])
            # a pid may have changed hands before it was opened: only one still in the cgroup is ours
            held = [pidfds[pid] for pid in self.pids() if pid in pidfds]
            poll = select.poll()
            for pidfd in held:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                poll.register(pidfd, select.POLLIN)
            # the end of one is enough: the caller looks again who is left
            if held:
                poll.poll(min(patience, 0.1) * 1000)

    def remove(self, deadline: float = REMOVE_DEADLINE) -> None:
        """Remove the cgroup, and any made below it; the levels above it stay, as with runc."""
        until = time.monotonic() + deadline
        for hierarchy in self._used:
            directory = hierarchy.mount + self.path
            pause = REMOVE_PAUSE
            while (exc := _remove_tree(directory)) is not None:
                if exc.errno != errno.EBUSY or time.monotonic() > until:
                    raise CgroupError(f"cannot remove cgroup {directory}: {exc.strerror}") from exc
                time.sleep(pause)
                pause = min(pause * 2, 0.1)

    def _is_v2(self) -> bool:
        return any(hierarchy.v2 and hierarchy.controllers for hierarchy in self._used)

    def _content(self, controller: str, file: str) -> str:
        directory = self._directory(controller)
        return "" if directory is None else _read(f"{directory}/{file}")

    def _directory(self, controller: str) -> str | None:
        return next((h.mount + self.path for h in self._used if controller in h.controllers), None)


def leave(name: str, used: Sequence[Hierarchy] | None = None) -> None:
    """Move the calling process into a cgroup ``/<name>`` of its own, out of that of whoever started it."""
    own = Cgroup(name, hierarchies() if used is None else used)
    own.create()
    own.join(os.getpid())


def _make(hierarchy: Hierarchy, path: str) -> list[str]:
    """Make every level of a path; returns the directories that were not there."""
    made: list[str] = []
    directory = hierarchy.mount
    for name in path.split("/")[1:]:
        if hierarchy.v2:
            _enable(directory, hierarchy.controllers)
        above, directory = directory, f"{directory}/{name}"
        try:
            os.mkdir(directory, 0o755)
            made.append(directory)
        except FileExistsError:
            pass
        except OSError as exc:
            raise CgroupError(f"cannot make cgroup {directory}: {exc.strerror}") from exc
        if not hierarchy.v2 and "cpuset" in hierarchy.controllers:
            # a v1 cpuset starts empty, and nothing can join it before it has processors and memory nodes
            for file in ("cpuset.cpus", "cpuset.mems"):
                if not _read(f"{directory}/{file}").strip():
                    _write(f"{directory}/{file}", _read(f"{above}/{file}").strip())
    return made


def _enable(directory: str, controllers: Iterable[str]) -> None:
    # one by one and as far as it goes, as runc does: a limit that then has no file says so when it is set
    missing = set(controllers) - set(_read(f"{directory}/cgroup.subtree_control").split())
    for name in sorted(missing):
        with contextlib.suppress(CgroupError):
            _write(f"{directory}/cgroup.subtree_control", f"+{name}")


def _remove_tree(directory: str) -> OSError | None:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return None
    except OSError as exc:
        with contextlib.suppress(OSError):
            below = [entry.path for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
            if below and all(_remove_tree(path) is None for path in below):
                return _remove_tree(directory)
        return exc
    return None


def _write_in_any_order(files: list[tuple[str, str]]) -> None:
    """Write what belongs together: which file has to be first depends on the old values, the kernel knows."""
    later = []
    for path, value in files:
        try:
            _write(path, value)
        except CgroupError as exc:
            if len(files) == 1 or getattr(exc.__cause__, "errno", None) != errno.EINVAL:
                raise
            later.append((path, value))
    for path, value in later:
        _write(path, value)


def _write(path: str, value: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as exc:
        if exc.errno == errno.ENOENT and value in ("-1", "max"):
            return  # no such limit here, and it was to be lifted
        hint = {
            errno.ENOENT: "this kernel or this level of the hierarchy has no such control",
            errno.EBUSY: "more than that is in use",
            errno.EINVAL: "out of range, or more than the cgroup above allows",
        }.get(exc.errno or 0)
        reason = "not there" if exc.errno == errno.ENOENT else exc.strerror
        raise CgroupError(f"cannot write {value!r} to {path}: {reason}", hint) from exc


def _read(path: str) -> str:
    """Return the content of a file; empty when it, or its cgroup, is not there."""
    try:
        with open(path) as file:
            return file.read()
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENODEV):
            return ""
        raise CgroupError(f"cannot read {path}: {exc.strerror}") from exc


def _number(text: str) -> int:
    return digits.whole(text.strip()) or 0


def _table(text: str) -> dict[str, int]:
    rows = (line.split() for line in text.splitlines())
    counts = ((row[0], digits.whole(row[1])) for row in rows if len(row) == 2)
    return {name: count for name, count in counts if count is not None}
