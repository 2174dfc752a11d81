# SPDX-License-Identifier: Apache-2.0
"""What newcomers read is true: the two ways follow the imports, what a page names is there, forms and hooks hold."""

from __future__ import annotations

import configparser
import itertools
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
import yaml
from grimp import build_graph

from runphi_async.commands.cli import verb_parser

if TYPE_CHECKING:
    from grimp import ImportGraph

ROOT: Final = Path(__file__).resolve().parents[2]
ARCHITECTURE: Final = ROOT / "docs/explanation/architecture.md"
GLOSSARY: Final = ROOT / "docs/explanation/glossary.md"
#: what hooks may run
COMMANDS: Final = ("ruff", "mypy", "lint-imports", "python")
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


# Section: CONTRIBUTING, forms and hooks


def test_every_file_that_contributing_names_exists() -> None:
    """Those in capitals are the reader's to make."""
    tops = "runphi_async|backends|consoles|tests|docs|bin|bench|packaging"
    named = re.findall(rf"`((?:{tops})/[\w./-]*)[^`]*`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 30
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", ["bug", "wish"])
def test_a_form_has_what_the_forge_wants(name: str) -> None:
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert form["name"]
    assert form["description"]
    fields = [entry for entry in form["body"] if entry["type"] != "markdown"]
    assert {entry["type"] for entry in fields} <= {"textarea", "input", "dropdown"}
    ids = [entry["id"] for entry in fields]
    assert len(set(ids)) == len(ids)
    assert all(entry["attributes"]["label"] for entry in fields)
    assert all(entry["attributes"]["options"] for entry in fields if entry["type"] == "dropdown")


def test_a_bug_comes_with_a_report() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    (report,) = (entry for entry in form["body"] if entry.get("id") == "report")
    assert report["validations"]["required"] is True
    command = re.search(r"`runphi (doctor --report \S+)`", report["attributes"]["description"])
    assert command is not None
    assert verb_parser("doctor")[0].parse_args(command[1].split()[1:]).report == "report.txt"


def test_no_other_issues_and_no_other_forms() -> None:
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    assert yaml.safe_load((folder / "config.yml").read_text()) == {"blank_issues_enabled": False}
    assert sorted(path.name for path in folder.iterdir()) == ["bug.yml", "config.yml", "wish.yml"]
    assert "runphi doctor --report" in (ROOT / ".github/pull_request_template.md").read_text()


def hooks() -> list[dict[str, Any]]:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    found: list[dict[str, Any]] = repo["hooks"]
    return found


def test_hooks_need_no_network() -> None:
    assert {hook["language"] for hook in hooks()} == {"system"}
    assert {hook["entry"].split()[0] for hook in hooks()} <= {f".venv/bin/{name}" for name in COMMANDS}


def test_hooks_are_linters_of_the_suite() -> None:
    lint = (ROOT / "bin/test").read_text().partition("\nlint() {\n")[2].partition("\n}\n")[0]
    run = [" ".join(re.sub(r'"\$\{\w+#"\$PWD/"\}(/bin/)?(\w*)', r"\2", line).split()) for line in lint.splitlines()]
    for hook in hooks():
        words = [word for word in hook["entry"].split() if word != "--force-exclude"]
        wanted = " ".join([words[0].removeprefix(".venv/bin/").removeprefix("python"), *words[1:]]).strip()
        assert [line for line in run if wanted in line.replace('"', "")], hook["id"]


def test_editors_and_linters_agree() -> None:
    text = (ROOT / ".editorconfig").read_text()
    config = configparser.ConfigParser()
    config.read_string("[file]\n" + text)
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert int(config["*"]["max_line_length"]) == tomllib.load(file)["tool"]["ruff"]["line-length"]
    assert config["file"]["root"] == "true"
    assert (config["*"]["indent_style"], config["*"]["indent_size"]) == ("space", "4")
