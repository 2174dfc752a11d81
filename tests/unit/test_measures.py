# SPDX-License-Identifier: Apache-2.0
"""The measures: each one fails on a module that is made up to break it, and the list of exceptions can only shrink."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

import pytest
from grimp import build_graph

from tests import measures
from tests.measures import RULES, Exceptions, Measure, Module

if TYPE_CHECKING:
    from collections.abc import Mapping

NONE: Final = Exceptions(frozenset(), {})
ROOMS: Final = {"house.one": 0, "house.two": 1}


def judged(
    *modules: Module, tables: tuple[str, ...] = (), sizes: Mapping[str, Mapping[str, int]] | None = None
) -> list[str]:
    """Return what is wrong with made-up modules."""
    return measures.complaints(measures.measure(modules, ROOMS), Exceptions(frozenset(tables), sizes or {}))


def methods(count: int) -> str:
    return "class Wide:\n" + "".join(f"    def m{number}(self): ...\n" for number in range(count))


def long(lines: int) -> Module:
    return Module("house.one.long", "pass\n" * lines)


def user(count: int) -> list[Module]:
    """Return a module that imports so many others, in every way there is."""
    others = [Module(f"house.two.m{number}", "") for number in range(count)]
    ways = [
        "import house.two.m{}",
        "from house.two import m{}",
        "from house.two.m{} import something",
        "if TYPE_CHECKING:\n    from house.two import m{}",
        "def late():\n    from ..two import m{}",
    ]
    source = "\n".join(ways[number % len(ways)].format(number) for number in range(count))
    return [Module("house.one.user", source + "\nimport os\nfrom anyio import abc\n"), *others]


# Section: each rule


def test_public_methods() -> None:
    hidden = "    def _own(self): ...\n    def __len__(self): ...\n    def test_a(self): ...\n"
    again = "    @m0.setter\n    def m0(self, value): ...\n"
    assert judged(Module("house.one.a", methods(20) + hidden + again)) == []
    assert judged(Module("house.one.a", methods(21))) == ["house.one.a:Wide: 21 public methods, 20 at most"]


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ("def f(a, b, c, d, e): ...", 5),
        ("def f(a, b, c, d, e, f=1): ...", 6),
        ("async def f(a, b, /, c, d, e, g): ...", 6),
        ("def f(a, b, c, d, e, *more, g, **rest): ...", 5),
        ("class C:\n    def f(self, a, b, c, d, e): ...", 5),
        ("class C:\n    def f(self, a, b, c, d, e, g): ...", 6),
        ("class C:\n    @classmethod\n    def f(cls, a, b, c, d, e): ...", 5),
        ("class C:\n    @staticmethod\n    def f(a, b, c, d, e, g): ...", 6),
        ("class C:\n    if True:\n        def f(self, a, b, c, d, e): ...", 5),
        ("def g():\n    def f(a, b, c, d, e, g): ...", 6),
        ("try:\n    pass\nexcept OSError:\n    def f(a, b, c, d, e, g): ...", 6),
    ],
)
def test_positional_parameters(source: str, size: int) -> None:
    found = judged(Module("house.one.a", source))
    assert len(found) == (size > 5)
    assert all(line.endswith(f"f: {size} positional parameters, 5 at most") for line in found)


def test_imports() -> None:
    assert judged(*user(15)) == []
    assert judged(*user(16)) == ["house.one.user: 16 modules of ours that it imports, 15 at most"]


def test_imports_of_the_sign_of_a_room() -> None:
    sign = Module("house.one", "from . import a\nfrom .b import something\nfrom .. import two\n", package=True)
    tree = ast.parse(sign.source)
    names = {"house", "house.one", "house.one.a", "house.one.b", "house.two"}
    assert measures.imported(sign, tree, names) == {"house.one.a", "house.one.b", "house.two"}


def test_lines() -> None:
    assert judged(long(450)) == []
    assert judged(long(451)) == ["house.one.long: 451 lines, 450 at most"]
    assert judged(long(2000), tables=("house.one.long",)) == []


def test_names() -> None:
    twice = Module("house.one.a", "class Memory: ...\nclass _Own: ...\n")
    assert judged(twice, Module("house.one.b", "class Memory: ...\n")) == []
    other = Module("house.two.b", "class Memory: ...\nclass _Own: ...\n")
    assert judged(twice, other) == ["Memory: 2 rooms with a public class of this name, 1 at most"]


# Section: the list may only shrink


@pytest.mark.parametrize(("lines", "good"), [(470, True), (460, True), (471, False), (450, False), (9, False)])
def test_an_exception_shrinks_or_goes(lines: int, good: bool) -> None:
    assert (judged(long(lines), sizes={"lines": {"house.one.long": 470}}) == []) is good


def test_what_a_complaint_says() -> None:
    listed = {"lines": {"house.one.long": 470}}
    assert judged(long(471), sizes=listed) == [
        "house.one.long: 471 lines, grown from 470; the exception may only shrink"
    ]
    assert judged(long(450), sizes=listed) == [
        "house.one.long: no exception for lines is needed any more; remove it from measures.toml"
    ]


def test_exceptions_for_what_is_not_there() -> None:
    assert len(judged(sizes={"methods": {"house.one.gone:Guest": 34}})) == 1
    assert len(judged(sizes={"widths": {}})) == 1
    assert len(judged(long(450), tables=("house.one.long",))) == 1


# Section: the product


@pytest.fixture(scope="module")
def product() -> list[Measure]:
    return list(measures.measure(measures.product(), measures.rooms_of_all()))


def test_the_product_is_within_its_list(product: list[Measure]) -> None:
    assert measures.complaints(product, measures.read_exceptions()) == []


def test_without_the_list_the_product_fails(product: list[Measure]) -> None:
    listed = measures.read_exceptions()
    exceptions = sum(len(sizes) for sizes in listed.sizes.values()) + len(listed.tables)
    assert len(measures.complaints(product, NONE)) == exceptions > 0


@pytest.mark.parametrize(("found", "status"), [([], 0), (["house: too large"], 1)])
def test_the_exit_status(
    found: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measures, "product", list)
    monkeypatch.setattr(measures, "complaints", lambda *given: found)
    assert measures.main() == status
    assert capsys.readouterr().out.splitlines() == found


def test_imports_are_those_that_the_contracts_see() -> None:
    graph = build_graph("runphi_async", "consoles", "backends", cache_dir=None)
    modules = measures.product()
    names = {module.name for module in modules}
    assert names == graph.modules
    for module in modules:
        mine = measures.imported(module, ast.parse(module.source), names)
        assert mine == graph.find_modules_directly_imported_by(module.name), module.name


def test_the_file_names_rules() -> None:
    assert set(measures.read_exceptions().sizes) == set(RULES)
