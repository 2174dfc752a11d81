# SPDX-License-Identifier: Apache-2.0
"""Events: the lines that are written of each, where they are documented, and that nobody writes another kind."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest
from msgspec import UNSET

from consoles.streams.rules import Rule, RuleError, compiled
from runphi_async import events
from runphi_async.events import NAMES, Attach, ConsoleLost, Exit, Own, Pause, RuleMatch, encode, kind, on_channel

ROOT: Final = Path(__file__).resolve().parents[2]
EACH: Final = sorted(get_args(Own), key=kind)
#: a value of each type that a field may have
VALUES: Final = {"str": "text", "int": 7, "bool": True, "int | None": None, "str | None": None}


def made(event: type[Own]) -> Own:
    """Return an event with all its fields."""
    fields: dict[str, Any] = {
        name: VALUES[str(note).removesuffix(" | UnsetType")]
        for base in event.__mro__
        for name, note in getattr(base, "__annotations__", {}).items()
        if not name.startswith("__")
    }
    return event(**fields)


@pytest.mark.parametrize("event", EACH, ids=kind)
def test_a_line_holds_number_kind_and_fields(event: type[Own]) -> None:
    one = made(event)
    line = encode({"seq": 5, "time": 1.5}, one)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    data = json.loads(line)
    assert list(data)[:3] == ["seq", "time", "event"]
    assert (data.pop("seq"), data.pop("time"), data["event"]) == (5, 1.5, kind(event))
    assert data.pop("event") == kind(event)
    assert data == msgspec.structs.asdict(one)
    assert msgspec.json.decode(line, type=Own) == one


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (Pause(), {"event": "pause"}),
        (Pause(by="virsh"), {"event": "pause", "by": "virsh"}),
        (ConsoleLost(why="a flood"), {"event": "console-lost", "why": "a flood"}),
        (Exit(code=None, reason=None, delivered=False), {"event": "exit", "code": None, "reason": None,
                                                          "delivered": False}),
        (RuleMatch("panic", "panic", 2, "Oops"), {"event": "panic", "rule": "panic", "count": 2, "line": "Oops"}),
    ],
)  # fmt: skip
def test_what_does_not_apply_is_not_there_and_what_is_not_known_is_null(
    event: events.AnyEvent, data: dict[str, Any]
) -> None:
    assert json.loads(encode({"seq": 1}, event)) == {"seq": 1, **data}


def test_an_event_on_a_channel_says_so() -> None:
    event = Attach(who="anna", role="writer")
    assert event.channel is UNSET
    assert on_channel(event, "telemetry") == Attach(channel="telemetry", who="anna", role="writer")
    assert on_channel(Pause(), "telemetry") == Pause()


def test_every_event_of_the_module_is_in_the_union_under_a_name_of_its_own() -> None:
    defined = {
        one
        for name, one in vars(events).items()
        if isinstance(one, type) and issubclass(one, msgspec.Struct) and not name.startswith("_")
    }
    assert defined - {RuleMatch} == set(EACH)
    assert len(NAMES) == len(EACH)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_rule_has_the_name_of_an_event(name: str) -> None:
    with pytest.raises(RuleError, match="the runtime has an event of that name"):
        compiled(Rule(name, b"x"), NAMES)


# Section: nobody writes another kind


def sources() -> list[Path]:
    return [path for room in ("runphi_async", "consoles", "backends") for path in (ROOT / room).rglob("*.py")]


def unknown(source: str) -> list[str]:
    """Return the calls that write an event which is none of ours: a text, or fields by name, as everywhere before."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name.strip("_") not in ("note", "noted", "own_note"):
            continue
        words = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        if words or (node.keywords and len(node.args) == 1):
            found.append(ast.unparse(node))
    return found


def test_how_others_are_found() -> None:
    assert unknown('self._note("oops")\nguest.note(kind, code=1)') == ["self._note('oops')", "guest.note(kind, code=1)"]
    assert unknown("self._note(Exit(code=1))\nnoted(event)\nage.note(now, tail)") == []


def test_nobody_writes_another_kind() -> None:
    found = {str(path.relative_to(ROOT)): calls for path in sources() if (calls := unknown(path.read_text()))}
    assert found == {}


# Section: the documents


def listed() -> set[str]:
    """Return what the tables of the two pages have in their first column, below "Events"."""
    found: set[str] = set()
    for page in ("record-directory", "jailhouse"):
        text = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
        section = re.split(r"^## ", text.partition("\n## Events\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
        for row in re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE):
            found |= set(re.findall(r"`([^`]+)`", row))
    return found


def test_each_event_is_documented() -> None:
    timeline = {"hypervisor-console-gone", "hypervisor-console-back"}
    assert listed() == NAMES - timeline
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert all(f"`{name}`" in page for name in timeline)
