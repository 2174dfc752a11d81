# SPDX-License-Identifier: Apache-2.0
"""podman's own bridge network (netavark, aardvark-dns) with Linux guests: addresses, names, files of the engine."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from backends import configured
from backends.qemu.settings import Qemu
from tests.system.linuxkit import BUSYBOX, NETNS, fill_rootfs
from tests.system.place import RUNPHI

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.place import Place

NETAVARK: Final = Path("/usr/lib/podman/netavark")
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.path.exists(configured.load().of(Qemu).initrd), reason="needs bin/prepare-guest"),
    pytest.mark.skipif(not (shutil.which("podman") and NETAVARK.exists()), reason="needs podman and netavark"),
]

CONFIG: Final = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runphi"
runtime_supports_json = ["runphi"]

[engine.runtimes]
runphi = ["PLACE/runphi"]

[network]
network_backend = "netavark"
network_config_dir = "PLACE/networks"
"""


class Podman:
    """A podman with storage, state and host network of its own: its bridge is in a namespace of the test."""

    def __init__(self, place: Place) -> None:
        self.place, self.path = place, place.path
        self.netns = f"rpp{os.getpid()}"
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        subprocess.run(["ip", "-n", self.netns, "link", "set", "lo", "up"], check=True)
        (self.path / "containers.conf").write_text(CONFIG.replace("PLACE", str(self.path)))
        # podman calls the runtime without the variables of the caller when a container has ended
        launcher = self.path / "runphi"
        variables = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in place.env.items() if key != "PATH")
        launcher.write_text(f'#!/bin/sh\n{variables}exec {shlex.quote(RUNPHI)} "$@"\n')
        launcher.chmod(0o755)
        # started from here the supervisor is nobody else's child, and in the host's network namespace
        place.must("list")

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        places = ["--root", f"{self.path}/store", "--runroot", f"{self.path}/prun", "--tmpdir", f"{self.path}/ptmp"]
        command = ["nsenter", f"--net={NETNS / self.netns}", "podman", *places, "--network-backend", "netavark", *words]
        env = {**self.place.env, "CONTAINERS_CONF": str(self.path / "containers.conf")}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)

    def must(self, *words: str) -> str:
        done = self.call(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr, self.place.log())
        return done.stdout

    def run(self, name: str, script: str, *options: str) -> str:
        """Run a shell script in a Linux guest."""
        rootfs = self.path / "images" / name
        fill_rootfs(rootfs)
        return self.must(
            "run", "--name", name, "--network", "tnet", "--env", "LINUX=1", "--cgroups", "no-conmon",
            "--cgroup-parent", self.place.cgroup, *options, "--rootfs", str(rootfs), "/bin/sh", "-c", script,
        )  # fmt: skip

    def links(self) -> list[str]:
        done = subprocess.run(["ip", "-n", self.netns, "-j", "link"], capture_output=True, text=True, check=True)
        return sorted(link["ifname"] for link in json.loads(done.stdout))

    def close(self) -> None:
        self.call("rm", "--all", "--force", "--time=0", "--volumes")
        store = self.path / "store" / "overlay"
        if os.path.ismount(store):  # podman keeps its store mounted on itself
            subprocess.run(["umount", store], check=True)
        subprocess.run(["ip", "netns", "delete", self.netns], check=False)


@pytest.fixture
def podman(place: Place) -> Iterator[Podman]:
    made = Podman(place)
    yield made
    made.close()


def test_guests_in_podmans_network(podman: Podman) -> None:
    before = podman.links()
    podman.must("network", "create", "--subnet", "10.201.77.0/24", "tnet")
    data = podman.path / "data"
    data.mkdir()
    serve = "echo page of $(hostname) >/www/index.html; exec httpd -f -p 80 -h /www"
    podman.run("web", serve, "-d", "--hostname", "web", "--tmpfs", "/www", "--init=false")
    address = podman.must("inspect", "--format", "{{.NetworkSettings.Networks.tnet.IPAddress}}", "web").strip()
    # by its name: the engine's name server is in the resolv.conf that podman binds into the guest
    ask = r"""
    hostname; echo $(cat /etc/hostname); grep -c other /etc/hosts; cat /data/from-host; echo seen >/data/from-guest
    until nslookup web.dns.podman >/tmp/answer 2>&1; do sleep 1; done
    until printf 'GET / HTTP/1.0\r\n\r\n' | nc ADDRESS 80 >/tmp/page; do sleep 1; done
    grep -o "Address.*ADDRESS" /tmp/answer; tail -n 1 /tmp/page
    """.replace("ADDRESS", address)
    (data / "from-host").write_text("shared\n")
    volumes = ("--rm", "--hostname", "other", "-v", f"{data}:/data", "--tmpfs", "/tmp")
    said = podman.run("other", ask, *volumes).splitlines()
    assert said[:4] == ["other", "other", "1", "shared"]
    # one line or two: newer busyboxes ask for both kinds of address
    *found, page = said[4:]
    assert found
    assert all(line.endswith(address) for line in found), found
    assert page == "page of web"
    assert (data / "from-guest").read_text() == "seen\n"
    command = ["nsenter", f"--net={NETNS / podman.netns}", BUSYBOX, "nc", address, "80"]
    answer = subprocess.run(command, input=b"GET / HTTP/1.0\r\n\r\n", capture_output=True, check=True, timeout=60)
    assert answer.stdout.endswith(b"page of web\n")
    podman.must("rm", "--force", "--time=0", "web")
    podman.must("network", "rm", "tnet")
    assert podman.links() == before
