# SPDX-License-Identifier: Apache-2.0
"""Linux guests for tests: bundles with busybox, and a network of the test's own in network namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backends import configured
from backends.guest.initrd import Entry, archive
from backends.qemu.settings import Qemu
from tests.system.place import until

if TYPE_CHECKING:
    from tests.system.place import Container, Place

BUSYBOX: Final = shutil.which("busybox") or "/bin/busybox"
#: Seconds for a kernel to come to our init in software: 3 on an idle machine, 30 and more where others leave it a tenth
#: of a core. It is as long as the supervisor waits, and whatever comes after it has a limit of its own.
BOOT: Final = 120.0
NETNS: Final = Path("/run/netns")


def linux_bundle(place: Place, name: str, script: str, **more: Any) -> Path:
    """Make a bundle whose process is a shell script in a Linux guest."""
    env = ["LINUX=1", "PATH=/bin"]
    bundle = place.bundle(name, process={"env": env, "args": ["/bin/sh", "-c", script]}, **more)
    fill_rootfs(bundle / "rootfs")
    return bundle


def fill_rootfs(rootfs: Path) -> None:
    """Make a root file system of busybox."""
    (rootfs / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, rootfs / "bin" / "busybox")
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            os.symlink("busybox", rootfs / "bin" / applet)


def linux(place: Place, name: str, script: str, **more: Any) -> Container:
    """Create and start a Linux guest that runs a shell script."""
    container = place.create(name, made=linux_bundle(place, name, script, **more))
    assert container.created == 0, container.error
    container.must("start")
    return container


def await_init(container: Container) -> None:
    """Wait until a started guest's kernel has come to our init."""
    until(lambda: b"init" in (container.record / "ctl.log").read_bytes(), "the guest's init", BOOT)


class Lan:
    """A bridge in a namespace of its own, and namespaces with an ``eth0`` on it: what a CNI plugin makes."""

    def __init__(self, mtu: int = 1500) -> None:
        self.mtu = mtu
        self._names: list[str] = []
        self.bridge = self._add("bridge")
        self.ip(self.bridge, "link add br0 type bridge")
        self.ip(self.bridge, f"link set br0 mtu {mtu} up")
        self.ip(self.bridge, "addr add 10.77.0.1/24 dev br0")
        self.ip(self.bridge, "addr add fd00:77::1/64 dev br0 nodad")

    def _add(self, stem: str) -> str:
        name = f"rpn{os.getpid()}-{stem}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._names.append(name)
        return name

    def ip(self, netns: str, words: str) -> str:
        """Run ``ip`` in a namespace."""
        done = subprocess.run(["ip", "-n", netns, *words.split()], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def container(self, number: int) -> str:
        """Make a namespace as for a container; returns its name."""
        netns = self._add(str(number))
        self.ip(netns, "link set lo up")
        self.plug(netns, number)
        return netns

    def adopt(self, process: int) -> str:
        """Give the network namespace of a process a name, as docker does; returns it."""
        name = f"rpn{os.getpid()}-of-{process}"
        subprocess.run(["ip", "netns", "attach", name, str(process)], check=True)
        self._names.append(name)
        return name

    def plug(self, netns: str, number: int) -> None:
        """Give a namespace an interface with address and routes."""
        self.ip(self.bridge, f"link add port{number} mtu {self.mtu} type veth peer name eth0 netns {netns}")
        self.ip(self.bridge, f"link set port{number} mtu {self.mtu} master br0 up")
        self.ip(netns, f"link set eth0 mtu {self.mtu} up")
        self.ip(netns, f"addr add 10.77.0.{number}/24 brd + dev eth0")
        self.ip(netns, f"addr add fd00:77::{number}/64 dev eth0 nodad")
        self.ip(netns, "route add default via 10.77.0.1 dev eth0")
        self.ip(netns, "route add 10.99.0.0/16 dev eth0 metric 7")

    def run(self, *command: str, said: str = "") -> str:
        """Run a command of busybox in the bridge's namespace, the guests' neighbour; returns what it printed."""
        words = ["nsenter", f"--net={NETNS / self.bridge}", BUSYBOX, *command]
        return subprocess.run(
            words, input=said, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60
        ).stdout

    def shape(self, netns: str) -> tuple[list[str], list[str]]:
        """Names of the interfaces and kinds of queues in a namespace: what must be the same afterwards."""
        found = []
        for command in (["ip", "-n", netns, "-j", "link"], ["tc", "-n", netns, "-j", "qdisc"]):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
        links, queues = found
        return sorted(x["ifname"] for x in links), sorted(f"{x['dev']} {x['kind']}" for x in queues)

    def mac(self, netns: str, name: str = "eth0") -> str:
        """MAC address of an interface."""
        (found,) = json.loads(self.ip(netns, f"-j link show {name}"))
        return str(found["address"])

    def close(self) -> None:
        """Remove the namespaces and with them all interfaces."""
        for name in reversed(self._names):
            subprocess.run(["ip", "netns", "delete", name], check=False)


def joined(netns: str) -> dict[str, Any]:
    """``linux`` of a config.json that joins a namespace."""
    return {"namespaces": [{"type": "network", "path": str(NETNS / netns)}]}


def network_ramdisk(init: bytes) -> bytes:
    """A RAM disk with busybox, a script as its init, and the modules a guest's network needs (/modules.order)."""
    with tempfile.TemporaryDirectory() as folder:
        with open(configured.load().of(Qemu).initrd, "rb") as file:
            unpack = ["cpio", "--extract", "--quiet", "--make-directories", "modules*"]
            subprocess.run(unpack, stdin=file, cwd=folder, check=True)
        listed = (Path(folder) / "modules.order").read_text() + (Path(folder) / "modules.net").read_text()
        names = [name.lstrip("/") for name in listed.split()]
        modules = [Entry(name, 0o100644, Path(folder, name).read_bytes()) for name in names]
    entries = [
        *(Entry(name, 0o040755) for name in ("bin", "dev", "modules")),
        Entry("dev/console", 0o020600, device=(5, 1)),
        Entry("bin/busybox", 0o100755, Path(BUSYBOX).read_bytes()),
        Entry("bin/sh", 0o120777, b"busybox"),
        Entry("init", 0o100755, init),
        Entry("modules.order", 0o100644, listed.encode()),
        *modules,
    ]
    return archive(entries)
