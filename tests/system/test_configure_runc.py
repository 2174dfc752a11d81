# SPDX-License-Identifier: Apache-2.0
"""`configure --replace-runc` and `--restore`, killed at every step: the vanilla runc is never lost.

The package is a real one: made, installed, upgraded and removed by dpkg in a directory tree.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIGURE = str(ROOT / "bin" / "configure")
OLD, NEW = "#!/bin/sh\necho runc 1\n", "#!/bin/sh\necho runc 2, upgraded\n"
#: every place where each call may be killed; a test compares them with those that are passed
REPLACE = [f"replace: {name}" for name in ("written down", "diverted", "kept as runc_vanilla", "in its place")]
RESTORE = [f"restore: {name}" for name in ("written down", "in its place", "not diverted", "runc_vanilla removed")]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="dpkg installs packages for root only")


class Tree:
    """A machine in a directory: dpkg's database, a runc of a package, and an installed launcher."""

    def __init__(self, top: Path, *, package: bool = True) -> None:
        self.top = top / "root"
        self.work = top
        self.runc = self.top / "usr/sbin/runc"
        self.vanilla = self.top / "usr/sbin/runc_vanilla"
        self.launcher = self.top / "usr/share/runPHI/bin/runphi"
        self.launcher.parent.mkdir(parents=True)
        self.launcher.write_text((ROOT / "bin" / "runphi").read_text())
        self.launcher.chmod(0o755)
        self.runc.parent.mkdir(parents=True)
        if package:
            for name in ("info", "updates", "triggers", "parts", "alternatives"):
                (self.top / "var/lib/dpkg" / name).mkdir(parents=True)
            (self.top / "var/lib/dpkg/status").touch()
            self.install("1", OLD)
        else:
            self.runc.write_text(OLD)
            self.runc.chmod(0o755)

    def dpkg(self, *words: str) -> None:
        argv = ["dpkg", f"--root={self.top}", "--log=/dev/null", "--force-unsafe-io", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def install(self, version: str, text: str) -> None:
        package = self.work / f"runc-{version}"
        if not package.exists():
            (package / "DEBIAN").mkdir(parents=True)
            (package / "DEBIAN/control").write_text(
                f"Package: runc\nVersion: {version}\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n"
            )
            (package / "usr/sbin").mkdir(parents=True)
            (package / "usr/sbin/runc").write_text(text)
            (package / "usr/sbin/runc").chmod(0o755)
            subprocess.run(["dpkg-deb", "-Znone", "-b", package, f"{package}.deb"], capture_output=True, check=True)
        self.dpkg("--install", f"{package}.deb")

    def call(self, *words: str, kill: str = "", steps: Path | None = None) -> subprocess.CompletedProcess[str]:
        env = {"RUNPHI_KILL_AT": kill, **({"RUNPHI_STEPS": str(steps)} if steps else {})}
        argv = [sys.executable, "-IB", CONFIGURE, "--destdir", str(self.top), *words]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
        return done

    def snapshot(self) -> dict[str, tuple[int, int, str]]:
        """What is on the disk, but for dpkg's own lists."""
        found = {}
        for path in sorted(self.top.rglob("*")):
            name = str(path.relative_to(self.top))
            if name.startswith("var/lib/dpkg/"):
                continue
            info = path.lstat()
            text = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
            found[name] = (info.st_mode, 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns, text)
        return found

    def diversions(self) -> str:
        argv = ["dpkg-divert", f"--admindir={self.top}/var/lib/dpkg", "--list"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def vanillas(self) -> list[str]:
        """The contents of every ordinary runc there is."""
        return [p.read_text() for p in (self.runc, self.vanilla) if p.is_file() and "thin client" not in p.read_text()]

    def check_replaced(self, text: str = OLD) -> None:
        assert self.runc.is_symlink()
        assert self.runc.samefile(self.launcher)
        assert self.vanilla.read_text() == text
        assert os.access(self.vanilla, os.X_OK)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_replaced_and_restored(tree: Tree, tmp_path: Path) -> None:
    before = tree.snapshot()
    steps = tmp_path / "steps"
    said = tree.call("--replace-runc", steps=steps).stdout
    assert said == "/usr/sbin/runc is runPHI now; the ordinary runc is /usr/sbin/runc_vanilla\n"
    tree.check_replaced()
    assert "local diversion of /usr/sbin/runc to /usr/sbin/runc_vanilla" in tree.diversions()
    after = tree.snapshot()
    assert "already" in tree.call("--replace-runc").stdout
    assert tree.snapshot() == after
    tree.call("--restore", steps=steps)
    assert tree.snapshot() == before
    assert tree.diversions() == ""
    assert "not replaced" in tree.call("--restore").stdout
    assert steps.read_text().splitlines() == [*REPLACE, *RESTORE]


def test_an_upgrade_leaves_runphi_in_place(tree: Tree) -> None:
    tree.call("--replace-runc")
    tree.install("2", NEW)
    tree.check_replaced(NEW)
    tree.call("--replace-runc")
    tree.check_replaced(NEW)
    tree.call("--restore")
    assert tree.runc.read_text() == NEW
    assert not tree.vanilla.exists()
    tree.install("1", OLD)
    assert tree.runc.read_text() == OLD


@pytest.mark.parametrize("upgrade", [False, True], ids=["", "upgraded"])
@pytest.mark.parametrize("then", ["--replace-runc", "--restore"])
@pytest.mark.parametrize("at", [*REPLACE, *RESTORE])
def test_killed_at_every_step(tree: Tree, at: str, then: str, upgrade: bool) -> None:
    before = tree.snapshot()
    if at in RESTORE:
        tree.call("--replace-runc")
    tree.call("--restore" if at in RESTORE else "--replace-runc", kill=at)
    assert OLD in tree.vanillas()
    assert os.access(tree.runc, os.X_OK)
    if upgrade:
        tree.install("2", NEW)
        assert NEW in tree.vanillas()
    assert os.access(tree.runc, os.X_OK)
    tree.call(then)
    text = NEW if upgrade else OLD
    if then == "--replace-runc":
        tree.check_replaced(text)
        tree.call("--restore")
    assert tree.runc.read_text() == text
    assert tree.diversions() == ""
    if not upgrade:
        assert tree.snapshot() == before
    assert not tree.vanilla.exists()
    tree.install("3", "#!/bin/sh\n")
    assert tree.runc.read_text() == "#!/bin/sh\n"


@pytest.mark.parametrize("at", REPLACE)
def test_killed_on_the_way_there_and_on_the_way_back(tree: Tree, at: str) -> None:
    before = tree.snapshot()
    tree.call("--replace-runc", kill=at)
    for back in RESTORE:
        tree.call("--restore", kill=back)
        assert OLD in tree.vanillas()
    tree.call("--restore")
    assert tree.snapshot() == before


def test_a_package_that_was_removed_meanwhile(tree: Tree) -> None:
    tree.call("--replace-runc")
    tree.dpkg("--remove", "runc")
    assert not tree.vanilla.exists()
    done = subprocess.run(
        [sys.executable, "-IB", CONFIGURE, "--destdir", tree.top, "--replace-runc"],
        env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot find the ordinary runc" in done.stderr
    assert "package was removed" in tree.call("--restore").stdout
    assert not os.path.lexists(tree.runc)
    tree.install("2", NEW)
    assert tree.runc.read_text() == NEW


@pytest.mark.parametrize("at", ["", *REPLACE, *RESTORE])
def test_without_a_package(tmp_path: Path, at: str) -> None:
    tree = Tree(tmp_path, package=False)
    before = tree.snapshot()
    if at not in REPLACE:
        assert "no package owns it" in tree.call("--replace-runc").stdout
        tree.check_replaced()
    if at:
        tree.call("--restore" if at in RESTORE else "--replace-runc", kill=at)
        assert OLD in tree.vanillas()
    tree.call("--restore")
    assert tree.snapshot() == before


def test_what_others_have_set_up_is_left_alone(tree: Tree) -> None:
    def refused() -> str:
        argv = [sys.executable, "-IB", CONFIGURE, "--destdir", str(tree.top), "--replace-runc"]
        done = subprocess.run(argv, env={}, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr

    before = tree.snapshot()
    tree.vanilla.write_text("somebody's\n")
    assert "another file is there" in refused()
    tree.vanilla.unlink()
    admin = f"--admindir={tree.top}/var/lib/dpkg"
    words = ["--local", "--no-rename", "--divert", "/usr/sbin/runc.mine", "--add", "/usr/sbin/runc"]
    subprocess.run(["dpkg-divert", admin, *words], capture_output=True, check=True)
    assert "diverted already" in refused()
    assert tree.snapshot() == before
    tree.launcher.unlink()
    assert "not installed" in refused()
