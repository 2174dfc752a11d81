# SPDX-License-Identifier: Apache-2.0
"""The core of the engine tests is there: what --quick and the run in the other Debian select is no empty promise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.checkout import ROOT
from tests.engine.core import CORE


@pytest.mark.parametrize("engine", [None, "containerd"])
def test_the_selection_is_the_table(engine: str | None) -> None:
    mark = "core" if engine is None else f"core(engine='{engine}')"
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "-p",
        "no:cacheprovider",
        "tests/engine",
        "-m",
        mark,
    ]
    done = subprocess.run(argv, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    found = {line.removeprefix("tests/engine/") for line in done.stdout.splitlines() if "::" in line}
    engines = CORE.values() if engine is None else [CORE[engine]]
    assert found == {test for tests in engines for test in tests.values()}


def test_each_engine_has_each_kind() -> None:
    kinds = {"bare-metal", "linux", "plain"}
    assert {engine: set(tests) - {"cell"} for engine, tests in CORE.items()} == dict.fromkeys(CORE, kinds)
    assert "cell" in CORE["containerd"]
