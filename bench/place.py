# SPDX-License-Identifier: Apache-2.0
"""Where a benchmark runs: a private directory, containerd, supervisor and cgroup, all gone at the end."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.measure import BenchError
from runphi_async.testing.containerd import PLAIN_ENV, RUNPHI, PrivateContainerd

#: least RAM the runtime gives to a bare-metal guest
SMALLEST: Final = 4 << 20
_PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)
_END_DEADLINE_MS: Final = 20_000


class Place:
    """Everything private to one benchmark run.

    :param built: output of bin/build-inmates and bin/build-images, in ``inmates`` and ``images``.
    """

    def __init__(self, built: Path, *, quick: bool) -> None:
        self.built, self.quick = built, quick
        self.path = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp"))
        config = self.path / "config.toml"
        config.write_text(f'[log]\ndir = "{self.path}/log"\n')
        runc = shutil.which("runc", path=PLAIN_ENV["PATH"])
        if runc is None:
            raise BenchError("cannot find runc")
        self.runc = runc
        self.runphi = str(RUNPHI)
        self.engine = PrivateContainerd(
            self.path / "s", self.path / "r", f"rb{os.getpid()}", env={"RUNPHI_CONFIG": str(config)}
        )
        self.engine.run.mkdir(mode=0o700)
        self.env = self.engine.env
        self._running = False
        # What a runtime starts becomes our child, as it becomes the shim's under an engine.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def containerd(self) -> PrivateContainerd:
        """The private containerd with the images; started by the first case that needs it."""
        if not self._running:
            self.engine.start()
            self.engine.import_images(sorted((self.built / "images").glob("*.tar")))
            self._running = True
        return self.engine

    def close(self) -> list[str]:
        """Ends all that was started; returns what had to be forced."""
        left = self.engine.stop()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        shutil.rmtree(self.path, ignore_errors=True)
        return left

    def _spec(self) -> dict[str, Any]:
        bundle = self.path / "spec"
        if not bundle.exists():
            bundle.mkdir()
            subprocess.run([self.runc, "spec"], cwd=bundle, check=True)
        spec: dict[str, Any] = json.loads((bundle / "config.json").read_text())
        return spec

    def _bundle(self, name: str, rootfs: Path, args: list[str], env: list[str], memory: int | None) -> str:
        spec = copy.deepcopy(self._spec())
        spec["process"] |= {"terminal": False, "args": args, "env": [f"PATH={PLAIN_ENV['PATH']}", *env]}
        spec["root"] = {"path": str(rootfs), "readonly": True}
        spec["linux"]["cgroupsPath"] = f"/{self.engine.namespace}/{name}"
        if memory is not None:
            spec["linux"]["resources"]["memory"] = {"limit": memory}
        bundle = self.path / "bundles" / name
        bundle.mkdir(parents=True, exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(spec))
        return str(bundle)

    def inmate_bundle(self, name: str, memory: int | None = None) -> str:
        """A bundle with the demo inmate."""
        rootfs = self.path / "inmate"
        if not rootfs.exists():
            (rootfs / "boot").mkdir(parents=True)
            shutil.copy(self.built / "inmates" / "demo-x86_64.elf", rootfs / "boot" / "inmate.elf")
        return self._bundle(name, rootfs, ["/x"], ["INMATE=/boot/inmate.elf"], memory)

    def busybox_bundle(self, name: str) -> str:
        """A bundle whose process sleeps."""
        rootfs = self.path / "busybox"
        if not rootfs.exists():
            for directory in ("bin", "dev", "proc", "sys"):
                (rootfs / directory).mkdir(parents=True)
            shutil.copy(shutil.which("busybox") or "/bin/busybox", rootfs / "bin" / "busybox")
        return self._bundle(name, rootfs, ["/bin/busybox", "sleep", "1000"], [], None)


def await_end(pid: int) -> None:
    """Waits for the end of a container's first process, and reaps it as an engine does."""
    handle = os.pidfd_open(pid)
    try:
        if not _readable(handle):
            raise BenchError(f"process {pid} does not end")
    finally:
        os.close(handle)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(_END_DEADLINE_MS))
