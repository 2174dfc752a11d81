# SPDX-License-Identifier: Apache-2.0
"""What newcomers read is true: the two ways follow the imports, and every module that a page names is there."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from grimp import build_graph

if TYPE_CHECKING:
    from grimp import ImportGraph

ROOT: Final = Path(__file__).resolve().parents[2]
ARCHITECTURE: Final = ROOT / "docs/explanation/architecture.md"
GLOSSARY: Final = ROOT / "docs/explanation/glossary.md"
#: how a page names a module of ours
NAMED: Final = re.compile(r"`((?:runphi_async|backends|consoles)(?:\.\w+)*)`")


@pytest.fixture(scope="module")
def graph() -> ImportGraph:
    return build_graph("runphi_async", "consoles", "backends", cache_dir=None)


# Section: the two ways


class Step(NamedTuple):
    """One step: its module, and by what it is handed on to the next, "" where an import says so."""

    module: str
    handed: str


def read_way(text: str) -> list[Step]:
    """Read one numbered list; each entry begins with its module."""
    entries = re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:]
    steps = []
    for entry in entries:
        module = NAMED.match(entry)
        assert module is not None, f"no module at the beginning of: {entry}"
        _, _, handed = " ".join(entry.split()).partition("*Handed on* ")
        steps.append(Step(module[1], handed))
    return steps


def ways() -> dict[str, list[Step]]:
    section = ARCHITECTURE.read_text().partition("## Two ways through the house\n")[2].partition("\n## ")[0]
    _, *texts = re.split(r"^### ", section, flags=re.MULTILINE)
    return {text.splitlines()[0]: read_way(text) for text in texts}


def faults(way: list[Step], graph: ImportGraph) -> list[str]:
    """Say which steps the imports do not bear out."""
    found = [f"there is no {step.module}" for step in way if step.module not in graph.modules]
    if found:
        return found
    for step, after in itertools.pairwise(way):
        one, other = step.module, after.module
        linked = any(
            graph.direct_import_exists(importer=a, imported=b) for a, b in ((one, other), (other, one)) if a != b
        )
        if not linked and not step.handed:
            found.append(f"{one} and {other} do not import each other")
        if linked and step.handed:
            found.append(f"{one} needs not be handed on to {other}: one imports the other")
    return found


def test_there_are_two_ways() -> None:
    assert [len(way) > 8 for way in ways().values()] == [True, True]


@pytest.mark.parametrize("name", ways())
def test_a_way_follows_the_imports(name: str, graph: ImportGraph) -> None:
    assert faults(ways()[name], graph) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1. `consoles.streams.hub` moves.\n2. `consoles.streams.journal` holds.\n", None),
        ("1. `consoles.streams.journal` holds.\n2. `consoles.streams.hub` moves.\n", None),
        (
            "1. `consoles.streams.journal` holds. *Handed on* by\n   hand.\n2. `consoles.streams.hub` moves.\n",
            "needs not",
        ),
        ("1. `consoles.streams.hub` moves.\n2. `runphi_async.wire.call` sends.\n", "do not import"),
        ("1. `consoles.streams.hub` moves. *Handed on* by\n   mail.\n2. `runphi_async.wire.call` sends.\n", None),
        ("1. `consoles.streams.hub` moves.\n2. `consoles.streams.nothing` holds.\n", "there is no"),
    ],
)
def test_a_way_that_is_wrong(text: str, fault: str | None, graph: ImportGraph) -> None:
    found = faults(read_way(text), graph)
    assert [fault in line for line in found if fault] == ([True] if fault else [])
    assert len(found) == (fault is not None)


# Section: the glossary


def glossary() -> list[tuple[str, str, str]]:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", GLOSSARY.read_text(), re.MULTILINE)
    return [row for row in rows if row[0] not in ("word", "---")]


def test_each_word_stands_once_and_in_order() -> None:
    words = [word.lower() for word, _, _ in glossary()]
    assert len(words) > 30
    assert words == sorted(set(words))


def test_each_word_is_at_home_somewhere(graph: ImportGraph) -> None:
    for word, meaning, modules in glossary():
        assert meaning.endswith("."), word
        assert NAMED.fullmatch(modules), word


def test_every_module_that_a_page_names_exists(graph: ImportGraph) -> None:
    for page in (ARCHITECTURE, GLOSSARY):
        named = set(NAMED.findall(page.read_text()))
        assert named, page
        assert named <= graph.modules, (page, named - graph.modules)


def test_the_glossary_is_found() -> None:
    assert "(glossary.md)" in ARCHITECTURE.read_text()
    assert "(docs/explanation/glossary.md)" in (ROOT / "README.md").read_text()
