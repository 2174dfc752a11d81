# SPDX-License-Identifier: Apache-2.0
"""A private containerd with its CRI plugin, and pods in it as kubelet would make them.

It lives in a network namespace of its own, so that nothing which a network plugin does reaches the machine: links,
routes and settings go with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from runphi_async.testing.containerd import CHECKOUT, RUNPHI, wait_until
from tests.engine.cri import Cri, CriError, Stream, stream
from tests.engine.harness import Engine

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

#: where CRI looks for images and containers
NAMESPACE: Final = "k8s.io"
#: where Kubernetes thinks that images without a registry come from
REGISTRY: Final = "docker.io/"
DEMO: Final = f"{REGISTRY}runphi/demo:latest"
BUSYBOX: Final = f"{REGISTRY}runphi/busybox:latest"
PAUSE: Final = f"{REGISTRY}runphi/pause:latest"
HANDLER: Final = "runphi"
INMATE: Final = {"org.runphi.inmate": "/boot/inmate.elf"}
CNI_PLUGINS: Final = "/usr/lib/cni"
#: what the network plugins' library makes on the machine, whatever it is told
CNI_CACHE: Final = (Path("/var/lib/cni/results"), Path("/var/lib/cni"))
#: addresses for documentation, which no machine has
SUBNET: Final = "198.51.100.0/24"
#: longest time a guest may take to boot and to answer: software emulation beside much else to do
ANSWER: Final = 100.0
CLONE_NEWNET: Final = 0x40000000
#: a network namespace in which loopback works
LAUNCHER: Final = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")

CONFIG: Final = """\
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [
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

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{runc}"
"""
#: the handler as people are told to write it, and the line of it that is another one here
HANDLER_CONFIG: Final = CHECKOUT / "examples" / "kubernetes" / "containerd.toml"
BINARY: Final = 'BinaryName = "/usr/sbin/runphi"'

#: time, stream, whole line or part of one, text
LOG_LINE: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(?:Z|[+-]\d\d:\d\d) (stdout|stderr) ([FP]) (.*)", re.DOTALL
)


class LogLine(NamedTuple):
    """One line of a log as kubelet reads it."""

    stream: str
    tag: str
    text: str


class Pod:
    """A pod sandbox."""

    def __init__(self, engine: PodEngine, config: dict[str, Any], handler: str) -> None:
        self.engine, self.config = engine, config
        self._attempts = itertools.count()
        answer = engine.cri.call("RunPodSandbox", config=config, runtime_handler=handler)
        self.id: str = answer["pod_sandbox_id"]

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.engine.cri.call("PodSandboxStatus", pod_sandbox_id=self.id)["status"]
        return found

    def info(self) -> dict[str, Any]:
        """What containerd tells beside the status: pid, runtime, and config.json of the pause container."""
        answer = self.engine.cri.call("PodSandboxStatus", pod_sandbox_id=self.id, verbose=True)
        found: dict[str, Any] = json.loads(answer["info"]["info"])
        return found

    def stop(self) -> None:
        self.engine.cri.call("StopPodSandbox", pod_sandbox_id=self.id)

    def remove(self) -> None:
        self.engine.cri.call("RemovePodSandbox", pod_sandbox_id=self.id)

    def container(
        self,
        image: str = DEMO,
        *command: str,
        name: str = "main",
        annotations: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        resources: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Container:
        """CreateContainer, with what kubelet fills in."""
        attempt = next(self._attempts)
        config = {
            "metadata": {"name": name, "attempt": attempt},
            "image": {"image": image},
            "command": list(command or ("/x",)),
            "envs": [{"key": key, "value": value} for key, value in (env or {}).items()],
            "annotations": dict(annotations or {}),
            "log_path": f"{name}/{attempt}.log",
            "linux": {
                "resources": dict(resources or {}),
                "security_context": {"namespace_options": {**self._namespaces(), "pid": "CONTAINER"}},
            },
            **more,
        }
        return self.create(config)

    def create(self, config: dict[str, Any]) -> Container:
        """CreateContainer with this configuration; kubelet makes the directory of its log."""
        log = os.path.join(self.config["log_directory"], config["log_path"])
        os.makedirs(os.path.dirname(log), exist_ok=True)
        answer = self.engine.cri.call(
            "CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self.config
        )
        return Container(self.engine, answer["container_id"], log)

    def _namespaces(self) -> dict[str, str]:
        found: dict[str, str] = self.config["linux"]["security_context"]["namespace_options"]
        return found


class Container:
    """A container of a pod."""

    def __init__(self, engine: PodEngine, name: str, log: str) -> None:
        self.engine, self.id, self.log_file = engine, name, log

    def call(self, method: str, **request: Any) -> dict[str, Any]:
        return self.engine.cri.call(method, container_id=self.id, **request)

    def start(self) -> Container:
        self.call("StartContainer")
        return self

    def stop(self, timeout: int = 0) -> None:
        self.call("StopContainer", timeout=timeout)

    def remove(self) -> None:
        self.call("RemoveContainer")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call("ContainerStatus")["status"]
        return found

    @property
    def state(self) -> str:
        return str(self.status()["state"]).removeprefix("CONTAINER_")

    def info(self) -> dict[str, Any]:
        """What containerd tells beside the status: pid, snapshot, and the whole config.json."""
        found: dict[str, Any] = json.loads(self.call("ContainerStatus", verbose=True)["info"]["info"])
        return found

    def exited(self) -> int:
        """Waits for the end; returns the exit code."""
        wait_until(lambda: self.state == "EXITED", ANSWER, "the container's end")
        return int(self.status()["exit_code"])

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call("ContainerStats")["stats"]
        return found

    def log(self) -> list[LogLine]:
        """The log that containerd writes for kubelet."""
        with open(self.log_file, encoding="utf-8", newline="\n") as file:
            lines = file.read().splitlines()
        form = re.compile(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(?:Z|[+-]\d\d:\d\d) (stdout|stderr) ([FP]) (.*)", re.DOTALL
        )
        found = [form.fullmatch(line) for line in lines]
        assert all(found), lines
        return [LogLine(*match.groups()) for match in found if match is not None]

    def text(self) -> str:
        """The log as ``kubectl logs`` shows it, without carriage returns."""
        return "".join(x.text + ("\n" if x.tag == "F" else "") for x in self.log()).replace("\r", "")

    def says(self, wanted: str) -> None:
        """Waits until the log has these words."""
        wait_until(lambda: wanted in self.text(), ANSWER, f"{wanted!r} in the log")

    def attach(self, *, tty: bool = False) -> AbstractContextManager[Stream]:
        """Attach, and the stream behind its URL."""
        url = self.call("Attach", stdin=True, tty=tty, stdout=True, stderr=not tty)["url"]
        return stream(url, self.engine.connect(url), ANSWER)

    def exec(self, *command: str) -> AbstractContextManager[Stream]:
        """Exec, and the stream behind its URL."""
        url = self.call("Exec", cmd=list(command), stdin=False, tty=False, stdout=True, stderr=True)["url"]
        return stream(url, self.engine.connect(url), ANSWER)


class PodEngine(Engine):
    """The session's containerd with its CRI plugin."""

    def __init__(self, store: Path, run: Path, env: Mapping[str, str]) -> None:
        super().__init__(store, run, f"rpcri{os.getpid()}", env)
        self.launcher = LAUNCHER
        self.runc_root = run / "runc" / NAMESPACE
        self._new = [path for path in CNI_CACHE if not path.exists()]
        self._cri: Cri | None = None

    @property
    def cri(self) -> Cri:
        """The connection to the CRI plugin."""
        if self._cri is None:
            self._cri = Cri(self.socket)
        return self._cri

    def command(self, *args: str) -> list[str]:
        """The full command line of a ``ctr`` call; our own namespace is but the name of the cgroup."""
        return ["ctr", "--address", str(self.socket), "--namespace", NAMESPACE, *args]

    def configuration(self) -> str:
        cni = self.run / "cni"
        cni.mkdir(exist_ok=True)
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "ptp",
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.run / "ipam"),
                        "ranges": [[{"subnet": SUBNET}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                }
            ],
        }
        (cni / "pods.conflist").write_text(json.dumps(network))
        own = CONFIG.format(
            root=self.store / "root",
            state=self.run / "state",
            socket=self.socket,
            pause=PAUSE,
            plugins=CNI_PLUGINS,
            cni=cni,
            snapshotter=self.snapshotter,
            runc=self.run / "runc",
        )
        ours = f'BinaryName = "{RUNPHI}"\n    Root = "{self.run}/runc"'
        return own + HANDLER_CONFIG.read_text().replace(BINARY, ours)

    def _answers(self) -> bool:
        """Whether the CRI plugin answers too: it starts behind containerd itself."""
        if not super()._answers():
            return False
        try:
            conditions = self.cri.call("Status")["status"]["conditions"]
        except CriError:
            return False
        return all(condition["status"] for condition in conditions)

    def load(self, archives: list[Path]) -> None:
        """Imports images and gives them the names that Kubernetes knows them by."""
        self.import_images(archives)
        for name in self.must("images", "list", "-q").split():
            if name.startswith("runphi/"):
                self.must("images", "tag", "--force", name, REGISTRY + name)
        wait_until(lambda: all(map(self._knows, (DEMO, BUSYBOX, PAUSE))), ANSWER, "the images in the CRI plugin")

    def restart(self) -> None:
        """Ends containerd and starts it again; the shims and their containers go on."""
        self._drop()
        self.halt()
        self.start()

    def _knows(self, image: str) -> bool:
        return "image" in self.cri.call("ImageStatus", image={"image": image})

    def pod(
        self, *, handler: str = HANDLER, annotations: Mapping[str, str] | None = None, network: str = "NODE"
    ) -> Pod:
        """RunPodSandbox, with what kubelet fills in."""
        name = self.name("pod")
        config: dict[str, Any] = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default", "attempt": 0},
            "hostname": "" if network == "NODE" else name,
            "log_directory": str(self.run / "logs" / name),
            "labels": {"io.kubernetes.pod.name": name},
            "annotations": dict(annotations or {}),
            "linux": {
                "cgroup_parent": f"/{self.namespace}",
                "security_context": {
                    "namespace_options": {"network": network, "pid": "CONTAINER", "ipc": "POD"},
                },
            },
        }
        return Pod(self, config, handler)

    def connect(self, url: str) -> socket.socket:
        """A connection to a server in the engine's network namespace."""
        made: list[socket.socket] = []
        port = urlsplit(url).port
        assert self.pid is not None

        def inside() -> None:  # a thread of its own: the namespace of the others stays as it is
            with open(f"/proc/{self.pid}/ns/net", "rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_connection(("127.0.0.1", port), timeout=ANSWER))

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        assert made, f"cannot connect to {url}"
        made[0].settimeout(None)
        return made[0]

    def remove_containers(self) -> None:
        """Stops and removes every pod, and what a pod left behind."""
        for pod in self.cri.call("ListPodSandbox")["items"]:
            for verb in ("StopPodSandbox", "RemovePodSandbox"):
                self._try(verb, pod_sandbox_id=pod["id"])
        for container in self.cri.call("ListContainers")["containers"]:
            self._try("RemoveContainer", container_id=container["id"])
        super().remove_containers()

    def _try(self, method: str, **request: Any) -> None:
        try:
            self.cri.call(method, **request)
        except CriError as exc:  # what stays is reported by who looks for left-overs
            print(f"cannot clean up: {exc}")

    def stop(self) -> list[str]:
        left = super().stop()
        if self.runc_root.is_dir():
            left += [f"state of container {entry.name} in {self.runc_root}" for entry in self.runc_root.iterdir()]
        self._drop()
        for path in self._new:
            with contextlib.suppress(OSError):  # gone, or in use by another engine of these tests
                path.rmdir()
        return left

    def _drop(self) -> None:
        if self._cri is not None:
            self._cri.close()
            self._cri = None
