# SPDX-License-Identifier: Apache-2.0
"""What is played with both runtimes without an engine: the verbs themselves, as a person or an engine calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING

from runphi_async.testing.containerd import wait_until
from tests.engine.harness import ANSWER, RUNC
from tests.engine.same import NAME, Side

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.harness import Engine


class VerbSide(Side):
    """One runtime called by hand on a bundle with busybox."""

    def __init__(self, engine: Engine, runtime: Path, place: Path) -> None:
        super().__init__((str(runtime),))
        self._env, self._runtime = engine.client_env, runtime
        self.bundle, self._root, self._log = place / "bundle", place / "root", place / "log"
        self._cgroup = f"/{engine.namespace}/verbs"
        rootfs = self.bundle / "rootfs"
        if not rootfs.exists():
            for directory in ("bin", "dev", "proc", "sys"):
                (rootfs / directory).mkdir(parents=True)
            shutil.copy(shutil.which("busybox") or "/bin/busybox", rootfs / "bin" / "busybox")
            subprocess.run([RUNC, "spec"], cwd=self.bundle, check=True)

    def configure(self, *args: str, terminal: bool = False) -> None:
        """Makes the bundle's process."""
        path = self.bundle / "config.json"
        spec = json.loads(path.read_text())
        spec["process"] |= {"terminal": terminal, "args": ["/bin/busybox", *args]}
        spec["linux"]["cgroupsPath"] = self._cgroup
        path.write_text(json.dumps(spec))

    def call(self, *args: str, stdin: str = "") -> str:
        """One verb; its output goes to files, because the container inherits what create is given."""
        words: list[str | Path] = [
            self._runtime,
            "--root",
            self._root,
            "--log",
            self._log,
            "--log-format",
            "json",
            *args,
        ]
        temporary = tempfile.TemporaryFile
        with temporary("w+") as given, temporary("w+") as out, temporary("w+") as err:
            given.write(stdin)
            given.seek(0)
            done = subprocess.run(
                words, cwd=self.bundle, env=self._env, stdin=given, stdout=out, stderr=err, timeout=ANSWER, check=False
            )
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read())
        self.note(" ".join(args), (done.returncode, self.alike(texts[1])))
        logged = [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        self.note("logged", [(line["level"], self.alike(line["msg"])) for line in logged])
        return texts[0]

    def clear(self) -> None:
        """Removes what a scenario left."""
        words: list[str | Path] = [self._runtime, "--root", self._root, "delete", "--force", NAME]
        subprocess.run(words, env=self._env, capture_output=True, check=True)

    def state(self) -> None:
        """Writes down the state, without what differs."""
        found = json.loads(self.call("state", NAME))
        self.note("state", {key: value for key, value in found.items() if key not in ("pid", "created")})
        self.note("has pid", found["pid"] > 0)

    def await_status(self, status: str) -> None:
        """Waits until the runtime reports a status."""
        words: list[str | Path] = [self._runtime, "--root", self._root, "state", NAME]

        def reached() -> bool:
            done = subprocess.run(words, env=self._env, capture_output=True, text=True, check=True)
            return bool(json.loads(done.stdout)["status"] == status)

        wait_until(reached, ANSWER, f"the container to be {status}")


def life(side: VerbSide) -> None:
    side.configure("sleep", "1000")
    pid_file = side.bundle / "pid"
    side.call("create", "--pid-file", str(pid_file), NAME)
    side.note("pid file", pid_file.read_text().isdigit())
    side.state()
    side.call("create", NAME)
    side.call("start", NAME)
    side.state()
    side.call("start", NAME)
    side.note("processes", len(json.loads(side.call("ps", "--format", "json", NAME))))
    side.call("delete", NAME)
    side.call("pause", NAME)
    side.state()
    side.call("resume", NAME)
    side.call("resume", NAME)
    side.call("kill", NAME, "WINCH")
    side.call("kill", NAME, "NOSUCH")
    side.call("kill", NAME, "9")
    side.await_status("stopped")
    side.state()
    side.call("kill", NAME, "9")
    side.call("kill", "--all", NAME, "9")
    side.call("start", NAME)
    side.call("exec", NAME, "/bin/busybox", "true")
    side.call("delete", NAME)
    side.call("delete", "--force", NAME)


def created_then_deleted(side: VerbSide) -> None:
    side.configure("sleep", "1000")
    side.call("create", NAME)
    side.call("delete", NAME)
    side.call("state", NAME)


def run_in_the_foreground(side: VerbSide) -> None:
    side.configure("sh", "-c", "echo out; echo err >&2; cat; exit 9")
    side.note("output", side.call("run", NAME, stdin="given"))
    side.configure("missing")
    side.call("run", NAME)


def further_processes(side: VerbSide) -> None:
    side.configure("sleep", "1000")
    side.call("run", "--detach", NAME)
    side.note("output", side.call("exec", NAME, "/bin/busybox", "echo", "inside"))
    side.call("exec", NAME, "/bin/busybox", "false")
    side.call("exec", NAME, "/missing")
    side.call("exec", "--process", "/missing", NAME)
    limits = {"cpu": {"shares": 300}, "pids": {"limit": 30}}
    side.call("update", "--resources", "-", NAME, stdin=json.dumps(limits))
    side.call("update", "--resources=-", NAME, stdin="no json")
    side.note("numbers", sorted(json.loads(side.call("events", "--stats", NAME))["data"]))
    side.note("listed", side.call("list", "--quiet"))
    side.note("listed", [sorted(row) for row in json.loads(side.call("list", "--format=json"))])
    side.call("checkpoint", "--image-path", "/tmp/none", NAME)


def unknown_containers(side: VerbSide) -> None:
    for verb in ("start", "state", "pause", "resume", "ps", "delete"):
        side.call(verb, NAME)
    side.call("kill", NAME, "9")
    side.call("exec", NAME, "true")
    side.call("update", "--cpu-share", "10", NAME)
    side.call("delete", "--force", NAME)


def terminals_that_do_not_fit(side: VerbSide) -> None:
    side.configure("sh", terminal=True)
    side.call("create", NAME)
    side.configure("sh")
    side.call("create", "--console-socket", "/missing/socket", NAME)


SCENARIOS: tuple[Callable[[VerbSide], None], ...] = (
    life,
    created_then_deleted,
    run_in_the_foreground,
    further_processes,
    unknown_containers,
    terminals_that_do_not_fit,
)
