# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the system tests: a private supervisor, checked for left-overs after each test."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from runphi_async.install.tree import requirements
from tests.once import made_once
from tests.system.overlay import Overlay
from tests.system.place import ROOT, Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def inmates_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(out: Path) -> None:
        done = subprocess.run([ROOT / "bin" / "build-inmates", out], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    # on /tmp: bundles hold hard links to it
    return made_once(tmp_path_factory, "inmates", build)


@pytest.fixture
def place(inmates_built: Path) -> Iterator[Place]:
    made = Place(inmates_built)
    yield made
    left = made.close()
    assert not left, "left over:\n" + "\n".join(left)


@pytest.fixture(params=["qemu", "fake"])
def backend(request: pytest.FixtureRequest) -> str:
    """For what must be the same with every backend."""
    return str(request.param)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of our dependencies; from here on no test needs a network."""

    def fetch(folder: Path) -> None:
        argv = ["/usr/bin/python3", "-m", "venv", str(folder / "venv")]
        subprocess.run(argv, check=True, capture_output=True)
        pip = [str(folder / "venv/bin/pip"), "download", "-q", "--only-binary", ":all:", "-d", str(folder)]
        subprocess.run([*pip, *requirements(str(ROOT))], check=True, capture_output=True)
        shutil.rmtree(folder / "venv")

    return made_once(tmp_path_factory, "wheels", fetch)


@pytest.fixture
def machine() -> Iterator[Overlay]:
    with Overlay() as made:
        yield made
        # a supervisor that ended took its file along
        left = made.processes() if (made.merged / "run/runPHI/supervisor.pid").exists() else []
    assert not left, f"processes left over: {left}"
