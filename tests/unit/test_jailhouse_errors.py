# SPDX-License-Identifier: Apache-2.0
"""What a person is told of every failure of Jailhouse's tool: docs/reference/jailhouse-errors.md, row by row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from backends.jailhouse import check, codec, errorpage, images
from backends.jailhouse.errortext import Action, Answer, Condition, Facts, explain
from backends.jailhouse.model import Arch, CellFlag
from backends.jailhouse.plan import Form, Load
from backends.jailhouse.tool import Places, Tool
from runphi_async.errors import BackendError
from runphi_async.testing.fake_jailhouse import board
from tests.unit.fakeboard import session
from tests.unit.jailhousekit import DATA

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.jailhouse.errorpage import Row, Silent

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "jailhouse-errors.md"
ROWS = list(errorpage.rows())
#: What a recorded session's own files and paths are called in the page.
PATH = re.compile(r"(opening|reading) /(nonexistent|tmp/empty)(\.\w+)?:")


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == errorpage.page(), "run python -m backends.jailhouse.errorpage > " + PAGE.name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.command}: {row.situation}")
def test_every_row_says_what_failed_why_and_how_to_mend_it(row: Row) -> None:
    text = errorpage.told(row)
    assert text.startswith(f"cannot {row.action}")
    assert re.fullmatch(r"cannot [^:]+: [^;]{5,}; .{5,}", text)
    assert "does not exist" not in text  # engines take it for an unknown container
    assert "said" not in text  # the words are ours, not the tool's


def test_rows_that_look_alike_are_told_apart() -> None:
    alike: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in ROWS:
        alike.setdefault((row.command, row.stderr), {}).setdefault(errorpage.told(row), []).append(row.situation)
    together = [rows for texts in alike.values() for rows in texts.values() if len(rows) > 1]
    assert together == [  # one sentence for two situations, where nothing tells them apart
        ["a truncated system configuration", "it lists more CPUs than are online"],
        ["no such cell, by name or id", "a number below zero is a name"],
    ]


def recorded() -> set[str]:
    """Every error of the tool, and of those for modules, in the recorded sessions."""
    found = set()
    for path in sorted((DATA / "transcripts").glob("*.txt")):
        for step in session(path):
            lines = step.result.err.splitlines()
            found |= {line for line in lines if step.result.status and not line.startswith("bash: ")}
    return found


@pytest.mark.parametrize("line", sorted(recorded()))
def test_every_recorded_error_has_a_row(line: str) -> None:
    known = {row.stderr for row in ROWS}
    assert PATH.sub("", line) in {PATH.sub("", text) for text in known}


def test_what_nobody_foresaw_is_quoted() -> None:
    error = explain(Action.START, Answer(3, "", "Segmentation fault\n"), Facts("x", Condition.ENABLED))
    assert str(error) == (
        "cannot start cell 'x': jailhouse said 'Segmentation fault' and ended with status 3; look into the kernel's log"
    )
    error = explain(Action.START, Answer(1, "", "JAILHOUSE_CELL_START: Bad address"), Facts("x", Condition.ENABLED))
    assert "jailhouse said 'Bad address'" in str(error)
    assert "nobody said why" in str(explain(Action.REMOVE, Answer(1, "", ""), Facts("", Condition.ENABLED)))


# Section: what the tool does not say

CELL = board.small_cell("demo")


def checked(**change: Any) -> str:
    cell = msgspec.structs.replace(CELL, **change)
    others = [check.Named("'other'", board.small_cell("other", (2,)))] if change.get("name") == "second" else []
    return "\n".join(map(str, check.check_cell(cell, board.root_config(), others)))


def tree(path: Path, **files: str) -> Tool:
    for name, text in files.items():
        (path / name).write_text(text)
    return Tool(Places(sysfs=str(path if files else path / "none")))


async def refusal(call: Awaitable[object]) -> str:
    with pytest.raises(BackendError) as caught:
        await call
    return str(caught.value)


async def long_name(path: Path) -> str:
    return await refusal(Tool(Places(str(path), str(path), str(path))).destroy("n" * 32))


async def empty_image(path: Path) -> str:
    (path / "image").touch()
    with pytest.raises(BackendError) as caught:
        images.images([Load(Form.RAW, str(path / "image"))], str(path))
    return str(caught.value)


def words(text: str) -> Callable[[Path], Awaitable[str]]:
    async def give(path: Path) -> str:
        return text

    return give


PROOFS: dict[str, Callable[[Path], Awaitable[str]]] = {
    "module not loaded": lambda path: refusal(tree(path).enabled()),
    "not enabled": lambda path: refusal(tree(path, enabled="0\n").enabled()),
    "another architecture": words(checked(architecture=Arch.X86)),
    "a truncated cell": words("\n".join(map(str, check.check_bytes(codec.encode(CELL)[:200])))),
    "no CPU": words(checked(cpu_set=bytes(8))),
    "RAM of another cell": words(checked(name="second")),
    "RAM that is not the root cell's": words(
        "\n".join(map(str, check.check_cell(board.small_cell("x", ram=0x7FA3_0000), board.root_config())))
    ),
    "an active cell without msg_reply_timeout": words(checked(flags=CELL.flags & ~CellFlag.PASSIVE_COMMREG)),
    "an empty name": words(checked(name="")),
    "a name that is a number": words(checked(name="42")),
    "a name of more than 31 bytes": long_name,
    "an empty image": empty_image,
}


@pytest.mark.parametrize("row", errorpage.SILENT, ids=lambda row: str(row.situation))
async def test_what_the_tool_does_not_say_is_said(row: Silent, tmp_path: Path) -> None:
    assert row.told in await PROOFS[row.situation](tmp_path)
