# SPDX-License-Identifier: Apache-2.0
"""The rule for waiting, tasks and threads: the linter knows it, and no file stands on its list for nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
RUFF: Final = Path(sys.executable).with_name("ruff")


def lint() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        found: dict[str, Any] = tomllib.load(file)["tool"]["ruff"]["lint"]
    return found


def banned() -> list[str]:
    return sorted(lint()["flake8-tidy-imports"]["banned-api"])


def listed() -> list[str]:
    """Return the product's files that are excused; those of tests and measurements are patterns."""
    ignores = lint()["per-file-ignores"]
    return sorted(name for name, rules in ignores.items() if "TID251" in rules and "*" not in name)


def test_each_file_on_the_list_needs_to_be() -> None:
    uses = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in banned()))
    for name in listed():
        assert (ROOT / name).exists(), f"{name} is gone: take it off the list in pyproject.toml"
        assert uses.search((ROOT / name).read_text()), f"{name} keeps the rule: take it off the list in pyproject.toml"


def test_only_files_are_excused() -> None:
    patterns = {name for name, rules in lint()["per-file-ignores"].items() if "TID251" in rules} - set(listed())
    assert patterns == {"tests/*", "bench/*"}


@pytest.mark.parametrize("name", banned())
@pytest.mark.parametrize("place", ["consoles/streams/newcomer.py", "runphi_async/client/newcomer.py"])
def test_the_linter_refuses(name: str, place: str) -> None:
    module, _, function = name.partition(".")
    command = [str(RUFF), "check", "--no-cache", "--output-format=concise", "--stdin-filename", place, "-"]
    for source in (f"import {module}\n\n{name}\n", f"from {module} import {function}\n\n{function}\n"):
        done = subprocess.run(command, input=source, text=True, capture_output=True, cwd=ROOT, check=False)
        assert done.returncode == 1
        assert "TID251" in done.stdout
