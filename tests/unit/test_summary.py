# SPDX-License-Identifier: Apache-2.0
"""What bin/test says at its end, from reports that pytest itself has written."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests import summary
from tests.summary import Outcome

ROOT: Final = Path(__file__).resolve().parents[2]
#: One test of each end. Those of the second file end in another way when they run again.
FILES: Final = {
    "tests/unit/test_ends.py": """
import pytest

def test_passes():
    pass

@pytest.mark.parametrize("text", ["it's a \\"b\\" [c]", "über/..::x"])
def test_fails(text):
    assert text == "nothing"

class TestInside:
    def test_fails_too(self):
        raise ValueError("two\\nlines")

def test_skipped():
    pytest.skip("no board here")

@pytest.fixture
def broken():
    yield
    raise OSError("left over")

def test_its_end_fails(broken):
    pass

def test_all_of_it_fails(broken):
    raise ValueError("the first reason")
""",
    "tests/unit/test_once.py": """
from pathlib import Path

def test_unsteady():
    mark = Path(__file__).with_name("ran")
    ran, _ = mark.exists(), mark.touch()
    assert ran
""",
    "tests/unit/test_unreadable.py": "import a_module_that_nobody_has\n",
}


def run_pytest(cwd: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run tests there, by nothing but pytest itself: of plugins it needs none."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", *words]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    return done


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A directory as bin/test makes it: two suites, of which one is pytest's."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\njunit_family = xunit1\n")
    out = tmp_path / "report"
    out.mkdir()
    for name in ("unit", "unit.again"):
        run_pytest(tmp_path, f"--junitxml={out / name}.xml", "tests")
    (out / "suites").write_text("lint\t3.4\t1\nunit\t61.5\t1\n")
    (out / "checks").write_text("lint\t1.5\t0\truff check .\nlint\t2\t1\tmypy\n")
    return out


def test_every_test_is_counted_once(report: Path) -> None:
    lint, unit = summary.read(report, {})
    assert [lint.count(outcome) for outcome in Outcome] == [1, 1, 0, 0]
    assert [unit.count(outcome) for outcome in Outcome] == [1, 6, 1, 1]
    assert summary.last_line([lint, unit]) == "3 passed, 7 failed, 1 skipped"
    ends = {case.name: case for case in unit.tests}
    assert ends["tests/unit/test_once.py::test_unsteady"].outcome is Outcome.UNSTEADY
    assert ends["tests/unit/test_ends.py::TestInside::test_fails_too"].message == "ValueError: two"
    assert "left over" in ends["tests/unit/test_ends.py::test_its_end_fails"].message
    assert ends["tests/unit/test_ends.py::test_all_of_it_fails"].message == "ValueError: the first reason"
    assert ends["tests/unit/test_unreadable.py"].outcome is Outcome.FAILED


def test_the_commands_run_the_very_test(report: Path) -> None:
    """Together they select what failed, whatever its name is made of, and nothing else."""
    _, unit = summary.read(report, {})
    wanted = [case for case in unit.tests if case.outcome is Outcome.FAILED]
    words = [shlex.split(case.command) for case in wanted]
    assert {tuple(line[:3]) for line in words} == {(".venv/bin/python", "-m", "pytest")}
    done = run_pytest(report.parent, "-rfE", *[line[3] for line in words])
    assert done.stdout.splitlines()[-1].startswith("4 failed, 1 passed, 3 errors"), done.stdout
    assert all(f" {case.name}" in done.stdout for case in wanted)


def test_what_is_printed(report: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.summary", report], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"RUNPHI_ACCEL": "tcg"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == "3 passed, 7 failed, 1 skipped"
    assert "lint               1         1         0         0         3" in lines
    assert "unit               1         6         1         1        62" in lines
    unsteady = lines.index("UNSTEADY: failed, then passed by itself:")
    failed = lines.index("FAILED, and what runs it alone:")
    assert lines[unsteady + 1] == "  tests/unit/test_once.py::test_unsteady"
    assert "    mypy" in lines[failed:]
    command = "    RUNPHI_ACCEL=tcg .venv/bin/python -m pytest tests/unit/test_ends.py::TestInside::test_fails_too"
    assert command in lines[failed:]


@pytest.mark.parametrize(
    ("status", "last"), [(0, "0 passed, 0 failed, 0 skipped"), (5, "0 passed, 0 failed, 0 skipped"),
                         (2, "0 passed, 1 failed, 0 skipped"), (137, "0 passed, 1 failed, 0 skipped")]
)  # fmt: skip
def test_a_suite_without_a_result(tmp_path: Path, status: int, last: str) -> None:
    (tmp_path / "suites").write_text(f"xen\t9.0\t{status}\n")
    suites = summary.read(tmp_path, {})
    assert summary.last_line(suites) == last
    assert ("ended without a result" in summary.render(suites)) is last.startswith("0 passed, 1")


def test_another_suite_has_a_runner_of_its_own() -> None:
    made = summary.command("xen", "tests/xen/dom0/test_life.py::test_a[b c]", {"RUNPHI_ACCEL": ""})
    assert made == ".venv/bin/python -m tests.xen 'tests/xen/dom0/test_life.py::test_a[b c]'"
