# SPDX-License-Identifier: Apache-2.0
"""Every event that is written is one of the union, and no rule may take its name."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consoles.streams.rules import Rule, RuleError, compiled
from runphi_async.eventnames import BY_NAME, RESERVED, problem
from runphi_async.record.eventlog import EventLog

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def notes() -> Iterator[tuple[str, str, set[str]]]:
    """Every literal kind in the sources: where, kind, fields."""
    for room in ("runphi_async", "backends", "consoles"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute)):
                    continue
                kind = node.args[0]
                if node.func.attr in ("note", "_note") and isinstance(kind, ast.Constant):
                    fields = {word.arg for word in node.keywords if word.arg is not None}
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", str(kind.value), fields


def test_every_kind_in_the_sources_is_known_with_its_fields() -> None:
    found = list(notes())
    assert len(found) > 20
    for where, kind, fields in found:
        assert kind in BY_NAME, where
        known = BY_NAME[kind]
        required = set(known.__struct_fields__[: len(known.__struct_fields__) - len(known.__struct_defaults__)])
        assert required <= fields, where
        assert fields <= set(known.__struct_fields__), where


@pytest.mark.parametrize("name", ["hypervisor", "ledger", "log-resumed", "console-gone", "channel-gone", "cpus-left"])
def test_no_rule_takes_the_name_of_an_event(name: str) -> None:
    with pytest.raises(RuleError, match="has an event of that name"):
        compiled(Rule(name, b"x"), RESERVED)


@pytest.mark.parametrize(
    ("kind", "data", "why"),
    [
        ("signal", {"number": 9}, None),
        ("ready", {"rule": "ready", "count": 1, "line": "x"}, None),
        ("ledger", {"rule": "ledger", "count": 1, "line": "x"}, None),
        ("late", {}, "no such event"),
        ("signal", {"number": "9"}, "Expected `int`"),
        ("signal", {"number": 9, "more": 1}, "unknown field `more`"),
        ("sick", {}, "missing required field `problem`"),
    ],
)
def test_what_is_an_event(kind: str, data: dict[str, object], why: str | None) -> None:
    found = problem(kind, data)
    assert found is None if why is None else found is not None and why in found


def test_a_wrong_event_is_logged_and_not_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    events = EventLog()
    events.write(str(tmp_path), "signal", {"number": "nine"})
    assert "event signal: Expected `int`" in caplog.text
    assert json.loads(events.read(str(tmp_path), 0))["number"] == "nine"
