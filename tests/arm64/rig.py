# SPDX-License-Identifier: Apache-2.0
"""An arm64 machine with a KVM of its own, on any host: QEMU emulates a processor with EL2, Debian's kernel runs on it.

Its root is a RAM disk of packages that were unpacked, not installed: QEMU for arm64, Python, what our code needs, and
the checkout's code. It is made once and kept; whatever goes into it is named in its stamp.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.guest.initrd import Entry, archive, base_initrd

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).resolve().parent.parent.parent
DIRECTORY: Final = Path(os.environ.get("RUNPHI_ARM64_RIG", "/var/lib/runphi/arm64-rig"))
#: what the guests of the proof need; this kernel has no pvpanic
MODULES: Final = ("virtio_mmio", "virtio_pci", "virtio_console", "virtiofs", "overlay")
#: what is kept: the machine's packages; its kernel, which Linux guests there have too; their RAM disk with our init
BASE: Final = "base.cpio"
KERNEL: Final = "Image"
GUEST_INITRD: Final = "guest-initrd"
PACKAGES: Final = ("qemu-system-arm", "python3-minimal", "python3", "busybox-static")
#: what is unpacked and not needed: nobody reads it there, and it would have to fit into RAM
NOT_NEEDED: Final = (
    "usr/share",
    "usr/include",
    "etc",
    "var",
    "usr/lib/python3/dist-packages",
    "usr/bin/qemu-system-arm",
)
#: our code on that machine
HOME: Final = "opt/runphi"
PARTS: Final = ("backends", "consoles", "runphi_async", "tests/arm64")
_LINKS: Final = ("bin", "lib", "sbin")

INIT: Final = f"""#!/bin/busybox sh
busybox mkdir -p /proc /sys /dev /tmp /run
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
cd /{HOME}
export PYTHONPATH=/{HOME}:/{HOME}/site HOME=/ PYTHONDONTWRITEBYTECODE=1
echo "[the machine is up]"
python3 -u -m tests.arm64.inside
echo "[status $?]"
busybox poweroff -f
"""


class RigError(Exception):
    """Raised when the machine cannot be made, with the reason."""


def make(say: Callable[[str], None]) -> tuple[Path, Path]:
    """Return kernel and RAM disk; what of it is made already is kept."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    base, stamp = DIRECTORY / BASE, DIRECTORY / "stamp"
    wanted = _stamp()
    if not stamp.exists() or stamp.read_text() != wanted:
        stamp.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="arm64-rig-") as name:
            _fill(Path(name), say)
        stamp.write_text(wanted)
        say(f"wrote {base}: {base.stat().st_size >> 20} MiB")
    # the code of this checkout behind what was kept: Linux unpacks archives one after the other
    ramdisk = DIRECTORY / "initrd"
    with open(ramdisk, "wb") as out, open(base, "rb") as kept:
        shutil.copyfileobj(kept, out)
        out.write(archive(_ours()))
    return DIRECTORY / KERNEL, ramdisk


def _stamp() -> str:
    """Name what the machine is made of."""
    sources = [Path(__file__), ROOT / "bin/prepare-guest", *sorted((ROOT / "backends/guest/init").iterdir())]
    digest = hashlib.sha256("\n".join(_requirements()).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _fill(work: Path, say: Callable[[str], None]) -> None:
    tools = runpy.run_path(str(ROOT / "bin" / "prepare-guest"))
    try:
        say("reading the lists of arm64 packages")
        apt = tools["foreign_apt"](work)
        say("downloading the kernel")
        package, version = tools["find_package"](tools["CELL_METAPACKAGE"], apt)
        release = package.removeprefix("linux-image-")
        (work / "kernel").mkdir()
        tree = tools["unpack_package"](package, version, work / "kernel", apt)
        shutil.copyfile(tree / "boot" / f"vmlinuz-{release}", DIRECTORY / KERNEL)
        modules = tools["load_order"](tree / "lib" / "modules" / release, MODULES)
        init = tools["build_init"](work, os.uname().machine != "aarch64")
    except tools["StepError"] as exc:
        raise RigError(str(exc)) from exc
    (DIRECTORY / GUEST_INITRD).write_bytes(base_initrd(modules, init))
    tree = _unpack(work, apt, say)
    (DIRECTORY / BASE).write_bytes(archive(_entries(tree)))


def _requirements() -> list[str]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return list(tomllib.load(file)["project"]["dependencies"])


def _run(*argv: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in argv], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"{argv[0]}: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout


def _unpack(work: Path, apt: list[str], say: Callable[[str], None]) -> Path:
    """Download the packages and all that they depend on, and unpack them."""
    apt = [*apt, "-o", f"Dir::State::status={work}/status"]  # nothing is installed yet
    archives = work / "debs"
    (archives / "partial").mkdir(parents=True)
    (work / "status").touch()
    say(f"downloading {', '.join(PACKAGES)} and what they need")
    options = ("-q", "-y", "--download-only", "--no-install-recommends", "-o", f"Dir::Cache::archives={archives}")
    _run("apt-get", *apt, *options, "install", *PACKAGES)
    tree = work / "tree"
    for link in _LINKS:
        (tree / "usr" / link).mkdir(parents=True)
        (tree / link).symlink_to(f"usr/{link}")
    debs = sorted(archives.glob("*.deb"))
    say(f"unpacking {len(debs)} packages")
    for deb in debs:
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", tree], input=data, check=True)
    for name in NOT_NEEDED:
        path = tree / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    version = next((tree / "usr/bin").glob("python3.*")).name.removeprefix("python")
    say(f"downloading what our code needs, for Python {version}")
    wheels = work / "wheels"
    platforms = [word for age in ("2014", "_2_17", "_2_28") for word in ("--platform", f"manylinux{age}_aarch64")]
    pip = (sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "-d", wheels)
    _run(*pip, *platforms, "--python-version", version, "--only-binary", ":all:", *_requirements())
    for wheel in wheels.glob("*.whl"):
        shutil.unpack_archive(wheel, tree / HOME / "site", "zip")
    return tree


def _entries(tree: Path) -> list[Entry]:
    found = []
    for path in tree.rglob("*"):
        name, info = str(path.relative_to(tree)), path.lstat()
        if stat.S_ISLNK(info.st_mode):
            found.append(Entry(name, stat.S_IFLNK | 0o777, os.readlink(path).encode()))
        elif stat.S_ISDIR(info.st_mode):
            found.append(Entry(name, stat.S_IFDIR | 0o755))
        elif stat.S_ISREG(info.st_mode):
            found.append(Entry(name, stat.S_IFREG | 0o755, path.read_bytes()))
    return found


def _ours() -> list[Entry]:
    found = [Entry("init", stat.S_IFREG | 0o755, INIT.encode()), Entry("opt", stat.S_IFDIR | 0o755)]
    found += [Entry(HOME, stat.S_IFDIR | 0o755), Entry(f"{HOME}/tests", stat.S_IFDIR | 0o755)]
    for part in PARTS:
        found.append(Entry(f"{HOME}/{part}", stat.S_IFDIR | 0o755))
        for path in sorted((ROOT / part).rglob("*")):
            name = f"{HOME}/{path.relative_to(ROOT)}"
            if "__pycache__" in path.parts:
                continue
            if path.is_dir():
                found.append(Entry(name, stat.S_IFDIR | 0o755))
            else:
                found.append(Entry(name, stat.S_IFREG | 0o644, path.read_bytes()))
    # what Linux guests boot there
    found += [
        Entry(f"{HOME}/{name}", stat.S_IFREG | 0o644, (DIRECTORY / name).read_bytes())
        for name in (KERNEL, GUEST_INITRD)
    ]
    return found
