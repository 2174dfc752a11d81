# SPDX-License-Identifier: Apache-2.0
"""The first commands, killed in what they make: the next run makes it whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests import interrupt
from tests.interrupt import counted, hooked, killed_when, run
from tests.once import made_once
from tests.system.overlay import Overlay
from tests.unit.test_kernelimage import KERNEL, bzimage, packed

ROOT: Final = Path(__file__).resolve().parents[2]
SITE: Final = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
#: Modules of the package that is installed: enough to be killed in the middle of them.
MODULES: Final = 100

pytestmark = pytest.mark.timeout(600)


# Section: the Python environment


def wheel(folder: Path, name: str) -> None:
    """Make a package of many modules and a command."""
    info = f"{name}-1.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
        f"{name}/__init__.py": "".join(f"from . import m{number}\n" for number in range(MODULES))
        + f"def main():\n    print('{name} is whole')\n",
        **{f"{name}/m{number}.py": "" for number in range(MODULES)},
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


class Checkout:
    """A checkout of nothing but bin/lib.sh; its packages are here, so nothing asks the network."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.venv = path / ".venv"
        (path / "bin").mkdir(parents=True)
        (path / "wheels").mkdir()
        shutil.copy(ROOT / "bin" / "lib.sh", path / "bin" / "lib.sh")
        wheel(path / "wheels", "crumb")
        wheel(path / "wheels", "loaf")
        (path / "pyproject.toml").write_text(
            '[project]\ndependencies = ["crumb"]\n[project.optional-dependencies]\ndev = ["loaf"]\n'
        )
        self.argv = ["/bin/bash", "-c", f". {path}/bin/lib.sh && need_venv dev && echo done"]
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(path.parent), "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(path / "wheels"), "PIP_NO_CACHE_DIR": "1",
        }  # fmt: skip

    def must_be_whole(self) -> None:
        """Run once more: after that all must be there, and nothing be left to do."""
        done = run(self.argv, self.env)
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("crumb", "loaf"):
            said = subprocess.run([self.venv / "bin" / name], capture_output=True, text=True, check=True).stdout
            assert said == f"{name} is whole\n"
        assert run(self.argv, self.env).stdout == "done\n"
        left = {path.name for path in self.path.iterdir()}
        assert left == {"bin", "wheels", "pyproject.toml", ".venv", ".venv.lock"}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("pyvenv.cfg", signal.SIGKILL),
        ("bin/python3", signal.SIGINT),
        (f"{SITE}/pip/_vendor", signal.SIGKILL),
    ],
)
def test_an_environment_that_was_being_made(checkout: Checkout, moment: str, number: int) -> None:
    killed_when((checkout.venv / moment).exists, checkout.argv, checkout.env, number)
    checkout.must_be_whole()


def test_what_goes_on_when_only_the_command_was_killed(checkout: Checkout) -> None:
    killed_when((checkout.venv / "pyvenv.cfg").exists, checkout.argv, checkout.env, alone=True)
    checkout.must_be_whole()


def test_an_environment_without_pip_is_made_anew(checkout: Checkout) -> None:
    """As versions without the mark left it."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", checkout.venv], check=True)
    checkout.must_be_whole()


@pytest.fixture
def with_environment(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose environment is there and empty."""

    def make(folder: Path) -> None:
        subprocess.run(["/usr/bin/python3", "-m", "venv", folder / "venv"], check=True)

    shutil.copytree(made_once(tmp_path_factory, "empty-venv", make) / "venv", checkout.venv, symlinks=True)
    return checkout


# in shares of a whole run: when some of the package is there, in the middle of it, at its command, at the last change
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98, 1])
def test_packages_that_were_being_installed(
    with_environment: Checkout, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    checkout, hook = with_environment, tmp_path / "hook"

    def count(folder: Path) -> None:
        other = Checkout(folder / "checkout")
        shutil.copytree(checkout.venv, other.venv, symlinks=True)
        done = run(other.argv, other.env | hooked(folder / "hook", other.venv))
        assert done.returncode == 0, done.stderr
        (folder / "count").write_text(str(max(map(int, (folder / "hook" / "changes").read_text().split()))))

    total = int((made_once(tmp_path_factory, "changes-of-pip", count) / "count").read_text())
    assert total > MODULES
    done = run(checkout.argv, checkout.env | hooked(hook, checkout.venv, max(1, int(total * share))))
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    checkout.must_be_whole()


def test_without_a_network_what_is_there_stays(with_environment: Checkout) -> None:
    checkout = with_environment
    (checkout.venv / "mine").touch()
    lost = run(checkout.argv, checkout.env | {"PIP_FIND_LINKS": "/nowhere"})
    assert lost.returncode == 1
    assert "cannot install the Python packages crumb" in lost.stderr
    checkout.must_be_whole()
    assert (checkout.venv / "mine").exists()


# Section: packages of the system


def test_a_ban_on_services_goes_with_a_run_that_was_killed(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    shell = f". {ROOT}/bin/lib.sh && POLICY={policy} && "
    env = dict(os.environ)
    assert run(["/bin/bash", "-c", shell + "forbid_services && kill -9 $$"], env).returncode == -signal.SIGKILL
    assert policy.exists()
    assert run(["/bin/bash", "-c", shell + "apt_need coreutils"], env).returncode == 0
    assert not policy.exists()
    # that of a run which goes on stays, and a stranger's in any case
    nested = "forbid_services && bash -c '. {0}/bin/lib.sh && POLICY={1} && apt_need coreutils' && test -e {1}"
    assert run(["/bin/bash", "-c", shell + nested.format(ROOT, policy)], env).returncode == 0
    assert not policy.exists()
    policy.write_text("#!/bin/sh\nexit 101\n")
    assert run(["/bin/bash", "-c", shell + "forbid_services; apt_need coreutils"], env).returncode == 0
    assert policy.read_text() == "#!/bin/sh\nexit 101\n"


@pytest.mark.parametrize("script", ["preinst", "postinst"])
def test_a_package_that_was_being_installed(tmp_path: Path, script: str) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: runphi-crumb\nVersion: 1\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: a test\n"
    )
    # killed with dpkg, apt and the command, as by ctrl-c and worse
    (tree / "DEBIAN" / script).write_text("#!/bin/sh\n[ -e /tmp/killed ] || { : >/tmp/killed; kill -9 0; }\n")
    (tree / "DEBIAN" / script).chmod(0o755)
    with Overlay() as machine:
        repository = machine.merged / "srv" / "crumbs"
        repository.mkdir()
        subprocess.run(["dpkg-deb", "--build", tree, repository / "crumb.deb"], check=True, stdout=subprocess.DEVNULL)
        (machine.merged / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/srv/crumbs ./\n")
        sources = "rm -f /etc/apt/sources.list.d/*; cd /srv/crumbs && dpkg-scanpackages . 2>/dev/null >Packages"
        machine.must("/bin/sh", "-c", sources, env={"PATH": os.environ["PATH"]})
        env = {"PATH": os.environ["PATH"], "HOME": "/root", "LC_ALL": "C.UTF-8"}
        command = ("setsid", "--wait", "/bin/bash", "-c", f". {ROOT}/bin/lib.sh; apt_need runphi-crumb; echo done")
        assert machine.run(*command, env=env).returncode == -signal.SIGKILL
        assert machine.must(*command, env=env).endswith("done\n")
        asked = ("dpkg-query", "-W", "-f", "${db:Status-Status}", "runphi-crumb")
        assert machine.must(*asked, env=env) == "installed"
        assert machine.must(*command, env=env) == "done\n"


# Section: kernel and RAM disks of guests

#: Tools in the place of apt and the compiler: a kernel package without a network, at once.
TOOLS: Final = {
    "apt-cache": 'echo "Package: linux-image"; echo "Version: 6.1.2-1"; echo "Depends: linux-image-6.1.2 (= 6.1.2-1)"',
    "apt-get": 'case "$*" in *download*) : >kernel.deb ;; esac',
    "dpkg-deb": 'cp -r TREE "$3"',
    "modinfo": ":",
    "gcc": 'for word; do [ "$before" != -o ] || out=$word; before=$word; done; printf "#!/bin/sh\\necho 1\\n" >"$out"; '
    'chmod +x "$out"',
}
NAMES: Final = (
    "virtio_mmio", "virtio_pci", "virtio_console", "virtiofs", "pvpanic-mmio", "overlay", "virtio_net", "xen-blkfront",
    "crc32c_generic", "ext4", "xen-evtchn", "xen-gntalloc", "xen-netfront",
)  # fmt: skip


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment in which bin/prepare-guest finds a kernel of its own."""
    tree, folder = tmp_path / "package", tmp_path / "tools"
    modules = tree / "lib" / "modules" / "6.1.2"
    modules.mkdir(parents=True)
    (modules / "modules.builtin").touch()
    for name in NAMES:
        (modules / f"{name}.ko").write_bytes(b"\x7fELF" + name.encode())
    (tree / "boot").mkdir()
    (tree / "boot" / "vmlinuz-6.1.2").write_bytes(bzimage(packed("gzip")))
    folder.mkdir()
    for name, script in TOOLS.items():
        (folder / name).write_text("#!/bin/sh\n" + script.replace("TREE", str(tree)) + "\n")
        (folder / name).chmod(0o755)
    shutil.copy(folder / "gcc", folder / "aarch64-linux-gnu-gcc")
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("what", ["guest", "cells"])
def test_every_moment_of_prepare_guest(tools: dict[str, str], tmp_path: Path, what: str) -> None:
    """Killed at each change it makes, it makes all of it the next time, and leaves nothing else."""
    if what == "cells":
        kernel = tmp_path / "package" / "boot" / "vmlinuz-6.1.2"
        kernel.write_bytes(bytes(56) + b"ARM\x64" + bytes(4) + KERNEL)
    words = [str(ROOT / "bin" / "prepare-guest"), *(["--cells"] if what == "cells" else [])]
    whole, hook = tmp_path / "whole", tmp_path / "hook"
    done = run([*words, str(whole)], tools | hooked(hook, whole))
    assert done.returncode == 0, done.stderr
    total = counted(hook)
    assert total > 8
    for moment in range(1, total + 1):
        out = tmp_path / f"out{moment}"
        killed = run([*words, str(out)], tools | hooked(hook, out, moment))
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
        if (out / "kernel-version").exists():
            assert contents(out).items() >= contents(whole).items(), f"at change {moment} it looks finished"
        again = run([*words, str(out)], tools)
        assert again.returncode == 0, (moment, again.stderr)
        assert contents(out) == contents(whole), moment
        shutil.rmtree(out)


def test_two_runs_of_prepare_guest_do_not_meet(tools: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = [str(ROOT / "bin" / "prepare-guest"), str(out)]
    both = [subprocess.Popen(argv, env=tools, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=interrupt.PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(f"wrote {out}" in text for text in said) == 1


def test_prepare_guest_that_is_told_to_end_takes_away_what_it_began(tools: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    slow = Path(tools["PATH"].partition(":")[0]) / "gcc"
    slow.write_text("#!/bin/sh\nexec sleep 1000\n")
    argv = [str(ROOT / "bin" / "prepare-guest"), str(out)]
    killed_when(lambda: any(out.glob(".making-*/tree/boot")), argv, tools, signal.SIGTERM)
    assert [path.name for path in out.iterdir()] == [".lock"]
