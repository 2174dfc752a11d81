# SPDX-License-Identifier: Apache-2.0
"""A private dockerd on a private containerd: no bridge, no firewall rules, nothing of the system's docker."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from runphi_async.testing.containerd import (
    BOOT_DEADLINE,
    RUNPHI,
    STOP_DEADLINE,
    EngineError,
    PrivateContainerd,
    overlay_works,
    wait_until,
)
from tests.engine.cli import CommandLine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Docker(CommandLine):
    """dockerd with this project's runtime under the name ``runphi``."""

    program = "/usr/bin/docker"
    daemon = "/usr/sbin/dockerd"
    traces: ClassVar[Sequence[Path]] = (Path("/run/docker/plugins"), Path("/run/docker"))

    def __init__(self, store: Path, run: Path, namespace: str, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__(store, run, namespace, env=env)
        self._containerd = PrivateContainerd(store / "c", run / "c", namespace, env=env)
        self.run_dir = self._containerd.run_dir
        self.env = {**self._containerd.env, "DOCKER_CONFIG": str(run / "client")}
        self._socket = run / "docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, images: Sequence[Path]) -> None:
        """Starts containerd and dockerd and loads the images.

        :raises EngineError: dockerd does not come up here; the text has its own words.
        """
        for directory in (self.store, self.run):
            directory.mkdir(parents=True, mode=0o700)
        self._containerd.start()
        self.launch()
        for image in images:
            self.must("load", "--quiet", "--input", str(image), timeout=300.0)

    def add_runtime(self, name: str, path: Path) -> None:
        """Names one more runtime in daemon.json and lets the daemon read that again."""
        assert self._process is not None
        config = self.run / "daemon.json"
        settings = json.loads(config.read_text())
        settings["runtimes"][name] = {"path": str(path)}
        config.write_text(json.dumps(settings))
        self._process.send_signal(signal.SIGHUP)

    def _settings(self) -> dict[str, object]:
        return {
            "data-root": str(self.store / "d"),
            "exec-root": str(self.run / "exec"),
            "pidfile": str(self.run / "docker.pid"),
            "hosts": [f"unix://{self._socket}"],
            "containerd": str(self._containerd.socket),
            "containerd-namespace": self.namespace,
            "containerd-plugins-namespace": f"{self.namespace}-plugins",
            "deprecated-key-path": str(self.run / "key.json"),
            "storage-driver": "overlay2" if overlay_works(self.store) else "vfs",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
            "ip-masq": False,
            "live-restore": True,
            "runtimes": {"runphi": {"path": str(RUNPHI)}},
        }

    def launch(self) -> None:
        """Starts dockerd alone."""
        config, output = self.run / "daemon.json", self.run / "dockerd.log"
        config.write_text(json.dumps(self._settings(), indent=2))
        with output.open("ab") as log:
            self._process = subprocess.Popen(
                [self.daemon, "--config-file", str(config)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, BOOT_DEADLINE, "dockerd to answer")
        except EngineError as exc:
            self.halt()
            tail = "\n".join(output.read_text(errors="replace").splitlines()[-5:])
            raise EngineError(f"cannot start dockerd: {exc}; its last words:\n{tail}") from exc

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise EngineError("it ended at once")
        return self.call("version").returncode == 0

    def halt(self) -> None:
        """Ends dockerd alone: containers go on."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def command(self, *args: str) -> list[str]:
        return [self.program, "--host", f"unix://{self._socket}", *args]

    def daemons(self) -> set[int | None]:
        return {self.supervisor_pid(), self._containerd.pid, self._process.pid if self._process else None}

    def stop(self) -> list[str]:
        """Removes the containers, ends both daemons; returns what is left over all the same."""
        if self._process is not None:
            self.remove_containers()
        self.halt()
        self._unmount_own()
        left = [*self._containerd.stop(), *self.clean()]
        self.erase()
        return left

    def _unmount_own(self) -> None:
        """Unmounts what dockerd leaves: its store mounted on itself, and the host's network once it was used."""
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for point in (self.store / "d" / "overlay2", self.store / "d", self.run / "exec" / "netns" / "default"):
            if str(point) in mounted:
                subprocess.run(["umount", point], check=True)
