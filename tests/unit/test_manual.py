# SPDX-License-Identifier: Apache-2.0
"""Man page, completion and reference page say what the command line takes."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from runphi_async.commands import manual
from runphi_async.install.cli import parser

ROOT = Path(__file__).resolve().parents[2]
COMPLETION = ROOT / "packaging" / "completion" / "runphi.bash"


@pytest.mark.parametrize(
    ("what", "path"), [("man", ROOT / "packaging" / "runphi.8"), ("bash", COMPLETION)], ids=["man", "bash"]
)
def test_what_is_made_is_current(what: str, path: Path) -> None:
    command = f"python -m runphi_async.commands.manual {what} > {path.relative_to(ROOT)}"
    assert path.read_text() == manual.MADE[what](), f"run: {command}"


def test_every_command_and_option_is_on_the_page() -> None:
    page = manual.man()
    for command in manual.commands():
        assert re.search(rf"^\.SS {re.escape(' '.join(command.words))}", page.replace("\\-", "-"), re.M)
        for action in command.options:
            assert all(name.replace("-", "\\-") in page for name in action.option_strings)


@pytest.mark.parametrize("command", manual.commands(), ids=lambda command: " ".join(command.words))
def test_the_reference_page_names_every_option(command: manual.Command) -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    if command.words[0] in ("exec", "checkpoint", "restore"):
        return  # runc's, and so are their options
    assert " ".join(command.words) in page
    names = [name for action in command.options for name in action.option_strings if name.startswith("--")]
    assert [name for name in names if name not in page] == []


def test_the_reference_page_of_configure_names_every_option() -> None:
    page = (ROOT / "docs" / "reference" / "configure.md").read_text()
    names = [name for action in parser()._actions for name in action.option_strings if name not in ("-h", "--help")]
    assert [name for name in names if f"`{name}" not in page and f"{name}`" not in page] == []


def complete(tmp_path: Path, line: str) -> list[str]:
    words = [*shlex.split(line), ""] if line.endswith(" ") else shlex.split(line)
    script = (
        f". {shlex.quote(str(COMPLETION))}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        '_runphi; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={"RUNPHI_RUN_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


def test_completion(tmp_path: Path) -> None:
    for name in ("demo", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").touch()
    (tmp_path / "file.cell").touch()
    assert complete(tmp_path, "runphi st") == ["start", "state", "stats"]
    assert complete(tmp_path, "runphi --root /x sta") == ["start", "state", "stats"]
    assert complete(tmp_path, "runphi --log-format ") == ["text", "json"]
    assert complete(tmp_path, "runphi attach ") == ["demo", "other"]
    assert complete(tmp_path, "runphi attach d") == ["demo"]
    assert complete(tmp_path, "runphi attach --rep") == ["--replay"]
    assert complete(tmp_path, "runphi list --format ") == ["table", "json"]
    assert complete(tmp_path, "runphi cell ") == ["dump", "check", "diff"]
    assert complete(tmp_path, "runphi cell check --sys") == ["--system"]
    assert complete(tmp_path, "runphi cell check f") == ["file.cell"]
    assert complete(tmp_path, "runphi doctor ") == []
