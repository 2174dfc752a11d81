# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees: what is written is read back, also by dtc, and no bytes of an image can do harm."""

from __future__ import annotations

import shutil
import string
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.guest import fdt
from backends.guest.fdt import Node, Tree, cells, encode, parse, texts
from runphi_async.errors import TreeError

if TYPE_CHECKING:
    from pathlib import Path

NAMES = st.text(string.ascii_lowercase + string.digits + ",._+-", min_size=1, max_size=12)
PROPS = st.dictionaries(NAMES, st.binary(max_size=9), max_size=4)


def node(name: st.SearchStrategy[str], children: st.SearchStrategy[list[Node]]) -> st.SearchStrategy[Node]:
    return st.builds(Node, name, PROPS, children)


NODES = node(
    st.just(""), st.recursive(st.just([]), lambda below: st.lists(node(NAMES, below), max_size=3), max_leaves=8)
)
RESERVED = st.lists(st.tuples(st.integers(1, 1 << 63), st.integers(0, 1 << 63)), max_size=2)
TREES = st.builds(Tree, NODES, RESERVED, st.integers(0, 7))


@given(TREES)
def test_a_tree_is_read_back(tree: Tree) -> None:
    data = encode(tree)
    assert parse(data) == tree
    assert encode(parse(data)) == data
    assert parse(data + b"behind it") == tree


@settings(max_examples=300)
@given(TREES, st.data())
def test_damage_is_found_or_does_no_harm(tree: Tree, data: st.DataObject) -> None:
    damaged = bytearray(encode(tree))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(TreeError):
        parse(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(TreeError):
        parse(data)


def test_a_tree_that_goes_too_deep_is_refused() -> None:
    root = inner = Node()
    for _ in range(fdt.MAX_DEPTH + 2):
        inner = inner.make("n")
    with pytest.raises(TreeError, match="damaged"):
        parse(encode(Tree(root)))


@pytest.mark.skipif(shutil.which("dtc") is None, reason="needs device-tree-compiler")
def test_dtc_reads_what_we_write_and_we_what_dtc_writes(tmp_path: Path) -> None:
    source = """/dts-v1/;
/memreserve/ 0x1000 0x2000;
/ {
    #address-cells = <2>;
    model = "a board";
    soc: bus@0 { ranges; serial@10 { reg = <0 16>; parent = <&soc>; compatible = "a,b", "c"; }; };
};
"""
    (tmp_path / "a.dts").write_text(source)
    subprocess.run(["dtc", "-q", "-O", "dtb", "-o", tmp_path / "a.dtb", tmp_path / "a.dts"], check=True)
    tree = parse((tmp_path / "a.dtb").read_bytes())
    assert tree.reserved == [(0x1000, 0x2000)]
    bus = tree.root.child("bus")
    assert bus is not None
    assert bus.child("serial@10") is bus.child("serial") is bus.children[0]
    assert (bus.children[0].texts("compatible"), tree.root.number("#address-cells")) == (["a,b", "c"], 2)
    tree.root.make("chosen", bootargs=texts("console=ttyAMA0"), device_type=texts("none"))
    (tmp_path / "b.dtb").write_bytes(encode(tree))
    done = subprocess.run(
        ["dtc", "-q", "-I", "dtb", "-O", "dts", tmp_path / "b.dtb"], capture_output=True, text=True, check=True
    )
    assert 'bootargs = "console=ttyAMA0";' in done.stdout
    assert "/memreserve/\t0x0000000000001000 0x0000000000002000;" in done.stdout


def test_numbers_that_do_not_fit_are_refused() -> None:
    assert fdt.wide(1 << 32, 2) == cells(1, 0)
    with pytest.raises(TreeError, match="cannot write 0x100000000 into a device tree with 1 cells"):
        fdt.wide(1 << 32, 1)
