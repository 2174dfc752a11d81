# SPDX-License-Identifier: Apache-2.0
"""Two contracts of ours beside those of import-linter, which pyproject.toml names: run by ``lint-imports``."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from importlinter import Contract, ContractCheck, fields, output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grimp import ImportGraph

PYPROJECT: Final = Path(__file__).resolve().parent.parent / "pyproject.toml"


def settings() -> dict[str, list[str]]:
    """Return the layers of each contract that has some, by the contract's id; the highest first."""
    with open(PYPROJECT, "rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return {contract["id"]: contract["layers"] for contract in contracts if "layers" in contract}


def floors(layers: list[str]) -> dict[str, int]:
    """Return the floor of every room, 0 for the lowest."""
    return {room.strip(): floor for floor, line in enumerate(reversed(layers)) for room in line.split("|")}


def room_of(module: str, rooms: dict[str, int]) -> str | None:
    """Return the room that a module is in."""
    words = module.split(".")
    return next((name for end in range(len(words), 0, -1) if (name := ".".join(words[:end])) in rooms), None)


class Housed(Contract):
    """Every module is in a room: a new one in the hall would be on no floor, and no contract would see it."""

    type_name = "housed"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look for modules in no room; the packages that only hold rooms are none."""
        homeless: list[str] = []
        for layers in settings().values():
            rooms = floors(layers)
            tops = {room.split(".")[0] for room in rooms}
            for module in graph.modules:
                inside = module.split(".")[0] in tops and module not in tops
                if inside and room_of(module, rooms) is None:
                    homeless.append(module)
        return ContractCheck(kept=not homeless, metadata={"homeless": sorted(homeless)})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Name them."""
        for module in check.metadata["homeless"]:
            output.print_error(f"{module} is in no room that pyproject.toml lists")


class Named(NamedTuple):
    """A text in a module that is another module's name, or the beginning of several."""

    line: int
    name: str


def named(source: str) -> Iterator[Named]:
    """Find what may be handed to ``importlib``: texts that are dotted names and nothing else, also in f-strings."""
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            first = node.values[0] if node.values else None
            text = first.value if isinstance(first, ast.Constant) else None
        elif isinstance(node, ast.Constant) and id(node) not in parts:
            text = node.value
        else:
            continue
        if isinstance(text, str) and "." in text:
            name = text.rstrip(".")
            if all(word.isidentifier() for word in name.split(".")):
                yield Named(node.lineno, name)


def names_up(module: str, source: str, modules: set[str], rooms: dict[str, int]) -> list[str]:
    """Say where a module's texts name modules of its own floor or above, but of its own room."""
    own = room_of(module, rooms)
    if own is None:
        return []
    found = []
    for line, name in named(source):
        other = room_of(name, rooms) if name in modules else None
        if other is not None and other != own and rooms[other] >= rooms[own]:
            found.append(f"{module}:{line} names {name}")
    return found


class Texts(Contract):
    """An edge that goes up in a text is an edge that goes up; only registries may have one."""

    type_name = "texts"

    registries = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look into the source of every module."""
        rooms = floors(settings()["floors"])
        looked_at = sorted(graph.modules - cast("set[str]", self.registries))
        upward = [text for module in looked_at for text in names_up(module, source_of(module), graph.modules, rooms)]
        return ContractCheck(kept=not upward, metadata={"upward": upward})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Name them."""
        for text in check.metadata["upward"]:
            output.print_error(text)


def source_of(module: str) -> str:
    """Return a module's source; nothing is imported for that."""
    path = PYPROJECT.parent / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
