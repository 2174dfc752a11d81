# SPDX-License-Identifier: Apache-2.0
"""A private podman: storage, state, configuration and locks of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from runphi_async.testing.containerd import RUNPHI, EngineError, overlay_works
from tests.engine.cli import CommandLine
from tests.engine.harness import RUNC

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: podman's own defaults are above what root may ask for where it lacks CAP_SYS_RESOURCE
CONFIG: Final = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runphi"
runtime_supports_json = ["runc", "runphi"]

[engine.runtimes]
runc = [{runc}]
runphi = [{runphi}]
"""

#: podman 5 warns on stderr at each call where there is cgroup v1
QUIET: Final = {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}


class Podman(CommandLine):
    """podman with this project's runtime under the name ``runphi``."""

    program = daemon = "podman"
    traces: ClassVar[Sequence[Path]] = (
        Path("/var/lib/containers/cache/blob-info-cache-v1.boltdb"),
        Path("/var/lib/containers/cache"),
        Path("/var/lib/containers"),
        *(
            group
            for top in sorted(Path("/sys/fs/cgroup").glob("*/"))
            for group in (top / "libpod_parent" / "conmon", top / "libpod_parent")
        ),
    )

    def __init__(self, store: Path, run: Path, namespace: str, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__(store, run, namespace, env={**QUIET, **(env or {})})
        self._driver = "overlay"
        self._pods: list[str] = []

    def start(self, images: Sequence[Path]) -> None:
        """Writes the configuration and loads the images; there is no daemon."""
        for directory in (self.store, self.run):
            directory.mkdir(parents=True, mode=0o700)
        # podman calls the runtime without the variables of the caller when a container has ended
        launcher = self.run / "runphi"
        ours = {key: value for key, value in self.env.items() if key.startswith("RUNPHI_")}
        variables = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in ours.items())
        launcher.write_text(f'#!/bin/sh\n{variables}exec {shlex.quote(str(RUNPHI))} "$@"\n')
        launcher.chmod(0o755)
        config = self.run / "containers.conf"
        config.write_text(CONFIG.format(runc=json.dumps(str(RUNC)), runphi=json.dumps(str(launcher))))
        self.env["CONTAINERS_CONF"] = str(config)
        if not overlay_works(self.store):
            self._driver = "vfs"
        # started from here, the supervisor is nobody's child: the conmon that starts it would stay as its parent
        done = self.runphi("list")
        if done.returncode:
            raise EngineError(f"cannot start the supervisor: {done.stderr}")
        for image in images:
            self.must("load", "--quiet", "--input", str(image), timeout=300.0)

    def command(self, *args: str) -> list[str]:
        places = {"--root": self.store / "root", "--runroot": self.run / "podman", "--tmpdir": self.run / "tmp"}
        options = [word for key, value in places.items() for word in (key, str(value))]
        return [self.program, *options, "--storage-driver", self._driver, *args]

    def remove_containers(self) -> None:
        if self._pods:
            self.call("pod", "rm", "--all", "--force", "--time=0")
        self.call("rm", "--all", "--force", "--time=0", "--volumes")

    def pod(self, name: str) -> str:
        """The id of a pod, whose cgroup podman leaves in the hierarchies it has no use for."""
        found = self.must("pod", "inspect", "--format", "{{.ID}}", name).strip()
        self._pods.append(found)
        return found

    def cgroups(self) -> list[Path]:
        """The directories of containers; podman keeps the one of its monitors."""
        return [group for group in super().cgroups() if group.name != "conmon"]

    def stop(self) -> list[str]:
        """Removes the containers; returns what is left over all the same."""
        self.remove_containers()
        for pod in self._pods:
            for group in Path("/sys/fs/cgroup").glob(f"*/libpod_parent/{pod}"):
                group.rmdir()
        point = self.store / "root" / "overlay"
        if os.path.ismount(point):  # podman keeps its store mounted on itself
            subprocess.run(["umount", point], check=True)
        left = self.clean()
        for top in Path("/sys/fs/cgroup").iterdir():
            for group in (top / self.namespace / "conmon", top / self.namespace):
                if group.is_dir():
                    group.rmdir()
        self.erase()
        return left
