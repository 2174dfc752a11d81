# SPDX-License-Identifier: Apache-2.0
"""What `configure --engine` writes, read by the engines themselves."""

from __future__ import annotations

import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest

from runphi_async.install.engines import containerd

if TYPE_CHECKING:
    from pathlib import Path

#: as Debian ships it, as Docker's own package does, and nothing at all
FILES = {
    "debian": 'version = 2\n\n[plugins]\n  [plugins."io.containerd.grpc.v1.cri"]\n'
    '    [plugins."io.containerd.grpc.v1.cri".cni]\n      bin_dir = "/usr/lib/cni"\n',
    "docker": '# Copyright\ndisabled_plugins = []\n#[debug]\n#  level = "info"\n',
    "none": "",
}


@pytest.mark.parametrize("name", FILES)
def test_containerd_reads_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(containerd.edit(FILES[name]))
    argv = ["containerd", "--config", str(file), "config", "dump"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    plugins = tomllib.loads(done.stdout)["plugins"]
    runtimes = plugins["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert runtimes["runphi"]["runtime_type"] == "io.containerd.runc.v2"
    assert runtimes["runphi"]["options"]["BinaryName"] == "/usr/sbin/runphi"
    assert runtimes["runphi"]["container_annotations"] == ["org.runphi.*"]
    # what is there without any file is still there, and as it was
    bare = tomllib.loads(subprocess.run(["containerd", "config", "default"], capture_output=True, text=True).stdout)
    default = bare["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
    if not (runc := runtimes["runc"]).get("sandbox_mode", "as in 1.6"):
        runc["sandbox_mode"] = "podsandbox"  # what 1.7 takes an empty one for, once it has read the file
    assert runc == {**default["runtimes"]["runc"], "options": runc["options"]}
    options = default["runtimes"]["runc"]["options"]
    assert {**options, **runtimes["runc"]["options"]} == options
