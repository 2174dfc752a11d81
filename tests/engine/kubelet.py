# SPDX-License-Identifier: Apache-2.0
"""What kubelet makes of a manifest: the CRI calls for a pod template, in the parts that a runtime notices.

There is no kubelet on the test machines. This follows what kubelet does, so that the manifests in
``examples/kubernetes`` are run as they are written.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from runphi_async.host.cgroup import Cgroup, Limits, hierarchies
from runphi_async.testing.containerd import CHECKOUT
from tests.engine.pods import Pod

if TYPE_CHECKING:
    from tests.engine.pods import Container, PodEngine

EXAMPLES: Final = CHECKOUT / "examples" / "kubernetes"
_UNITS: Final[dict[str, int | Fraction]] = {
    "": 1,
    "m": Fraction(1, 1000),
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
}
#: microseconds in which a CPU limit is counted
PERIOD: Final = 100_000
#: the least that the kernel takes
MIN_QUOTA: Final = 1000
MIN_SHARES: Final = 2


def documents(name: str) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return [found for found in yaml.safe_load_all((EXAMPLES / name).read_text()) if found]


def quantity(text: object) -> Fraction:
    """A resource quantity such as 250m, 64Mi or 1."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|k|M|G|Ki|Mi|Gi|)", str(text))
    assert found, f"not a quantity: {text}"
    return Fraction(found[1]) * _UNITS[found[2]]


def limits(resources: dict[str, Any]) -> dict[str, int]:
    """A container's resources as kubelet hands them on; extended resources it only counts."""
    most, least = resources.get("limits", {}), resources.get("requests", {})
    share = quantity(least.get("cpu", most.get("cpu", 0)))
    found = {"cpu_period": PERIOD, "cpu_shares": max(MIN_SHARES, int(share * 1024)), "oom_score_adj": 900}
    if "cpu" in most:
        found["cpu_quota"] = max(MIN_QUOTA, int(quantity(most["cpu"]) * PERIOD))
    if "memory" in most:
        found["memory_limit_in_bytes"] = int(quantity(most["memory"]))
    return found


class Kubelet:
    """Runs pods of one engine from their manifests."""

    def __init__(self, engine: PodEngine, runtime_class: dict[str, Any]) -> None:
        self.engine, self._class = engine, runtime_class
        self._directory = engine.run / "kubelet"
        self._groups: list[Cgroup] = []

    def run(self, template: dict[str, Any]) -> tuple[Pod, dict[str, Container]]:
        """Makes the sandbox, then creates and starts every container; returns them by name."""
        spec = template["spec"]
        assert spec["runtimeClassName"] == self._class["metadata"]["name"]
        name = self.engine.name("kube")
        sandbox = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default", "attempt": 0},
            "hostname": name,
            "log_directory": str(self.engine.run / "logs" / f"default_{name}_uid-{name}"),
            "dns_config": {"servers": ["198.51.100.53"], "searches": ["default.svc.cluster.local"]},
            "labels": {**template["metadata"].get("labels", {}), "io.kubernetes.pod.name": name},
            "annotations": template["metadata"].get("annotations", {}),
            "linux": {
                "cgroup_parent": self._group(name, spec),
                "security_context": {"namespace_options": {"network": "POD", "pid": "CONTAINER", "ipc": "POD"}},
                "overhead": limits({"limits": self._class["overhead"]["podFixed"]}),
            },
        }
        pod = Pod(self.engine, sandbox, self._class["handler"])
        return pod, {x["name"]: pod.create(self._config(name, x)).start() for x in spec["containers"]}

    def close(self) -> None:
        """Removes the pods and their cgroups."""
        self.engine.remove_containers()
        for group in self._groups:
            group.remove()
        self._groups.clear()

    def _group(self, name: str, spec: dict[str, Any]) -> str:
        """A pod's own cgroup: it may use what its containers may, and the overhead of the class."""
        group = Cgroup(f"/{self.engine.namespace}/pod-{name}", hierarchies())
        self._groups.append(group)
        group.create()
        parts = [x["resources"]["limits"]["memory"] for x in spec["containers"]]
        parts.append(self._class["overhead"]["podFixed"]["memory"])
        group.apply(Limits(memory_bytes=int(sum(map(quantity, parts)))))
        return group.path

    def _config(self, pod: str, container: dict[str, Any]) -> dict[str, Any]:
        name = container["name"]
        return {
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": container["image"]},
            "command": container.get("command", []),
            "args": container.get("args", []),
            "envs": [{"key": x["name"], "value": x["value"]} for x in container.get("env", [])],
            "mounts": [
                {"container_path": path, "host_path": str(self._file(pod, name, path))}
                for path in ("/etc/hosts", "/dev/termination-log")
            ],
            "labels": {"io.kubernetes.container.name": name},
            "annotations": {
                "io.kubernetes.container.hash": "0",
                "io.kubernetes.container.restartCount": "0",
                "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
            },
            "log_path": f"{name}/0.log",
            "stdin": container.get("stdin", False),
            "tty": container.get("tty", False),
            "linux": {
                "resources": limits(container.get("resources", {})),
                "security_context": {
                    "namespace_options": {"network": "POD", "pid": "CONTAINER", "ipc": "POD"},
                },
            },
        }

    def _file(self, pod: str, container: str, path: str) -> Path:
        """A file that kubelet mounts into every container."""
        file = self._directory / pod / container / Path(path).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("127.0.0.1 localhost\n" if path == "/etc/hosts" else "")
        return file
