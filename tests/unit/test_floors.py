# SPDX-License-Identifier: Apache-2.0
"""The floors: the contracts are kept, each one breaks when it is broken on purpose, and the drawing shows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from grimp import build_graph
from importlinter.application.use_cases import read_user_options
from importlinter.configuration import configure
from importlinter.contracts.acyclic_siblings import AcyclicSiblingsContract
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract

from tests.contracts import Housed, Texts, floors, named, names_up, room_of, settings

if TYPE_CHECKING:
    from grimp import ImportGraph
    from importlinter import Contract

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs/explanation/architecture.md"
KINDS: Final[dict[str, type[Contract]]] = {
    "layers": LayersContract, "forbidden": ForbiddenContract, "acyclic_siblings": AcyclicSiblingsContract,
    "housed": Housed, "texts": Texts,
}  # fmt: skip
#: for each contract: an import that breaks it
BROKEN: Final = [
    ("floors", "runphi_async.host.cgroup", "runphi_async.container.container"),
    ("floors", "runphi_async.partition.request", "runphi_async.board.claims"),
    ("floors", "consoles.streams.hub", "runphi_async.wire"),
    ("consoles", "consoles.sharedmem.regions", "consoles.sources.base"),
    ("backends", "backends.qemu.driver", "backends.xen.driver"),
    ("client", "runphi_async.client.attach", "runphi_async.errors"),
    ("client", "runphi_async.client.attach", "consoles.sources.base"),
    ("circles", "runphi_async.record.lifecycle", "runphi_async.record.store"),
    ("circles", "consoles.streams.journal", "consoles.streams.sinks.attach"),
]


@pytest.fixture(scope="module")
def whole() -> ImportGraph:
    return build_graph("runphi_async", "consoles", "backends", cache_dir=None)


@pytest.fixture
def graph(whole: ImportGraph) -> ImportGraph:
    from copy import deepcopy

    return deepcopy(whole)


def contract(name: str) -> Contract:
    configure()
    options = read_user_options(str(ROOT / "pyproject.toml"))
    (found,) = (found for found in options.contracts_options if found["id"] == name)
    own = {key: value for key, value in found.items() if key not in ("id", "name", "type")}
    return KINDS[found["type"]](found["name"], options.session_options, own)


def kept(name: str, graph: ImportGraph) -> bool:
    return contract(name).check(graph, verbose=False).kept


@pytest.mark.parametrize("name", ["floors", "consoles", "backends", "client", "circles", "housed", "texts"])
def test_kept(name: str, graph: ImportGraph) -> None:
    assert kept(name, graph)


@pytest.mark.parametrize(("name", "importer", "imported"), BROKEN)
def test_broken_on_purpose(name: str, importer: str, imported: str, graph: ImportGraph) -> None:
    graph.add_import(importer=importer, imported=imported)
    assert not kept(name, graph)


def test_nothing_is_ignored() -> None:
    assert "ignore_imports" not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", ["runphi_async.newcomer", "consoles.newcomer", "backends.newcomer"])
def test_a_module_in_the_hall(name: str, graph: ImportGraph) -> None:
    graph.add_module(name)
    assert not kept("housed", graph)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('load("runphi_async.supervisor.daemon")', False),
        ('load(f"runphi_async.commands.{verb}")', False),
        ('load("runphi_async.host.files")', True),
        ('load("runphi_async.record.store")', True),
        ('"""See ``runphi_async.supervisor.daemon``."""', True),
        ('load("runphi_async.no_such")', True),
    ],
)
def test_modules_in_texts(text: str, good: bool, whole: ImportGraph) -> None:
    found = names_up("runphi_async.record.store", text, whole.modules, floors(settings()["floors"]))
    assert (found == []) is good


def test_the_registry_is_one() -> None:
    assert contract("texts").registries == {"backends.detect"}  # type: ignore[attr-defined]
    names = [name for _, name in named((ROOT / "backends/detect.py").read_text())]
    assert "runphi_async.testing" in names


def test_without_its_registry_the_contract_breaks(graph: ImportGraph) -> None:
    strict = contract("texts")
    strict.registries = set()  # type: ignore[attr-defined]
    check = strict.check(graph, verbose=False)
    assert {text.rpartition(" ")[2] for text in check.metadata["upward"]} == {"runphi_async.testing"}


# Section: the drawing


def drawn() -> list[tuple[int, frozenset[str]]]:
    """Return floor and rooms of each row, from above."""
    section = PAGE.read_text().partition("## Rooms and floors\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", section, re.MULTILINE)
    return [(int(floor), frozenset(re.findall(r"`(\w+)`", rooms))) for floor, rooms in rows]


def test_the_drawing_shows_the_layers() -> None:
    layers = [frozenset(name.strip().rpartition(".")[2] for name in row.split("|")) for row in settings()["floors"]]
    assert [rooms for _, rooms in drawn()] == layers
    numbers = [floor for floor, _ in drawn()]
    assert numbers == sorted(numbers, reverse=True)


def test_every_import_goes_down_in_the_drawing(whole: ImportGraph) -> None:
    height = {room: -row for row, (_, rooms) in enumerate(drawn()) for room in rooms}
    rooms = floors(settings()["floors"])
    edges = [(m, other) for m in whole.modules for other in whole.find_modules_directly_imported_by(m)]
    assert len(edges) > 1000
    for module, other in edges:
        above, below = (room_of(name, rooms) for name in (module, other))
        if above != below and above and below:
            assert height[above.rpartition(".")[2]] > height[below.rpartition(".")[2]], (module, other)


def test_every_room_has_a_sign() -> None:
    for room in floors(settings()["floors"]):
        door = ROOT / room.replace(".", "/") / "__init__.py"
        if not door.exists():
            assert door.parent.with_suffix(".py").exists()
        else:
            assert door.read_text().count('"""') >= 2, f"{door} does not say what belongs there"
