# SPDX-License-Identifier: Apache-2.0
"""What the tests in dom0 share: a supervisor of their own on the real Xen, its bundles, and looks at its domains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.system import place as places
from tests.xen.install import HOME, SHARE

if TYPE_CHECKING:
    from tests.system.place import Container

INMATE = Path(HOME) / "inmates" / "demo-xen-x86_64.elf"
#: a bridge that containers may use; the test that needs it makes it
BRIDGE = "xentest0"
CONFIG = f"""
backend = "xen"
[hypervisor]
console = "exec:tail -n 0 -F /var/log/xen/console/hypervisor.log"
[xen]
bridges = ["{BRIDGE}"]
devices = ["0000:00:1f.7", "one"]
kernel = "{SHARE}/guest/vmlinux"
initrd = "{SHARE}/guest/initrd-xen"
"""


class XenPlace(places.Place):
    """A place whose containers are domains."""

    def domains(self) -> list[str]:
        """Names of all domains but dom0."""
        text = subprocess.run(["xl", "list"], capture_output=True, text=True, check=True).stdout
        return [line.split()[0] for line in text.splitlines()[2:]]

    def has_domain(self, name: str) -> bool:
        """Whether there is a domain of this container."""
        return any(domain.startswith(f"{name}.") for domain in self.domains())

    def domain(self, name: str) -> tuple[int, str]:
        """Number and state letters of a container's domain."""
        text = subprocess.run(["xl", "list"], capture_output=True, text=True, check=True).stdout
        for line in text.splitlines():
            if line.startswith(f"{name}."):
                return int(line.split()[1]), line.split()[4]
        raise AssertionError(f"no domain of {name}:\n{text}\n{self.log()}")

    def linux(self, name: str, script: str, **more: Any) -> Path:
        """Make a bundle of a busybox image that runs ``script`` in a Linux guest."""
        bundle = self.path / "bundles" / name
        rootfs = bundle / "rootfs"
        for directory in ("bin", "proc", "sys", "dev", "tmp", "run"):
            (rootfs / directory).mkdir(parents=True)
        shutil.copy("/bin/busybox", rootfs / "bin" / "busybox")
        for applet in ("sh", "cat", "echo", "sleep", "id", "stat", "trap", "mount", "stty", "seq"):
            (rootfs / "bin" / applet).symlink_to("busybox")
        (rootfs / "marker").write_text("of the image\n")
        os.chown(rootfs / "marker", 1234, 4321)
        config = {
            "ociVersion": "1.0.2",
            "hostname": "guest-host",
            "process": {
                "terminal": more.get("terminal", False), "user": {"uid": 0, "gid": 0}, "cwd": "/",
                "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"],
            },
            "root": {"path": "rootfs"},
            "annotations": {"org.runphi.linux": "1", **more.get("annotations", {})},
            "linux": {"cgroupsPath": f"{self.cgroup}/{name}", "namespaces": more.get("namespaces", [])},
            "mounts": more.get("mounts", []),
        }  # fmt: skip
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle


def made(place: XenPlace, name: str, **more: Any) -> Container:
    """Create a container of the demo inmate."""
    bundle = place.bundle(name, backend="xen", **more)
    return place.create(name, made=bundle)


def running(place: XenPlace, name: str, **more: Any) -> Container:
    """Create and start one; it is at its prompt."""
    container = made(place, name, **more)
    assert container.created == 0, container.error
    container.must("start")
    container.expect(b"runPHI demo inmate, x86_64 (Xen)\r\n> ")
    return container
