# SPDX-License-Identifier: Apache-2.0
"""A private containerd: its own store, state, socket and namespace, beside any other on the machine.

bin/quickstart shows the runtime with it, the engine tests and the benchmarks drive it. Everything below it
finds the supervisor's directory through RUNPHI_RUN_DIR, which containerd hands to its shims and these to the
runtime.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CHECKOUT: Final = Path(__file__).resolve().parents[2]
RUNPHI: Final = CHECKOUT / "bin" / "runphi"
#: what an init system gives a daemon: a person's PATH and Python settings stay away from the runtime
PLAIN_ENV: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
#: what whoever starts tests may set for all guests: an accelerator, where its proof is kept, and what stands for KVM
PASSED_ON: Final = ("RUNPHI_ACCEL", "RUNPHI_PROOFS", "RUNPHI_KVM")
#: longest time containerd may take until it answers; a cold page cache needs a second or two
BOOT_DEADLINE: Final = 30.0
#: longest time a daemon gets to end after SIGTERM before it is killed
STOP_DEADLINE: Final = 10.0
#: pause between two looks at something that sends no event
POLL: Final = 0.02

CONFIG: Final = """\
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.restart",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{socket}"

[debug]
  level = "info"

[plugins."io.containerd.runtime.v1.linux"]
  shim_debug = false
"""


def passed_on() -> dict[str, str]:
    """Return the variables of our environment that every supervisor of a test shall have."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


class EngineError(Exception):
    """Raised when the private containerd cannot be started, used or stopped."""


def wait_until(condition: Callable[[], object], deadline: float, what: str) -> None:
    """Polls a callable until it returns something true, or raises after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise EngineError(f"cannot wait any longer for {what}: {deadline:g} s have passed")
        time.sleep(POLL)


def stop_process(pid: int, deadline: float = STOP_DEADLINE) -> None:
    """Ends a process that is not our child: SIGTERM, then SIGKILL after the deadline."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            with contextlib.suppress(EngineError):
                wait_until(lambda: not _alive(pid), deadline, f"process {pid}")
                return
    finally:
        os.close(handle)
    raise EngineError(f"cannot end process {pid}")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def listener_pid(path: Path) -> int | None:
    """The process that listens on a unix socket, or None when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError:
            return None
        raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", raw)[0])


def overlay_works(below: Path) -> bool:
    """Whether overlayfs can be mounted here; it cannot inside many containers."""
    probe = below / ".overlay-probe"
    parts = {name: probe / name for name in ("lower", "upper", "work", "merged")}
    for part in parts.values():
        part.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(parts["merged"])]
    works = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if works:
        subprocess.run(["umount", str(parts["merged"])], capture_output=True, check=False)
    shutil.rmtree(probe, ignore_errors=True)
    return works


class PrivateEngine:
    """What any engine of one's own leaves on the machine, and how it is found and taken away again.

    :param store: directory for images and snapshots; may be kept from run to run.
    :param run: directory for sockets and state; keep its path short, unix sockets allow 107 bytes.
    :param namespace: name of the cgroup above the containers.
    """

    def __init__(self, store: Path, run: Path, namespace: str, *, env: Mapping[str, str] | None = None) -> None:
        self.store, self.run, self.namespace = store, run, namespace
        self.run_dir = run / "run"
        self.env = {**PLAIN_ENV, **passed_on(), "RUNPHI_RUN_DIR": str(self.run_dir), **(env or {})}

    def supervisor_pid(self) -> int | None:
        """Process id of the supervisor that serves this engine's containers."""
        return listener_pid(self.run_dir / "supervisor.sock")

    def clean(self) -> list[str]:
        """Ends the supervisor and all that is left over; returns what was, beside the supervisor."""
        pid = self.supervisor_pid()
        if pid is not None:
            stop_process(pid)
        return [*self._end_processes(), *self._unmount(), *self._remove_cgroups()]

    def processes(self) -> Iterator[tuple[int, str]]:
        """Every process that belongs to this engine: by command line, environment, directory or open file."""
        ours = {os.getpid(), os.getppid()}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in ours and self._belongs(entry):
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    yield int(entry.name), b" ".join(words).decode(errors="replace").strip()

    def _belongs(self, proc: Path) -> bool:
        needle = os.fsencode(self.run) + b"/"
        with contextlib.suppress(OSError):
            if needle in (proc / "cmdline").read_bytes() or needle in (proc / "environ").read_bytes():
                return True
            links = [proc / "cwd", *(proc / "fd").iterdir()]
            return any(_target(link).startswith(needle) for link in links)
        return False

    def _end_processes(self) -> list[str]:
        # a shim or supervisor on its way out is not left over: only what outlives the deadline is
        with contextlib.suppress(EngineError):
            wait_until(lambda: not list(self.processes()), STOP_DEADLINE, "the last processes")
            return []
        left = []
        for pid, words in self.processes():
            left.append(f"process {pid}: {words}")
            stop_process(pid, 2.0)
        return left

    def _unmount(self) -> list[str]:
        left = []
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            point = line.split()[1]
            if point.startswith((f"{self.run}/", f"{self.store}/")):
                left.append(f"mount {point}")
                subprocess.run(["umount", "-l", point], capture_output=True, check=False)
        return left

    def cgroups(self) -> list[Path]:
        """The directories of this engine's containers in every cgroup hierarchy."""
        base = Path("/sys/fs/cgroup")
        tops = [base / self.namespace, *(top / self.namespace for top in base.iterdir() if top.is_dir())]
        return [child for top in tops if top.is_dir() for child in top.iterdir() if child.is_dir()]

    def _remove_cgroups(self) -> list[str]:
        left = self.cgroups()
        for group in left:
            with contextlib.suppress(OSError):
                group.rmdir()
        base = Path("/sys/fs/cgroup")
        for top in [base, *base.iterdir()]:
            with contextlib.suppress(OSError):
                (top / self.namespace).rmdir()
        return [f"cgroup {group}" for group in left]


class PrivateContainerd(PrivateEngine):
    """One containerd process and all that belongs to it.

    :param store: directory for images and snapshots; may be kept from run to run.
    :param run: directory for sockets and state; keep its path short, unix sockets allow 107 bytes.
    :param namespace: containerd namespace, which is also the name of the cgroup above the containers.
    """

    def __init__(self, store: Path, run: Path, namespace: str, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__(store, run, namespace, env=env)
        self.socket = run / "containerd.sock"
        self.log = run / "containerd.log"
        self.snapshotter = "overlayfs"
        #: the command that runs containerd, in front of its own words
        self.launcher: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of containerd while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Starts containerd and returns when it answers; also used to start it again after :meth:`halt`."""
        for directory in (self.store, self.run):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if listener_pid(self.socket) is not None:
            raise EngineError(f"cannot start containerd: another one answers on {self.socket}")
        if not overlay_works(self.store):
            self.snapshotter = "native"
        config = self.run / "containerd.toml"
        config.write_text(self.configuration())
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.launcher, "containerd", "--config", str(config)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, BOOT_DEADLINE, "containerd to answer")
        except EngineError as exc:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            self.halt()
            raise EngineError(f"cannot start containerd: {exc}; last words in {self.log}:\n{tail}") from exc

    def configuration(self) -> str:
        """The text of containerd's own configuration."""
        return CONFIG.format(root=self.store / "root", state=self.run / "state", socket=self.socket)

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise EngineError("it ended at once")
        return listener_pid(self.socket) is not None and self.ctr("version").returncode == 0

    def command(self, *args: str) -> list[str]:
        """The full command line of a ``ctr`` call."""
        return ["ctr", "--address", str(self.socket), "--namespace", self.namespace, *args]

    @property
    def client_env(self) -> dict[str, str]:
        """Environment for ``ctr`` and ``runphi`` calls of people and tests."""
        return {**self.env, "CONTAINERD_SNAPSHOTTER": self.snapshotter, "TERM": "xterm"}

    def ctr(self, *args: str, timeout: float = 60.0, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        """Runs ``ctr`` to its end without a terminal."""
        done = subprocess.run(
            self.command(*args),
            env=self.client_env,
            timeout=timeout,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=False,
        )
        out, err = (x.decode(errors="replace") for x in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def must(self, *args: str, timeout: float = 60.0) -> str:
        """Runs ``ctr``, returns what it printed and raises when it failed."""
        done = self.ctr(*args, timeout=timeout)
        if done.returncode:
            raise EngineError(f"cannot run ctr {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def import_images(self, archives: Sequence[Path]) -> list[Path]:
        """Imports OCI archives that this store has not seen in exactly these bytes; returns those it took."""
        taken = []
        for archive in archives:
            stamp = self.store / f"{archive.stem}.imported"
            with archive.open("rb") as file:
                digest = f"{hashlib.file_digest(file, 'sha256').hexdigest()} {self.namespace} {self.snapshotter}"
            if stamp.exists() and stamp.read_text() == digest:
                continue
            self.must("images", "import", "--snapshotter", self.snapshotter, str(archive), timeout=300.0)
            stamp.write_text(digest)
            taken.append(archive)
        return taken

    def containers(self) -> list[str]:
        """Names of all containers of the namespace."""
        return self.must("containers", "list", "-q").split()

    def remove_containers(self) -> None:
        """Kills and deletes every container and its task."""
        for name in self.containers():
            self.ctr("tasks", "kill", "-s", "KILL", name)
            self.ctr("tasks", "delete", "--force", name)
            self.ctr("containers", "delete", name)

    def halt(self, *, sudden: bool = False) -> None:
        """Ends containerd only; shims and containers go on. ``sudden`` means SIGKILL."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill() if sudden else self._process.terminate()
            try:
                self._process.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def stop(self) -> list[str]:
        """Removes the containers, ends containerd and the supervisor; returns what is left over all the same.

        That is ended here too, so the caller needs only report it.
        """
        if self.pid is not None:
            self.remove_containers()
        self.halt()
        left = self.clean()
        runc_root = Path("/run/containerd/runc", self.namespace)
        if runc_root.is_dir():
            left += [f"state of container {entry.name} in {runc_root}" for entry in runc_root.iterdir()]
            shutil.rmtree(runc_root, ignore_errors=True)
        return left


def _target(link: Path) -> bytes:
    try:
        return os.readlink(os.fsencode(link))
    except OSError:
        return b""
