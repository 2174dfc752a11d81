# SPDX-License-Identifier: Apache-2.0
"""Copies of this checkout: for users who cannot reach it, for places with awkward names, for other machines.

A checkout may lie below a home that others may not enter, with files that its owner alone may read. A test that runs
the project as another user therefore asks for the fixture ``open_checkout``, which every user can reach, wherever the
checkout is; ``tests/unit/test_places.py`` sees to it that none does without.
"""

from __future__ import annotations

import functools
import shutil
import stat
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
#: What the programs in bin/ and those of the fake board need of the checkout.
TREES: Final = ("bin", "runphi_async", "consoles", "backends")
#: The environment's directory of packages, below the environment's own.
SITE: Final = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
#: A user and a group that own nothing.
NOBODY: Final = 65534


def distributions(names: Iterable[str]) -> dict[str, metadata.Distribution]:
    """Return these distributions and all they depend on, as installed in this environment."""
    waiting = list(names)
    found: dict[str, metadata.Distribution] = {}
    while waiting:
        wanted = Requirement(waiting.pop())
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        key = wanted.name.lower().replace("_", "-")
        if key in found:
            continue
        found[key] = metadata.distribution(wanted.name)
        waiting += found[key].requires or []
    return found


def copy_distribution(distribution: metadata.Distribution, site: Path) -> None:
    """Copy a distribution's files that lie in site-packages."""
    for file in distribution.files or []:
        if file.parts[0] == ".." or "__pycache__" in file.parts:
            continue
        target = site / str(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(distribution.locate_file(file)), target)


def make_environment(top: Path, names: Iterable[str]) -> None:
    """Make a Python environment of these packages as they are installed here; it needs no network."""
    site = top / SITE
    site.mkdir(parents=True)
    for distribution in distributions(names).values():
        copy_distribution(distribution, site)
    (top / "bin").mkdir()
    (top / "bin" / "python").symlink_to("/usr/bin/python3")
    (top / "pyvenv.cfg").write_text("home = /usr/bin\n")


def requirements() -> list[str]:
    """Return what the project itself depends on."""
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return found


@functools.cache
def tracked() -> list[str]:
    """Return the files of the checkout that git knows or would take, by their names below its top directory."""
    argv = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(argv, capture_output=True, check=True).stdout.decode().split("\0")
    return sorted(name for name in names if name and (ROOT / name).exists())


def open_to_all(top: Path) -> None:
    """Let every user read what lies there, and run what is a program."""
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(stat.S_IMODE(mode) | 0o444 | (0o111 if path.is_dir() or mode & 0o100 else 0))


class OpenCheckout:
    """A copy of the checkout that every user can reach, and the only way for a test to be another user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for tree in TREES:
            shutil.copytree(ROOT / tree, root / tree, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
        make_environment(root / ".venv", requirements())
        open_to_all(root)

    def call_as_nobody(
        self, argv: Sequence[str], *, groups: tuple[int, ...] = (), **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user who owns nothing.

        :param groups: groups to be a member of.
        """
        return subprocess.run(
            argv, user=NOBODY, group=NOBODY, extra_groups=groups, cwd="/", capture_output=True, text=True, check=False,
            **more,
        )  # fmt: skip
