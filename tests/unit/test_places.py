# SPDX-License-Identifier: Apache-2.0
"""Rules for tests that hold wherever a checkout lies: whoever is another user reaches the project by a copy of it."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

import pytest

from tests.checkout import ROOT
from tests.system.test_fake_jailhouse_transcripts import OF_OTHER_USERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The module that may: it makes the copy.
ALLOWED: Final = ROOT / "tests" / "checkout.py"
#: Arguments of subprocess's functions.
KEYWORDS: Final = {"user", "group", "extra_groups"}
#: Functions of os.
FUNCTIONS: Final = {"setuid", "seteuid", "setreuid", "setresuid", "setgid", "setegid", "setregid", "setresgid"}
#: Programs whose first words these are, and options that make others do it.
PROGRAMS: Final = {"su", "sudo", "runuser"}
OPTIONS: Final = ("--reuid", "--regid", "--userspec", "--setuid", "--setgid")


def changes_of_user(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a test module in which a process becomes another user's, and what says so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            named = {keyword.arg for keyword in node.keywords} & KEYWORDS
            function = ast.unparse(node.func).rpartition(".")
            if named and function[2] in ("run", "Popen", "check_output", "check_call", "call"):
                yield node.lineno, f"{ast.unparse(node.func)}({', '.join(sorted(map(str, named)))})"
            if function[2] in FUNCTIONS and function[0] == "os":
                yield node.lineno, ast.unparse(node.func)
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if text in PROGRAMS or text.startswith(OPTIONS):
            yield getattr(node, "lineno", 0), text


def modules() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run(['id'], user=65534)",
        "subprocess.Popen(argv, extra_groups=(1,), **more)",
        "os.setresuid(1, 1, 1)",
        "run('setpriv', '--reuid=65534', 'runphi')",
        "['runuser', '-u', 'nobody', 'runphi']",
    ],
)
def test_the_rule_knows_the_ways(line: str) -> None:
    assert [number for number, _ in changes_of_user(f"import os\n{line}")] == [2]


def test_only_a_copy_is_used_by_other_users() -> None:
    """The checkout may lie where they cannot go: such a test takes ``open_checkout`` and its ``call_as_nobody``."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in modules()
        if path not in (ALLOWED, ROOT / "tests/unit/test_places.py")
        for line, what in changes_of_user(path.read_text())
    ]
    assert found == []


def test_recorded_commands_of_other_users_are_replayed_on_a_copy() -> None:
    """Nothing but some transcripts has such commands, and those are named where they are replayed."""
    data = [path for path in (ROOT / "tests").rglob("*") if path.suffix in (".txt", ".sh", ".json")]
    recorded = {path for path in data if any(option in path.read_text(errors="replace") for option in OPTIONS)}
    transcripts = ROOT / "tests/data/jailhouse/transcripts"
    assert recorded == {transcripts / f"{name}.txt" for name in OF_OTHER_USERS}
