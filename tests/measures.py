# SPDX-License-Identifier: Apache-2.0
"""How large things may become in the product's packages: run by ``bin/test lint`` as ``python -m tests.measures``.

What is larger today stands in measures.toml with its figure. That list may only shrink: what has grown fails, and so
does an exception that nothing needs any more.

Ruff has rules for two of the five measures and they are not used: PLR0904 (public methods) is in preview, which would
turn on other previews with it, and neither it nor PLR0917 (positional arguments) can tell an exception that stays as
it is from one that grows.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.contracts import floors, room_of, settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ROOT: Final = Path(__file__).resolve().parent.parent
EXCEPTIONS: Final = Path(__file__).with_name("measures.toml")
FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
PACKAGES: Final = ("runphi_async", "backends", "consoles")


class Rule(NamedTuple):
    """One measure: how much of it there may be, and what it counts."""

    most: int
    words: str


RULES: Final = {
    "methods": Rule(20, "public methods"),
    "parameters": Rule(5, "positional parameters"),
    "imports": Rule(15, "modules of ours that it imports"),
    "lines": Rule(450, "lines"),
    "names": Rule(1, "rooms with a public class of this name"),
}


class Module(NamedTuple):
    """A module's name and text; ``package``: it is the sign of a room."""

    name: str
    source: str
    package: bool = False


class Measure(NamedTuple):
    """One thing that was measured; only what is above the rule's limit is of interest."""

    rule: str
    what: str
    size: int


class Exceptions(NamedTuple):
    """What may be larger: ``sizes`` for each rule, and the modules that are tables, of any length."""

    tables: frozenset[str]
    sizes: Mapping[str, Mapping[str, int]]


def read_exceptions(path: Path = EXCEPTIONS) -> Exceptions:
    """Return the list of today."""
    with open(path, "rb") as file:
        content = tomllib.load(file)
    return Exceptions(frozenset(content.pop("tables")), content)


def product(root: Path = ROOT) -> list[Module]:
    """Return the modules of the packages that we ship."""
    found = []
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        words = path.relative_to(root).with_suffix("").parts
        package = words[-1] == "__init__"
        found.append(Module(".".join(words[:-1] if package else words), path.read_text(), package))
    return found


# Section: the measures


def measure(modules: Iterable[Module], rooms: Mapping[str, int]) -> Iterator[Measure]:
    """Measure everything; what is small as well."""
    modules = list(modules)
    names = {module.name for module in modules}
    housed: dict[str, set[str]] = {}
    for module in modules:
        tree = ast.parse(module.source)
        yield Measure("lines", module.name, len(module.source.splitlines()))
        yield Measure("imports", module.name, len(imported(module, tree, names)))
        yield from _methods(module.name, tree)
        yield from _parameters(module.name, tree)
        room = room_of(module.name, dict(rooms)) or module.name
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                housed.setdefault(node.name, set()).add(room)
    for name, where in housed.items():
        yield Measure("names", name, len(where))


def imported(module: Module, tree: ast.Module, names: set[str]) -> set[str]:
    """Return which of ours a module imports anywhere: at its top, in functions, for annotations."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            inside = {alias.name: f"{base}.{alias.name}" for alias in node.names}
            found |= {full if full in names else base for full in inside.values()}
    return (found & names) - {module.name}


def _base(module: Module, node: ast.ImportFrom) -> str:
    """Return the name behind ``from``, without dots in front."""
    if not node.level:
        return node.module or ""
    words = module.name.split(".")
    up = words[: len(words) - node.level + module.package]
    return ".".join([*up, node.module] if node.module else up)


def _methods(module: str, tree: ast.Module) -> Iterator[Measure]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            # a set: a property's setter and an overload have the name of what they belong to; and a test is nobody's to
            # call, in a suite that ships with the product
            names = {part.name for part in node.body if isinstance(part, FUNCTIONS)}
            public = [name for name in names if not name.startswith(("_", "test_"))]
            yield Measure("methods", f"{module}:{node.name}", len(public))


def _parameters(module: str, tree: ast.AST, inside: str = "", *, methods: bool = False) -> Iterator[Measure]:
    """Measure the functions below a node; ``methods``: it is a class, or an ``if`` in one."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, FUNCTIONS):
            path = f"{inside}{node.name}"
            bound = methods and not _is_static(node)  # self or cls is no parameter
            yield Measure("parameters", f"{module}:{path}", len(node.args.posonlyargs) + len(node.args.args) - bound)
            yield from _parameters(module, node, f"{path}.")
        elif isinstance(node, ast.ClassDef):
            yield from _parameters(module, node, f"{inside}{node.name}.", methods=True)
        else:
            yield from _parameters(module, node, inside, methods=methods)


def _is_static(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)


# Section: judging


def complaints(measured: Iterable[Measure], exceptions: Exceptions) -> list[str]:
    """Say what is too large, what has grown, and which exceptions nothing needs."""
    found = []
    sizes: dict[tuple[str, str], int] = {}
    for rule, what, size in measured:  # the largest counts: one name may be defined twice, as on two branches
        sizes[rule, what] = max(size, sizes.get((rule, what), 0))
    for (rule, what), size in sizes.items():
        most, words = RULES[rule]
        if rule == "lines" and what in exceptions.tables:
            continue
        allowed = exceptions.sizes.get(rule, {}).get(what)
        if size > most and allowed is None:
            found.append(f"{what}: {size} {words}, {most} at most")
        elif allowed is not None and size > max(most, allowed):
            found.append(f"{what}: {size} {words}, grown from {allowed}; the exception may only shrink")
    for rule, listed in exceptions.sizes.items():
        if rule not in RULES:
            found.append(f"measures.toml: there is no rule {rule}")
            continue
        found += [
            f"{what}: no exception for {rule} is needed any more; remove it from measures.toml"
            for what in listed
            if sizes.get((rule, what), 0) <= RULES[rule].most
        ]
    found += [
        f"{what}: needs not be listed as a table; remove it from measures.toml"
        for what in exceptions.tables
        if sizes.get(("lines", what), 0) <= RULES["lines"].most
    ]
    return sorted(found)


def rooms_of_all() -> dict[str, int]:
    """Return all rooms, those inside ``backends`` and ``consoles`` as well."""
    return {room: floor for layers in settings().values() for room, floor in floors(layers).items()}


def main() -> int:
    """Print what is wrong; return the exit status."""
    found = complaints(measure(product(), rooms_of_all()), read_exceptions())
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
