# SPDX-License-Identifier: Apache-2.0
"""Some tests once more in a clone as people have them: below a home that is its owner's alone, in an awkward path.

They are those that are another user, and a guest under each engine: engines' own files name the runtime by its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.checkout import ROOT, tracked
from tests.engine.core import CORE

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Below a home of mode 0700.
CLONE: Final = "home/run phi, été & co/clone"
#: Seconds that the tests may take there: they take half a minute on an idle machine.
PATIENCE: Final = 500.0

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user"),
    pytest.mark.timeout(600),  # other tests are run
]


@pytest.fixture
def clone() -> Iterator[Path]:
    """A clone that was made with umask 077; its Python environment is the checkout's own."""
    with tempfile.TemporaryDirectory(prefix="elsewhere-", dir="/tmp") as name:
        top = Path(name, CLONE)
        for file in tracked():
            target = top / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, target, follow_symlinks=False)
            if not target.is_symlink():
                target.chmod(target.stat().st_mode & 0o700)
        for folder in (top, *top.rglob("*/")):
            folder.chmod(0o700)
        Path(name, "home").chmod(0o700)
        (top / ".venv").symlink_to(ROOT / ".venv")
        yield top


def run_there(clone: Path, *words: str) -> None:
    """Run tests of the clone, of which none may be skipped."""
    argv = [".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    with tempfile.TemporaryFile("w+") as out:
        done = subprocess.run(
            argv, cwd=clone, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=PATIENCE, check=False
        )
        out.seek(0)
        said = out.read()
    assert done.returncode == 0, said[-5000:]
    assert " passed" in said.splitlines()[-1]
    assert "skipped" not in said.splitlines()[-1]


def test_other_users_need_not_reach_the_clone(clone: Path) -> None:
    run_there(clone, "-m", "another_user", "tests/system")


def test_every_engine_takes_the_clones_path(clone: Path) -> None:
    run_there(clone, *(f"tests/engine/{tests['bare-metal']}" for tests in CORE.values()))
