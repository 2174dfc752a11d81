# SPDX-License-Identifier: Apache-2.0
"""What is given away: the source distribution, the wheel, and Debian's package, each installed and used for real."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from runphi_async.version import VERSION
from tests.once import made_once
from tests.system.place import ROOT, ended

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.overlay import Overlay

#: what dpkg keeps of its own doings
DPKG_OWN = ("/var/lib/dpkg", "/var/log/dpkg.log")
CONFIGURE = "/usr/sbin/runphi-configure"
RUNC = "/usr/sbin/runc"


def run(*argv: str | Path, **more: str) -> str:
    done = subprocess.run(
        [str(word) for word in argv],
        env={"PATH": os.environ["PATH"], **more}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (argv, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


pytestmark = pytest.mark.timeout(600)  # packages are fetched and built


# Section: wheel and source distribution


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel that is made of it and of nothing else."""

    def build(top: Path) -> None:
        run("/usr/bin/python3", "-m", "venv", top / "tools")
        run(top / "tools/bin/pip", "install", "--quiet", "--disable-pip-version-check", "build")
        # a copy: setuptools leaves its own files in the tree it builds
        run("git", "clone", "--quiet", "--no-hardlinks", ROOT, top / "source")
        changed = run("git", "-C", ROOT, "diff", "HEAD", "--binary")
        subprocess.run(["git", "-C", top / "source", "apply", "--allow-empty"], input=changed, text=True, check=True)
        run(top / "tools/bin/python", "-m", "build", "--outdir", top / "dist", top / "source")

    return made_once(tmp_path_factory, "dist", build) / "dist"


def test_the_source_distribution_is_whole(dist: Path) -> None:
    with tarfile.open(dist / f"runphi_async-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "-C", ROOT, "ls-files").splitlines()
    left_out = (".ci/", ".gitignore")
    assert [name for name in tracked if name not in names and not name.startswith(left_out)] == []


def test_the_wheel_runs(dist: Path, wheels: Path, tmp_path: Path) -> None:
    wheel = dist / f"runphi_async-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "backends/guest/init/init.c" in names
    assert {f"backends/qemu/probe/{arch}.elf" for arch in ("x86_64", "aarch64")} <= names
    assert "runphi_async/testing/fake_jailhouse/bin/jailhouse" in names
    for board in (ROOT / "runphi_async/board/boards").glob("*.toml"):
        assert f"runphi_async/board/boards/{board.name}" in names
    assert not any(name.startswith(("tests/", "bench/")) for name in names)
    run("/usr/bin/python3", "-m", "venv", tmp_path / "venv")
    pip: list[str | Path] = [
        tmp_path / "venv/bin/pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
    ]
    run(*pip, "--find-links", wheels, wheel)
    run_dir = tmp_path / "run"
    runphi = tmp_path / "venv/bin/runphi"
    place = {"RUNPHI_RUN_DIR": str(run_dir), "RUNPHI_CONFIG": "/dev/null"}
    try:
        assert run(runphi, "--version", **place).startswith(f"runphi version {VERSION}\n")
        assert "ociVersionMin" in json.loads(run(runphi, "features", **place))
        assert "qemu-arm64" in run(runphi, "board", "list", **place)
    finally:
        if (run_dir / "supervisor.pid").exists():
            pid = int((run_dir / "supervisor.pid").read_text())
            os.kill(pid, 15)
            ended(pid)


# Section: Debian's package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    def build(out: Path) -> None:
        run(ROOT / "packaging/build-deb", "--wheels", wheels, out)

    (deb,) = made_once(tmp_path_factory, "deb", build).glob("*.deb")
    return deb


@pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces are made by root")
def test_the_package_is_installed_used_removed_and_purged(machine: Overlay, package: Path) -> None:
    vanilla = machine.must(RUNC, "--version")
    (machine.merged / "run/it.deb").write_bytes(package.read_bytes())
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    # other packages' triggers are not what is looked at
    dpkg = ["unshare", "--net", "dpkg", "--no-triggers"]
    machine.must(*dpkg, "-i", "/run/it.deb", env=env)
    assert machine.must("/usr/sbin/runphi", "--version").startswith(f"runphi version {VERSION}")
    before = (machine.merged / "run/runPHI/supervisor.pid").read_text()
    assert machine.must("dpkg", "--verify", "runphi-async", env=env) == ""
    findings = json.loads(machine.run("/usr/sbin/runphi", "doctor", "--json").stdout)
    assert "Debian's package runphi-async in /usr/share/runPHI" in [finding["text"] for finding in findings]
    assert "apt-get remove" in machine.run(CONFIGURE, "--uninstall").stderr
    machine.must(CONFIGURE, "-c", "qemu", "--replace-runc", "--engine", "podman", "--yes")
    assert machine.must(RUNC, "--version").startswith("runphi version")
    # an upgrade: what was set up stays, and the new supervisor takes over
    machine.must(*dpkg, "-i", "/run/it.deb", env=env)
    assert machine.must(RUNC, "--version").startswith("runphi version")
    assert (machine.merged / "run/runPHI/supervisor.pid").read_text() != before
    machine.must(*dpkg, "-r", "runphi-async", env=env)
    assert machine.must(RUNC, "--version") == vanilla
    assert machine.differences(but=(*DPKG_OWN, "/var/lib/runphi")) == [
        "/etc/runphi/config.toml: is new", "/etc/runphi: is new"
    ]  # fmt: skip
    machine.must(*dpkg, "-P", "runphi-async", env=env)
    assert machine.differences(but=DPKG_OWN) == []
    assert os.listdir(machine.merged / "run") == ["it.deb"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces are made by root")
def test_the_package_refuses_to_lie_over_an_installation(machine: Overlay, package: Path, wheels: Path) -> None:
    (machine.merged / "run/it.deb").write_bytes(package.read_bytes())
    launcher = machine.merged / "usr/share/runPHI/bin/runphi"
    launcher.parent.mkdir(parents=True)
    launcher.touch()
    done = machine.run("dpkg", "--no-triggers", "-i", "/run/it.deb", env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    assert done.returncode != 0
    assert "runphi-configure --uninstall first" in done.stderr
