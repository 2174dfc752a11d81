# SPDX-License-Identifier: Apache-2.0
"""Board files: the shipped ones, what is refused and in which words, and the verb that checks them."""

from __future__ import annotations

import copy
import os
import tomllib
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runphi_async import wire
from runphi_async.board import board as boards
from runphi_async.board import boardcheck, loading, ranges
from runphi_async.board.ranges import Range
from runphi_async.config.schema import Config
from runphi_async.errors import ConfigError
from tests.unit import clikit
from tests.unit.clikit import answer

if TYPE_CHECKING:
    from runphi_async.container.registry import Supervisor

#: the least that is a board
SMALL: dict[str, Any] = {
    "name": "b",
    "arch": "arm64",
    "root_cell": "root",
    "cpus": {"all": "0-3"},
    "ram": [{"start": 0x4000_0000, "size": "1 GiB"}],
    "memory": [{"start": 0x7000_0000, "size": "16 MiB"}],
    "irqchip": [{"address": 0x800_0000, "pins": "32-159"}],
    "template": {"inmate": {"memory": "1 MiB"}},
}
UART = {"name": "u", "type": "pl011", "address": 0x900_0000, "irq": 33}
SLOT = {"name": "n", "protocol": "veth", "bdf": "00:01.0", "base": 0x7800_0000, "output": 0x7F000}


def found(**changed: Any) -> list[str]:
    board = loading.from_table({**SMALL, **changed}, "b.toml")
    return [finding.text("b.toml") for finding in boardcheck.findings(board)]


@pytest.mark.parametrize("name", [*loading.shipped(), loading.TEMPLATE])
def test_shipped_boards_are_without_fault(name: str) -> None:
    board = loading.load(name)
    assert boardcheck.findings(board) == []
    assert board.name == name or name == loading.TEMPLATE


def test_three_boards_are_shipped_and_packed() -> None:
    assert loading.shipped() == ["kria-kv260", "qemu-arm64", "zcu104"]
    packed = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert packed["runphi_async.board"] == ["boards/*.toml"]


def keys_of(value: Any) -> set[str]:
    if isinstance(value, list):
        return {key for item in value for key in keys_of(item)}
    return {key for name, item in value.items() for key in (name, *keys_of(item))} if isinstance(value, dict) else set()


def test_the_template_shows_every_key() -> None:
    shown = keys_of(tomllib.loads(Path(loading.BOARDS_DIR, "template.toml").read_text()))
    kinds = (boards.Board, boards.Cpus, boards.Memory, boards.Uart, boards.Irqchip, boards.Comm, boards.Vpci)
    more = (boards.Ivshmem, boards.Rpu, boards.Device, boards.Cache, boards.DeviceTree, boards.Template)
    assert {key for kind in (*kinds, *more) for key in kind.__struct_fields__} <= shown


def test_the_qemu_board_is_the_recorded_one() -> None:
    board = loading.load("qemu-arm64")
    assert board.cpus.lent() == (1, 2, 3)
    assert [part.range for part in board.memory] == [Range(0x7000_0000, 0x7FA1_0000)]
    shm, net = board.ivshmem
    # as /dev/uio0 and the stock cells show them
    assert (shm.range, shm.device, shm.peers) == (Range(0x7FAF_0000, 0x7FB0_0000), 0, 3)
    assert (net.range, net.device, net.peers) == (Range(0x7FB0_0000, 0x7FBF_F000), 8, 2)


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"cpus": {"all": 3}}, "b.toml: cpus.all: expected str, got int; write addresses as"),
        ({"memory": [{"start": 0}]}, "b.toml: memory[0]: object missing required field size; "),
        ({"memory": [{"start": 0, "size": "1 parsec"}]}, "b.toml: memory[0].size: expected a size such as"),
        ({"colour": 1}, "b.toml: the file: object contains unknown field colour; docs/reference/boards.md"),
        ({"uart": [{**UART, "type": "16550"}]}, "b.toml: uart[0].type: invalid enum value '16550'"),
        ({"dialect": "v12"}, "b.toml: dialect: invalid enum value 'v12'"),
        ({"ram": [{"start": -1, "size": 4}]}, "b.toml: ram[0].start: expected int >= 0"),
    ],
)
def test_a_wrong_file_is_refused_where_it_is_wrong(changed: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loading.from_table({**SMALL, **changed}, "b.toml")
    assert str(caught.value).startswith(place)


def test_a_file_that_is_no_toml_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"b\.toml: not TOML: "):
        loading.parse(b"name = [", "b.toml")
    with pytest.raises(ConfigError, match="not TOML"):
        loading.parse(b"\xff", "b.toml")
    for odd in (b"x = " + b"9" * 5000, b"x = " + b"[" * 5000):
        with pytest.raises(ConfigError, match="not TOML"):
            loading.parse(odd, "b.toml")
    with pytest.raises(ConfigError, match=r"cannot read board zcu105: not found; give a path, or one of: .*zcu104"):
        loading.load("zcu105")
    with pytest.raises(ConfigError, match="not a regular file"):
        loading.load(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"cpus": {"all": "0-x"}}, "b.toml: cpus.all: '0-x' is no number or range such as 0-3"),
        ({"cpus": {"all": "1-3"}}, "b.toml: cpus.root: CPU 0 is not one of cpus.all '1-3'"),
        ({"cpus": {"all": "0-1", "root": ""}}, "b.toml: cpus.root: the root cell keeps no CPU"),
        ({"cpus": {"all": "0"}}, "b.toml: warning: cpus: no CPU is left for cells"),
        ({"arch": "x86", "cpus": {"all": "0-1", "root": "1"}}, "b.toml: cpus.root: CPU 0 cannot be given"),
        ({"memory": [{"start": 0x1000, "size": 0x800}]}, "b.toml: memory[0]: 0x1000, 0x800 bytes: not whole pages"),
        ({"memory": [{"start": 0x8000_0000, "size": 4096}]}, "is not RAM of the root cell; loading a cell there hangs"),
        (
            {"memory": [{"start": 0x7000_0000, "size": "1 MiB"}, {"start": 0x7000_0000, "size": 4096}]},
            "b.toml: memory[1]: 0x70000000-0x70000fff overlaps memory[0], 0x70000000-0x700fffff",
        ),
        ({"uart": [UART, UART]}, "b.toml: uart[1].name: 'u' is taken"),
        ({"uart": [{**UART, "irq": 31}]}, "b.toml: uart[0].irq: interrupt 31 belongs to no irqchip"),
        ({"uart": [{**UART, "address": 0x7000_1000}]}, "uart[0].address: 0x70001000 lies in memory lent to cells"),
        ({"irqchip": [{"address": 0, "pins": "32-200"}]}, "irqchip[0].pins: 160 is not one of the 128 from 32 to 159"),
        ({"vpci": {"irqs": "33-36"}, "uart": [UART]}, "vpci.irqs: interrupt 33 is that of UART 'u'"),
        ({"vpci": {"irqs": "40-41"}}, "vpci.irqs: 2 interrupts, and a cell takes 4"),
        ({"comm": {"passive": False}}, "comm.reply_timeout: an active communication region without a time limit"),
        ({"comm": {"address": 0x7000_0000}}, "comm.address: 0x70000000-0x70000fff overlaps memory[0]"),
        ({"ivshmem": [{**SLOT, "bdf": "1.0"}]}, "ivshmem[0].bdf: '1.0' is no PCI address"),
        ({"ivshmem": [{**SLOT, "ids": "0-1"}]}, "ivshmem[0].ids: peer 0 is not one of 1 to 1; 0 is the root cell's"),
        ({"ivshmem": [{**SLOT, "peers": 13}]}, "ivshmem[0].peers: 13 peers; from 2 to 12"),
        ({"ivshmem": [{**SLOT, "base": 0x70F8_0000}]}, "ivshmem[0].base: 0x70f80000-0x7107efff overlaps memory[0]"),
        ({"ivshmem": [{**SLOT, "protocol": 7}]}, "ivshmem[0].protocol: 0x7 is no custom protocol"),
        ({"ivshmem": [SLOT, {**SLOT, "name": "m"}]}, "ivshmem[1].bdf: '00:01.0' is ivshmem[0]'s"),
        ({"ivshmem": [SLOT]}, "warning: vpci.irqs: no interrupts for the ivshmem devices"),
        (
            {"ivshmem": [{**SLOT, "protocol": "console"}]},
            "ivshmem[0].rw: a console needs a read/write section",
        ),
        ({"rpu": [{"id": 0, "name": "r"}]}, "rpu: dialect 'mainline' has no remote processors"),
        ({"cache": {"way_size": 65536, "colors": "0"}}, "cache: dialect 'mainline' cannot colour memory"),
        (
            {"dialect": "omnivisor", "cache": {"way_size": 65536, "colors": "0-16"}},
            "cache.colors: there is no colour 16: they are 0 to 15",
        ),
        ({"template": {}}, "template: no kind of guest has one"),
        ({"template": {"inmate": {"memory": 4096}}}, "template.inmate.memory: less than minimum (64 KiB)"),
        ({"template": {"inmate": {"memory": "1 MiB", "granule": 5000}}}, "template.inmate.granule: 0x1388 is no power"),
        (
            {"template": {"inmate": {"memory": "1 MiB", "console": "u"}}},
            "template.inmate.console: there is no console 'u'; one of: none, virtual",
        ),
        ({"template": {"inmate": {"memory": "1 GiB"}}}, "warning: template.inmate.memory: 1 GiB fit into no range"),
    ],
)
def test_what_cannot_work_is_found(changed: dict[str, Any], expected: str) -> None:
    assert any(expected in line for line in found(**changed)), found(**changed)


def test_a_usable_board_has_no_findings() -> None:
    assert found() == []
    assert found(uart=[UART], ivshmem=[SLOT], vpci={"irqs": "140-143"}) == []


# Section: arithmetic

NUMBERS = st.sets(st.integers(0, 300))
RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda pair: Range(pair[0], sum(pair))))


def numbers_of(parts: list[Range]) -> set[int]:
    return {n for part in parts for n in range(part.start, part.end)}


@given(NUMBERS)
def test_lists_of_numbers_come_back(values: set[int]) -> None:
    assert set(ranges.numbers(ranges.listed(values))) == values


@given(RANGES, RANGES)
def test_taking_away_is_set_difference_and_merged(whole: list[Range], taken: list[Range]) -> None:
    left = ranges.without(whole, taken)
    assert numbers_of(left) == numbers_of(whole) - numbers_of(taken)
    assert all(one.end < two.start for one, two in pairwise(left))


@given(RANGES, st.integers(1, 20), st.sampled_from([1, 2, 4, 8]))
def test_first_fit_takes_the_lowest_place(free: list[Range], size: int, align: int) -> None:
    left = ranges.merged(free)
    place = ranges.first_fit(left, size, align)
    fits = [n for n in range(0, 100, align) if set(range(n, n + size)) <= numbers_of(left)]
    assert (place.start if place else None) == (fits[0] if fits else None)


# Section: the verb


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    return clikit.supervisor(Config(runc="/nonexistent/runc"), str(tmp_path))


async def test_the_verb_lists_the_boards(supervisor: Supervisor) -> None:
    call = await answer(supervisor, "board", "list")
    assert [line.split()[0] for line in call.said(wire.OUT).splitlines()] == loading.shipped()


async def test_the_verb_checks_a_file_of_the_caller(supervisor: Supervisor, tmp_path: Path) -> None:
    text = Path(loading.BOARDS_DIR, "qemu-arm64.toml").read_text()
    (tmp_path / "bad.toml").write_text(text.replace("0x7fb00000", "0x7f000000").replace('root = "0"', 'root = "4"'))
    call = await answer(supervisor, "board", "check", "bad.toml", cwd=str(tmp_path))
    assert call.status == 1
    lines = call.said(wire.OUT).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["bad.toml", "cpus.root"], ["bad.toml", "ivshmem[1].base"]]
    call = await answer(supervisor, "board", "check", "qemu-arm64")
    assert call.status == 0
    expected = "qemu-arm64: qemu-arm64 (mainline) offers CPUs 1-3, 250.1 MiB, 1 UART, 2 shared memory devices\n"
    assert call.said(wire.OUT) == expected
    call = await answer(supervisor, "board", "check", "nothing.toml", cwd=str(tmp_path))
    assert call.status == 1
    assert "cannot read board nothing.toml: not found" in call.said(wire.ERR)
    assert os.listdir(tmp_path) == ["bad.toml"]


# Section: any file

TEMPLATE = tomllib.loads(Path(loading.BOARDS_DIR, "template.toml").read_text())
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 1 << 70),
    st.sampled_from(["", "0", "0-3", "99-1", "1 MiB", "identity", "00:1f.7", "veth", "virtual", "x"]),
    st.sampled_from([[], {}, [1], [{}]]),
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [leaf for key, item in items for leaf in leaves(item, (*path, key))]
    return [path, *below] if path else below


@given(st.lists(st.tuples(st.sampled_from(leaves(TEMPLATE)), VALUES), min_size=1, max_size=3))
def test_any_change_of_the_template_is_understood_or_refused(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    table = copy.deepcopy(TEMPLATE)
    for (*way, last), value in changes:
        place: Any = table
        for key in way:
            place = place[key] if isinstance(place, dict) and key in place else place
            place = place[key] if isinstance(place, list) and isinstance(key, int) and key < len(place) else place
        if isinstance(place, dict) or (isinstance(place, list) and isinstance(last, int) and last < len(place)):
            place[last] = value
    with suppress(ConfigError):
        for finding in boardcheck.findings(loading.from_table(table, "b")):
            assert finding.text("b").startswith("b: ")
