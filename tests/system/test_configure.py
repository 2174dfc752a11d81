# SPDX-License-Identifier: Apache-2.0
"""`bin/configure` on a whole machine: this one, in an overlay, compared file by file when all is undone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system.place import ROOT, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.overlay import Overlay

CONFIGURE = str(ROOT / "bin" / "configure")
INSTALLED = "/usr/sbin/runphi-configure"
#: dpkg keeps the list before the last change
DPKG_OLD = ("/var/lib/dpkg/diversions-old",)
RUNC = "/usr/sbin/runc"
#: of containerd, and so the name of a cgroup
NAMESPACE = "runphi-configure"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces are made by root"),
    pytest.mark.timeout(600),  # several Python environments are made
]


def configure(machine: Overlay, wheels: Path, *words: str) -> str:
    """Call the checkout's configure without PATH and HOME, and without a network."""
    folder = machine.merged / "run/wheels"
    if not folder.exists():
        shutil.copytree(wheels, folder)
    offline = ["/usr/bin/unshare", "--net", CONFIGURE]
    return machine.must(*offline, *words, "--wheels", "/run/wheels")


def test_installed_used_and_uninstalled(machine: Overlay, wheels: Path) -> None:
    said = configure(machine, wheels, "-c", "qemu")
    assert "/etc/runphi/config.toml says backend qemu" in said
    # a verb of an engine that knows neither PATH nor HOME starts the installed supervisor
    assert machine.must("/usr/sbin/runphi", "--version").startswith("runphi version ")
    assert "ociVersionMin" in json.loads(machine.must("/usr/sbin/runphi", "features"))
    words = Path(f"/proc/{(machine.merged / 'run/runPHI/supervisor.pid').read_text().strip()}/cmdline").read_bytes()
    assert words.startswith(b"/usr/share/runPHI/venv/bin/python\0")
    findings = json.loads(machine.run("/usr/sbin/runphi", "doctor", "--json").stdout)
    assert any(finding["area"] == "install" and finding["level"] == "ok" for finding in findings)
    # nothing of the environment names the place it was made in
    assert (
        machine.must("/usr/share/runPHI/venv/bin/python", "-c", "import anyio, re2, msgspec; print('all')") == "all\n"
    )
    assert "usage: start_jailhouse" in machine.must("/usr/sbin/start_jailhouse", "--help")
    # again, by the installed program: nothing is changed
    assert "stays as it is" in machine.must(INSTALLED, "-c", "qemu")
    # a newer version over it, and another backend: the file is still as we wrote it
    assert "says backend xen" in configure(machine, wheels, "-c", "xen")
    assert 'backend = "xen"' in (machine.merged / "etc/runphi/config.toml").read_text()
    assert "runPHI is removed" in machine.must(INSTALLED, "--uninstall")
    assert machine.differences() == []
    assert os.listdir(machine.merged / "run") == ["wheels"]
    assert "not installed" in machine.must(CONFIGURE, "--uninstall")


def bundle(machine: Overlay, words: list[str]) -> str:
    """Make a bundle of an ordinary container."""
    top = machine.merged / "tmp/bundle"
    (top / "rootfs/bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", top / "rootfs/bin/busybox")
    machine.must(RUNC, "spec", "--bundle", "/tmp/bundle")
    spec = json.loads((top / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["/bin/busybox", *words], "rlimits": []}
    (top / "config.json").write_text(json.dumps(spec))
    return "/tmp/bundle"


def test_in_the_place_of_runc(machine: Overlay, wheels: Path) -> None:
    vanilla = machine.must(RUNC, "--version")
    where = bundle(machine, ["echo", "an ordinary container"])
    configure(machine, wheels, "-c", "qemu", "--replace-runc")
    assert machine.must(RUNC, "--version").startswith("runphi version")
    assert machine.must("/usr/bin/runc", "--version").startswith("runphi version")
    assert machine.must(f"{RUNC}_vanilla", "--version") == vanilla
    # an ordinary container: no loop, and runc's own words
    ran = machine.run(RUNC, "run", "--no-pivot", "--bundle", where, "c1")
    assert ran.stdout == "an ordinary container\n", ran.stderr
    assert "does not exist" in machine.run(RUNC, "state", "nobody").stderr
    assert "diversion of /usr/sbin/runc to /usr/sbin/runc_vanilla" in machine.must("dpkg-divert", "--list", RUNC)
    # with nothing but itself left it says so instead of calling itself
    (machine.merged / "usr/sbin/runc_vanilla").rename(machine.merged / "usr/sbin/away")
    assert "there is no runc" in machine.run(RUNC, "run", "--no-pivot", "--bundle", where, "c2").stderr
    (machine.merged / "usr/sbin/away").rename(machine.merged / "usr/sbin/runc_vanilla")
    # the supervisor's clients find the ordinary runc while it comes back, and after that
    assert "ordinary runc again" in machine.must(INSTALLED, "--restore")
    assert machine.must(RUNC, "--version") == vanilla
    assert "does not exist" in machine.run("/usr/sbin/runphi", "state", "nobody").stderr
    assert "runPHI now" in machine.must(INSTALLED, "--replace-runc")
    assert "does not exist" in machine.run(RUNC, "state", "nobody").stderr
    # and everything at once
    machine.must(INSTALLED, "--uninstall")
    assert machine.differences(but=DPKG_OLD) == []


def test_engines_read_what_was_written(machine: Overlay, wheels: Path) -> None:
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    podman = ["podman", "--root", "/tmp/podman", "--runroot", "/tmp/podman-run", "--storage-driver", "vfs"]
    # what engines leave when they are used for the first time is theirs, and must not be taken for ours
    machine.must(*podman, "info", env=env)
    machine.must("/usr/bin/containerd", "config", "dump")
    machine.must("dockerd", "--help", env=env)
    machine.take_stock()
    configure(machine, wheels, "-c", "qemu")
    machine.must(INSTALLED, "--engine", "containerd", "--engine", "podman", "--engine", "docker", "--yes")
    dump = machine.must("/usr/bin/containerd", "config", "dump")
    assert "containerd.runtimes.runphi]" in dump
    assert 'BinaryName = "/usr/sbin/runphi"' in dump
    assert 'pod_annotations = ["org.runphi.*", "org.runphi.*/*"]' in dump
    ordinary = machine.must(*podman, "info", "--format", "{{.Host.OCIRuntime.Name}}", env=env)
    assert ordinary in ("crun\n", "runc\n")
    info = json.loads(machine.must(*podman, "--runtime", "runphi", "info", "--format", "json", env=env))
    assert info["host"]["ociRuntime"]["path"] == "/usr/sbin/runphi"
    assert info["host"]["ociRuntime"]["version"].startswith("runphi version")
    if "--validate" in machine.must("dockerd", "--help", env=env):  # docker 23 and newer
        machine.must("dockerd", "--validate", env=env)
    assert json.loads((machine.merged / "etc/docker/daemon.json").read_text()) == {
        "runtimes": {"runphi": {"path": "/usr/sbin/runphi"}}
    }
    findings = json.loads(machine.run("/usr/sbin/runphi", "doctor", "--json").stdout)
    for name in ("containerd", "docker", "podman"):
        assert any(finding["area"] == name and "runphi" in finding["text"] for finding in findings)
    machine.must(INSTALLED, "--uninstall")
    assert machine.differences() == []


@pytest.fixture
def containerd(machine: Overlay, inmates_built: Path) -> Iterator[list[str]]:
    """A containerd of that machine, and the words that `ctr` reaches it by; the demo image is there."""
    # overlayfs does not lie on overlayfs: what containerd keeps is in memory
    place = machine.merged / "run/cd"
    place.mkdir()
    (place / "config.toml").write_text(
        'version = 2\nroot = "/run/cd/root"\nstate = "/run/cd/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "/run/cd/sock"\n'
        '[plugins."io.containerd.internal.v1.opt"]\npath = "/run/cd/opt"\n'
    )
    build = [str(ROOT / "bin/build-images"), str(place / "images"), "--inmates", str(inmates_built)]
    subprocess.run(build, check=True, capture_output=True)
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    words = machine.command("containerd", "--config", "/run/cd/config.toml", env=env)
    ctr = ["/usr/bin/ctr", "--address", "/run/cd/sock", "--namespace", NAMESPACE]
    with (
        open(place / "log", "w") as log,
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as it,
    ):
        try:
            until(lambda: machine.run(*ctr, "version").returncode == 0, "a containerd that answers")
            machine.must(*ctr, "image", "import", "/run/cd/images/demo.tar")
            yield ctr
        finally:
            it.terminate()
            it.wait()
            for group in Path("/sys/fs/cgroup").glob(f"*/{NAMESPACE}"):
                group.rmdir()


@pytest.mark.qemu
def test_ctr_run_as_ever(machine: Overlay, wheels: Path, containerd: list[str]) -> None:
    """The way of the original: configure, and `ctr run` without a word of the runtime makes a partition."""
    configure(machine, wheels, "-c", "qemu", "--replace-runc")
    run = [*containerd, "run", "--rm", "--env", "INMATE=/boot/inmate.elf", "runphi/demo:latest", "first", "/x"]
    done = machine.run(*run, input="echo hi from a partition\nexit 3\n")
    assert (done.returncode, "hi from a partition" in done.stdout) == (3, True), (done.stdout, done.stderr)
    # with the ordinary runc back the same command looks for a program /x
    machine.must(INSTALLED, "--restore")
    assert "no such file" in machine.run(*run).stderr
    assert "/var/log/runphi holds what was made since and stays" in machine.must(INSTALLED, "--uninstall")
    assert machine.differences(but=(*DPKG_OLD, "/var/log/runphi")) == []


def test_killed_and_said_again(machine: Overlay, wheels: Path) -> None:
    shutil.copytree(wheels, machine.merged / "run/wheels")
    install = [CONFIGURE, "-c", "qemu", "--wheels", "/run/wheels"]

    def kill(at: str, *words: str) -> None:
        assert machine.run(*words, env={"RUNPHI_KILL_AT": at}).returncode == -signal.SIGKILL

    for at in ("install: written down", "install: stage", "install: copied", "install: venv"):
        kill(at, *install)
    machine.must(*install)
    assert machine.must("/usr/sbin/runphi", "--version").startswith("runphi version")
    for at in ("uninstall: supervisor ended", "uninstall: files", "uninstall: runphi_async", "uninstall: directories"):
        kill(at, CONFIGURE, "--uninstall")
    machine.must(CONFIGURE, "--uninstall")
    assert machine.differences() == []
