# SPDX-License-Identifier: Apache-2.0
"""Packs the checkout for dom0: its wheel, bin/, the wheel's dependencies and pytest, the demo inmate, the tests.

dom0 has Debian's Python of the same version as the checkout's environment, so the packages installed there are taken
as they are and dom0 needs no network.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from tests.checkout import ROOT, make_environment

#: What dom0 needs besides the wheel's own dependencies.
TOOLS: Final = ("pytest", "pytest-asyncio", "pytest-timeout", "pexpect")
WHEEL_SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "runphi_async", "consoles", "backends")
TREES: Final = ("bin", "docs", "tests")
#: The kernel and RAM disk of Linux guests; bin/prepare-guest makes them.
GUEST: Final = Path(os.environ.get("RUNPHI_GUEST", "/var/lib/runphi/guest"))
GUEST_FILES: Final = ("vmlinux", "initrd-xen")
#: A guest's end of a vchan, and the libraries it is linked with.
VCHAN_DEMO: Final = "vchan-demo"
VCHAN_LIBRARIES: Final = ("xenvchan", "xenstore", "xengnttab", "xenevtchn", "xentoollog", "xentoolcore")
#: Where dom0 has it all.
HOME: Final = "/opt/runphi"
#: What dom0 mounts there: a file system made here, because thousands of files take long to unpack under emulation.
IMAGE: Final = "runphi.img"
#: MiB that dom0 may write to it.
SPARE: Final = 64
#: Where dom0 sees the share; what is large and read once stays there.
SHARE: Final = "/host"


def build_wheel(out: Path) -> Path:
    """Build the checkout's wheel into ``out``, without leaving anything in the checkout."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        source = Path(name)
        for entry in WHEEL_SOURCES:
            path = ROOT / entry
            if path.is_dir():
                shutil.copytree(path, source / entry, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, source / entry)
        argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "."]
        subprocess.run([*argv, "--wheel-dir", str(out)], cwd=source, check=True)
    (wheel,) = out.glob("runphi_async-*.whl")
    return wheel


def build_vchan_demo(out: Path) -> None:
    """Build the example of a guest that serves a vchan."""
    source = ROOT / "examples" / "channels" / "vchan_demo.c"
    argv = ["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(out), str(source)]
    subprocess.run([*argv, *(f"-l{name}" for name in VCHAN_LIBRARIES)], check=True)


def pack(share: Path) -> None:
    """Write the image that dom0 mounts at /opt/runphi, and what is used where it lies, into ``share``."""
    with tempfile.TemporaryDirectory(prefix="dom0-") as name:
        home = Path(name)
        wheel = build_wheel(home)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(home)
            (info,) = {path.split("/")[0] for path in archive.namelist() if ".dist-info/" in path}
        wheel.unlink()
        needed = [line.split(":", 1)[1].strip() for line in (home / info / "METADATA").read_text().splitlines()
                  if line.startswith("Requires-Dist:")]  # fmt: skip
        make_environment(home / "venv", [*needed, *TOOLS])
        for tree in TREES:
            shutil.copytree(ROOT / tree, home / tree, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", home / "pyproject.toml")
        subprocess.run([str(ROOT / "bin" / "build-inmates"), str(home / "inmates")], check=True, capture_output=True)
        images = [str(ROOT / "bin" / "build-images"), str(share / "images"), "--inmates", str(home / "inmates")]
        subprocess.run(images, check=True, capture_output=True)
        build_vchan_demo(home / VCHAN_DEMO)
        (share / "guest").mkdir(exist_ok=True)
        for file in GUEST_FILES:
            shutil.copy(GUEST / file, share / "guest" / file)
        # Compiling takes long under emulation, and what is compiled here is good there.
        compileall.compile_dir(name, quiet=2, stripdir=name, prependdir=HOME)
        (home / ".venv").symlink_to("venv")
        size = sum(file.stat().st_size + 4096 for file in home.rglob("*") if file.is_file()) // 2**20 + SPARE
        options = ["-q", "-t", "ext4", "-O", "^metadata_csum,^has_journal", "-m", "0", "-E", "root_owner=0:0"]
        argv = ["mke2fs", *options, "-d", name, str(share / "part"), f"{size}M"]
        subprocess.run(argv, check=True, capture_output=True)
        (share / "part").rename(share / IMAGE)
