# SPDX-License-Identifier: Apache-2.0
"""A private supervisor for tests: own run directory, logs, cgroups; whatever is left at the end is a failure.

The test process makes itself the reaper of orphans, as an engine's shim does, so it sees how init stubs exit.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runphi_async.terminals import hypervisor
from runphi_async.testing.containerd import passed_on

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).resolve().parent.parent.parent
RUNPHI: Final = str(ROOT / "bin" / "runphi")
#: Seconds for anything that must happen: a guest under emulation on two busy cores.
PATIENCE: Final = 40.0
#: Seconds that processes which are about to end may take.
SETTLE: Final = 10.0
PR_SET_CHILD_SUBREAPER: Final = 36


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait for what no descriptor tells of; returns its first true value. A file that is not there yet is false."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(FileNotFoundError):
            if value := condition():
                return value
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


def ended(pid: int) -> None:
    """Wait for the end of a process that may not be our child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], PATIENCE)[0], f"process {pid} does not end"
    finally:
        os.close(fd)


class Place:
    """A supervisor's world."""

    def __init__(self, inmates: Path, config: str = "", log: str = "") -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.path = Path(tempfile.mkdtemp(prefix="rps", dir="/tmp"))
        self.run_dir = self.path / "run"
        self.root = self.path / "root"
        self.inmates = inmates
        self.cgroup = f"/rps-{self.path.name}"
        file = self.path / "config.toml"
        file.write_text(config + f'\n[log]\ndir = "{self.path}/log"\n' + log.replace("PLACE", str(self.path)))
        self.env = {
            "PATH": os.environ["PATH"],
            "RUNPHI_RUN_DIR": str(self.run_dir),
            "RUNPHI_CONFIG": str(file),
            "RUNPHI_TESTING_BACKENDS": "1",
            **passed_on(),
        }
        self.containers: list[Container] = []
        #: tells pid files apart, also those of containers that are made at the same time
        self.numbers = itertools.count()

    # Section: verbs

    def call(self, *words: str, root: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdin": subprocess.DEVNULL, "timeout": PATIENCE, "check": False, **more}
        where = ["--root", str(root or self.root)]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            # Files, not pipes: whoever inherited a pipe would make us wait for ever, and files show it as well.
            done = subprocess.run([RUNPHI, *where, *words], env=self.env, stdout=out, stderr=err, **options)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())

    def must(self, *words: str, **more: Any) -> str:
        done = self.call(*words, **more)
        assert done.returncode == 0, (words, done.stderr, self.log())
        return done.stdout

    def refused(self, *words: str, **more: Any) -> str:
        done = self.call(*words, **more)
        assert done.returncode == 1, (words, done.stdout)
        assert done.stdout == ""
        return done.stderr.strip()

    def state(self, name: str, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.must("state", name, **more))
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.must("events", "--no-follow", name).splitlines()]

    def log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.run_dir / "supervisor.log").read_text()[-5000:]
        return ""

    def record(self, name: str) -> Path:
        return self.run_dir / name

    # Section: bundles

    def bundle(self, name: str, *, backend: str = "qemu", terminal: bool = False, **more: Any) -> Path:
        """Make a bundle of the demo inmate."""
        bundle = self.path / "bundles" / name[:60]
        boot = bundle / "rootfs" / "boot"
        boot.mkdir(parents=True)
        os.link(self.inmates / "demo-x86_64.elf", boot / "inmate.elf")
        annotations = {"org.runphi.backend": backend, "user.note": "kept", **more.pop("annotations", {})}
        config: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": terminal, "user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/",
                "env": ["INMATE=/boot/inmate.elf"], **more.pop("process", {}),
            },
            "root": {"path": "rootfs"},
            "annotations": annotations,
            "linux": {"cgroupsPath": f"{self.cgroup}/{more.pop('group', name[:100])}", "namespaces": []},
            **more,
        }  # fmt: skip
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle

    def create(self, name: str, *words: str, root: Path | None = None, **more: Any) -> Container:
        """Create a container with pipes as an engine does; its output is read by the returned object."""
        bundle = more.pop("made", None) or self.bundle(name if root is None else f"{name}-{root.name}", **more)
        container = Container(self, name, root or self.root)
        self.containers.append(container)
        container.create(bundle, words)
        return container

    def running(self, name: str, **more: Any) -> Container:
        """Create and start a container and wait for its prompt."""
        container = self.create(name, **more)
        container.must("start")
        container.expect(b"> ")
        return container

    # Section: the supervisor

    def pid(self) -> int:
        return int((self.run_dir / "supervisor.pid").read_text())

    def guardian(self) -> int:
        """Return the pid of the supervisor's parent."""
        return int(Path(f"/proc/{self.pid()}/stat").read_text().rpartition(")")[2].split()[1])

    def kill_supervisor(self) -> None:
        """Kill -9, and wait until its guardian has started the next one and it answers."""
        old = self.pid()
        os.kill(old, signal.SIGKILL)
        ended(old)

        def answers() -> bool:
            return self.pid() != old and self.call("version").returncode == 0

        until(answers, "a new supervisor")

    def end_supervisor(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # there is none, or it is ending by itself
            pid, guardian = self.pid(), self.guardian()
            os.kill(pid, signal.SIGTERM)
            ended(pid)
            if guardian != os.getpid():
                ended(guardian)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(guardian, 0)

    def processes(self) -> dict[int, str]:
        """Processes of this place: those that work in it or speak of it."""
        found = {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            if pid == os.getpid():
                continue
            with contextlib.suppress(OSError):
                proc = Path(f"/proc/{pid}")
                words = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                environ = (proc / "environ").read_bytes()
                speaks = f"RUNPHI_RUN_DIR={self.run_dir}".encode() in environ or str(self.path) in words
                if words and (speaks or os.readlink(proc / "cwd").startswith(str(self.path))):
                    found[pid] = words[:200]
        return found

    def cgroups(self) -> list[Path]:
        return [
            path for top in Path("/sys/fs/cgroup").glob(f"*{self.cgroup}") for path in top.iterdir() if path.is_dir()
        ]

    def close(self) -> list[str]:
        """Delete all containers and end the supervisor; return what is left."""
        left: list[str] = []
        if (self.run_dir / "supervisor.pid").exists():
            for container in self.containers:
                self.call("delete", "--force", container.name, root=container.root)
            records = [path.name for path in self.run_dir.iterdir() if path.is_dir()]
            left += [f"record {name}" for name in records]
            links = [str(path) for path in self.path.glob("root*/*")]
            left += [f"link {link}" for link in links]
            # the lines of the hypervisor's own console are no container's, so they stay
            logs = [path for path in self.path.glob("log/*") if path.name.removesuffix(".1") != hypervisor.NAME]
            left += [f"log {path}" for path in logs]
        for container in self.containers:
            container.close()
        left += [f"supervisor said: {line}" for line in self.log().splitlines() if "Traceback" in line]
        # A client that came back may have started a supervisor beside its guardian's: it finds that out and ends, or it
        # is slow and takes over from the one that ends here.
        settled = time.monotonic() + SETTLE
        self.end_supervisor()
        while self.processes() and time.monotonic() < settled:
            time.sleep(0.02)
            self.end_supervisor()
        for pid, words in self.processes().items():
            left.append(f"process {pid}: {words}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        left += [f"cgroup {path}" for path in self.cgroups()]
        for top in Path("/sys/fs/cgroup").glob(f"*{self.cgroup}"):
            for path in [*self.cgroups(), top]:
                with contextlib.suppress(OSError):
                    path.rmdir()
        if left:
            left.append(self.log())
        shutil.rmtree(self.path, ignore_errors=True)
        return left


class Container:
    """A container and the engine's ends of its stdio."""

    def __init__(self, place: Place, name: str, root: Path) -> None:
        self.place = place
        self.name = name
        self.root = root
        self.seen = b""
        self.pid = 0
        self.status: int | None = None
        self.stdin = self.stdout = -1

    def create(self, bundle: Path, words: tuple[str, ...]) -> None:
        stdin, self.stdin = os.pipe()
        self.stdout, stdout = os.pipe()
        pid_file = self.place.path / f"pid-{next(self.place.numbers)}"
        with tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                [RUNPHI, "--root", str(self.root), "create", "--bundle", str(bundle), "--pid-file", str(pid_file),
                 *words, self.name],
                env=self.place.env, stdin=stdin, stdout=stdout, stderr=err, timeout=PATIENCE, check=False,
            )  # fmt: skip
            os.close(stdin)
            os.close(stdout)
            err.seek(0)
            self.error = err.read()
        self.created = done.returncode
        if done.returncode == 0:
            assert self.error == ""
            text = pid_file.read_text()
            assert text.isdigit()
            self.pid = int(text)

    def must(self, *words: str, **more: Any) -> str:
        return self.place.must(*words, self.name, root=self.root, **more)

    def refused(self, *words: str) -> str:
        return self.place.refused(*words, self.name, root=self.root)

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.place.call(*words, self.name, root=self.root)

    def state(self) -> dict[str, Any]:
        return self.place.state(self.name, root=self.root)

    @property
    def record(self) -> Path:
        return Path(os.readlink(self.root / self.name))

    def vmm(self) -> int:
        return int((self.record / "vmm.pid").read_text())

    def type(self, text: bytes) -> None:
        os.write(self.stdin, text)

    def read(self, deadline: float) -> bytes:
        assert select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))[0], (
            f"nothing more came behind {self.seen[-200:]!r}\n{self.place.log()}"
        )
        return os.read(self.stdout, 1 << 16)

    def expect(self, text: bytes) -> bytes:
        """Read stdout up to and with ``text``."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            data = self.read(deadline)
            assert data, f"stdout ended before {text!r}: {self.seen[-200:]!r}\n{self.place.log()}"
            self.seen += data
        end = self.seen.index(text) + len(text)
        shown, self.seen = self.seen[:end], self.seen[end:]
        return shown

    def rest(self) -> bytes:
        """Read stdout to its end."""
        deadline = time.monotonic() + PATIENCE
        while data := self.read(deadline):
            self.seen += data
        shown, self.seen = self.seen, b""
        return shown

    def wait(self) -> int:
        """Reap the init stub, as the shim does; return the container's exit status."""
        if self.status is None:
            ended(self.pid)
            _, status = os.waitpid(self.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self.status = code if code >= 0 else 128 - code
        return self.status

    def console_log(self) -> bytes:
        path = self.place.path / "log" / self.record.name / "console.log"
        return path.read_bytes() if path.exists() else b""

    def close(self) -> None:
        for fd in (self.stdin, self.stdout):
            if fd >= 0:
                os.close(fd)
        self.stdin = self.stdout = -1
        if self.pid and self.status is None:
            with contextlib.suppress(ChildProcessError):
                self.wait()
