# SPDX-License-Identifier: Apache-2.0
"""The installation below ``/usr/share/runPHI``: our code, a Python environment of its own, and how they come there.

The environment is made with the system's Python, which the thin client is started by as well. Only wheels are
installed, from a folder (``--wheels``, or ``wheels`` beside ``bin``) without any network, or by pip from where it is
set up to look. What is not needed to run is taken out again, pip itself included.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING, Final

from runphi_async.errors import RunphiError
from runphi_async.install.detect import PATH
from runphi_async.install.root import HOME, remove, sync
from runphi_async.install.steps import step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.install.root import Root

PYTHON: Final = "/usr/bin/python3"
#: what is copied; the order is that in which a newer version takes the place of an older one
PARTS: Final = ("packaging", "backends", "consoles", "runphi_async", "bin", "pyproject.toml", "LICENSE")
BINARIES: Final = ("configure", "prepare-guest", "runphi", "runphid", "start_jailhouse")
VENV: Final = "venv"
#: where a new version is put together, inside the home so that it is on the same file system
STAGE: Final = ".new"
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
#: the oldest Python that our code runs on
_OLDEST: Final = (3, 11)


def source() -> str:
    """Return the tree this code is in: a checkout, or an installation."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


def wheels_beside(top: str) -> str | None:
    """Return the folder of wheels that came with a tree."""
    path = os.path.join(top, "wheels")
    return path if os.path.isdir(path) else None


def requirements(top: str) -> list[str]:
    """Return what the supervisor needs, as pyproject.toml says it."""
    try:
        with open(os.path.join(top, "pyproject.toml"), "rb") as file:
            return list(tomllib.load(file)["project"]["dependencies"])
    except (OSError, KeyError, tomllib.TOMLDecodeError) as exc:
        raise RunphiError(f"cannot read what is to be installed: {exc}", "run it from a whole checkout") from exc


def parts() -> list[str]:
    """Return what is ours of the home: with these gone nothing is left of an installation."""
    return [f"{HOME}/{name}" for name in (*PARTS, VENV, STAGE)]


def put(root: Root, wheels: str | None) -> bool:
    """Install code and environment; False when this code is the installation already."""
    top = source()
    if os.path.realpath(root(HOME)) == top:
        return False
    stage = root(f"{HOME}/{STAGE}")
    remove(stage)
    os.makedirs(stage)
    step("install: stage")
    for name in PARTS:
        _copy(os.path.join(top, name), os.path.join(stage, name), name)
    step("install: copied")
    make_venv(os.path.join(stage, VENV), requirements(top), wheels)
    step("install: environment")
    _compile(stage, root.destdir)
    for name in (VENV, *PARTS):
        _take_place(os.path.join(stage, name), root(f"{HOME}/{name}"))
        step(f"install: {name}")
    remove(stage)
    sync(root(HOME))
    return True


def _copy(origin: str, target: str, name: str) -> None:
    if os.path.isfile(origin):
        shutil.copy2(origin, target)
        return
    if not os.path.isdir(origin):
        raise RunphiError(f"cannot install: {origin} is missing", "run it from a whole checkout")
    kept = set(BINARIES) if name == "bin" else None

    def ignored(directory: str, names: list[str]) -> set[str]:
        drop = {"__pycache__"} & set(names)
        if kept is not None and directory == origin:
            drop |= set(names) - kept
        return drop

    shutil.copytree(origin, target, ignore=ignored, symlinks=True)
    _readable(target)


def _readable(top: str) -> None:
    """Give a tree modes of its own: a checkout may have been made under any umask."""
    for directory, _, names in os.walk(top):
        os.chmod(directory, 0o755)
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)


def make_venv(path: str, wanted: Sequence[str], wheels: str | None) -> None:
    """Make a Python environment that holds nothing but what is wanted, and that may be moved."""
    _check_python()
    _run("make a Python environment", "apt-get install python3-venv", PYTHON, "-I", "-m", "venv", path)
    where = ["--no-index", "--find-links", os.path.abspath(wheels)] if wheels else []
    pip = [f"{path}/bin/python", "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    hint = (
        f"fetch them on a machine with a network: pip download --only-binary :all: -d {wheels} {' '.join(wanted)}"
        if wheels
        else "check the network, or give a folder of wheels with --wheels"
    )
    _run(
        "install the Python packages", hint, *pip, "install", "--only-binary", ":all:", "--no-compile", *where, *wanted
    )
    _run("take pip out again", "try again", *pip, "uninstall", "--yes", "pip", "setuptools")
    for name in os.listdir(f"{path}/bin"):
        if not name.startswith("python"):  # activate, and tools of the packages: their first line names this place
            remove(f"{path}/bin/{name}")
    with open(f"{path}/pyvenv.cfg") as file:
        lines = [line for line in file if not line.startswith("command")]
    with open(f"{path}/pyvenv.cfg", "w") as file:
        file.writelines(lines)


def _check_python() -> None:
    code = "import sys; print(*sys.version_info[:2])"
    said = _run("ask Python for its version", f"install {PYTHON}", PYTHON, "-I", "-c", code)
    if tuple(map(int, said.split())) < _OLDEST:
        raise RunphiError(
            f"cannot use {PYTHON}: it is version {said.strip().replace(' ', '.')}",
            f"Python {'.'.join(map(str, _OLDEST))} is the oldest that works",
        )


def _compile(stage: str, destdir: str) -> None:
    """Compile once: else the first start would write files that nobody knows of."""
    words = [
        "-m",
        "compileall",
        "-q",
        "-s",
        f"{destdir}{HOME}/{STAGE}",
        "-p",
        HOME,
        "-x",
        r"/init/|/fake_jailhouse/bin/",
    ]
    folders = [os.path.join(stage, name) for name in (VENV, "runphi_async", "backends", "consoles")]
    _run("compile the Python files", "look at the file that is named", PYTHON, "-I", *words, *folders)


def _take_place(new: str, old: str) -> None:
    """Put one part of the new version in the place of the old one, in one step where there is one."""
    if not os.path.lexists(old):
        os.rename(new, old)
    elif os.path.isdir(old):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), old)
    else:
        os.replace(new, old)


def _run(what: str, hint: str, *argv: str) -> str:
    env = {**os.environ, "PATH": os.environ.get("PATH") or PATH}
    try:
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as exc:
        raise RunphiError(f"cannot {what}: {argv[0]}: {exc.strerror}", hint) from exc
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        said = next((line for line in reversed(lines) if line.lower().startswith("error")), lines[-1])
        raise RunphiError(f"cannot {what}: {said}", hint)
    return done.stdout
