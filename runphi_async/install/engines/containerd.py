# SPDX-License-Identifier: Apache-2.0
"""containerd: a runtime handler of its CRI plugin, which Kubernetes names in a RuntimeClass.

``ctr`` reads none of this: it is told by ``--runc-binary``. The version of the file decides what the plugin is called:
1 (written by Docker's packages), 2 (containerd 1.3 to 1.7, read by 2.x too) and 3 (2.x).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from runphi_async.errors import RunphiError
from runphi_async.install.engines import toml

if TYPE_CHECKING:
    from collections.abc import Mapping

PATH: Final = "/etc/containerd/config.toml"
#: the CRI plugin's runtimes, by the version of the file
PLUGINS: Final[Mapping[int, str]] = {
    1: "cri",
    2: "io.containerd.grpc.v1.cri",
    3: "io.containerd.cri.v1.runtime",
}
#: a * stands for anything but a slash: the second is for what names one container of the pod
_POD: Final = ["org.runphi.*", "org.runphi.*/*"]
TABLE: Final[dict[str, Any]] = {
    "runtime_type": "io.containerd.runc.v2",
    "pod_annotations": _POD,
    "container_annotations": _POD[:1],
    "options": {"BinaryName": "/usr/sbin/runphi"},
}

#: as it is where no file says anything; without it pods that name no runtime would not start any more
RUNC: Final = {"runtime_type": "io.containerd.runc.v2"}
_RUNC_MARK: Final = "# runPHI: containerd's own runc, which it forgets as soon as a file names any runtime"


def edit(text: str) -> str:
    """Return the configuration with our runtime in it."""
    table = toml.read(text, PATH)
    if not table:
        # Without this line the file would be of version 1, which containerd 2 reads no more.
        text = f"version = 2\n{text}" if text else "version = 2\n"
        table = {"version": 2}
    version = table.get("version", 1)
    if version not in PLUGINS:
        raise RunphiError(f"cannot change {PATH}: its version is {version}", f"known: {', '.join(map(str, PLUGINS))}")
    runtimes = ["plugins", PLUGINS[version], "containerd", "runtimes"]
    if toml.at(table, runtimes) is None:
        text = toml.add(text, PATH, [*runtimes, "runc"], RUNC, _RUNC_MARK)
    options = TABLE["options"]
    if toml.at(table, [*runtimes, "runc", "options", "SystemdCgroup"]) is True:
        # kubelet and every runtime of a node must agree on who makes the cgroups
        options = {**options, "SystemdCgroup": True}
    return toml.add(text, PATH, [*runtimes, "runphi"], {**TABLE, "options": options})


def remark(text: str) -> str:
    """Return what somebody should know of this file; "" when there is nothing."""
    table = toml.read(text, PATH)
    off = table.get("disabled_plugins", [])
    if any(name in off for name in ("cri", *PLUGINS.values())):
        return "the CRI plugin is switched off there (disabled_plugins): Kubernetes cannot use this containerd"
    return ""
