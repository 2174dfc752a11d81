# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees: a small reader and writer, for the trees that guests get.

The format is that of the Devicetree Specification, chapter 5, version 17. Reading trusts nothing: a tree may come from
an image. What is not understood about a node is kept as it is; only the order of properties before children and the
packing of the strings are ours.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runphi_async.errors import TreeError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC: Final = 0xD00DFEED
VERSION: Final = 17
#: oldest version whose readers understand what is written, and the oldest that is read
COMPATIBLE: Final = 16
#: largest tree that is read; real ones have some ten kilobytes
MAX: Final = 1 << 20
#: levels of nodes; real trees have below ten
MAX_DEPTH: Final = 64
_HEADER: Final = struct.Struct(">10I")
_RESERVE: Final = struct.Struct(">QQ")
_BEGIN, _END, _PROP, _NOP, _FINISH = 1, 2, 3, 4, 9


@dataclass
class Node:
    """One node; properties and children keep their order."""

    name: str = ""
    props: dict[str, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def child(self, name: str) -> Node | None:
        """Return the child of that name, with or without its unit address."""
        exact = [node for node in self.children if node.name == name]
        return next(iter(exact or [node for node in self.children if node.name.partition("@")[0] == name]), None)

    def make(self, name: str, **props: bytes) -> Node:
        """Append a child."""
        node = Node(name, props)
        self.children.append(node)
        return node

    def walk(self) -> Iterator[Node]:
        """Yield the node and all below it, parents first."""
        yield self
        for node in self.children:
            yield from node.walk()

    def number(self, name: str) -> int | None:
        """Return a property of one cell, None where it is not there."""
        data = self.props.get(name)
        return int.from_bytes(data, "big") if data is not None and len(data) == 4 else None

    def texts(self, name: str) -> list[str]:
        """Return a property of texts."""
        return self.props.get(name, b"").decode("utf-8", "replace").split("\0")[:-1]


@dataclass
class Tree:
    """A whole tree."""

    root: Node = field(default_factory=Node)
    #: (address, size) of memory that the kernel must leave alone
    reserved: list[tuple[int, int]] = field(default_factory=list)
    boot_cpu: int = 0


def cells(*numbers: int) -> bytes:
    """Return 32-bit numbers as a property."""
    return struct.pack(f">{len(numbers)}I", *numbers)


def wide(number: int, count: int) -> bytes:
    """Return an address or size of ``count`` cells.

    :raises TreeError: it does not fit.
    """
    try:
        return number.to_bytes(4 * count, "big")
    except OverflowError:
        raise TreeError(f"cannot write {number:#x} into a device tree with {count} cells for it") from None


def texts(*words: str) -> bytes:
    """Return texts as a property."""
    return b"".join(word.encode() + b"\0" for word in words)


# Section: reading


def parse(data: bytes) -> Tree:
    """Read a tree.

    :raises TreeError: it is none, or damaged.
    """
    if len(data) < _HEADER.size or int.from_bytes(data[:4], "big") != MAGIC:
        raise TreeError("cannot read the device tree: it does not begin as one", "compile it with dtc -O dtb")
    _, total, at_struct, at_strings, at_reserved, version, compatible, boot_cpu, strings_size, _ = _HEADER.unpack_from(
        data
    )
    if compatible > VERSION or version < COMPATIBLE:
        raise TreeError(f"cannot read the device tree: it has version {version}", "compile it with dtc -O dtb -V 17")
    if total > len(data) or total > MAX:
        raise TreeError(f"cannot read the device tree: it says it has {total} bytes, and {len(data)} are there")
    data = data[:total]
    strings = data[at_strings : at_strings + strings_size]
    try:
        root = _Reader(data, strings, at_struct).tree()
        return Tree(root, _reserved(data, at_reserved), boot_cpu)
    except (struct.error, UnicodeDecodeError, ValueError) as exc:
        raise TreeError("cannot read the device tree: it is cut off or damaged") from exc


def _reserved(data: bytes, at: int) -> list[tuple[int, int]]:
    found = []
    while (pair := _RESERVE.unpack_from(data, at)) != (0, 0):
        found.append((pair[0], pair[1]))
        at += _RESERVE.size
    return found


class _Reader:
    """Walks through the structure block."""

    def __init__(self, data: bytes, strings: bytes, at: int) -> None:
        self._data = data
        self._strings = strings
        self._at = at

    def tree(self) -> Node:
        if self._token() != _BEGIN:
            raise ValueError("no root")
        root = self._node(0)
        if self._token() != _FINISH:
            raise ValueError("no end")
        return root

    def _token(self) -> int:
        while True:
            (token,) = struct.unpack_from(">I", self._data, self._at)
            self._at += 4
            if token != _NOP:
                return int(token)

    def _node(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        end = self._data.index(b"\0", self._at)
        node = Node(self._data[self._at : end].decode("ascii"))
        self._at = end + 4 & ~3
        while (token := self._token()) != _END:
            if token == _BEGIN:
                node.children.append(self._node(depth + 1))
            elif token == _PROP:
                self._prop(node)
            else:
                raise ValueError("unknown token")
        return node

    def _prop(self, node: Node) -> None:
        size, name = struct.unpack_from(">II", self._data, self._at)
        begin = self._at + 8
        if begin + size > len(self._data) or name >= len(self._strings):
            raise ValueError("beyond the end")
        end = self._strings.index(b"\0", name)
        node.props[self._strings[name:end].decode("ascii")] = self._data[begin : begin + size]
        self._at = begin + size + 3 & ~3


# Section: writing


def encode(tree: Tree) -> bytes:
    """Return a tree's bytes; the same tree gives the same bytes."""
    offsets: dict[str, int] = {}
    strings = bytearray()
    out = bytearray()
    _write(tree.root, out, offsets, strings)
    out += cells(_FINISH)
    reserved = b"".join(_RESERVE.pack(*pair) for pair in [*tree.reserved, (0, 0)])
    at_struct = _HEADER.size + len(reserved)
    at_strings = at_struct + len(out)
    total = at_strings + len(strings)
    head = _HEADER.pack(
        MAGIC, total, at_struct, at_strings, _HEADER.size, VERSION, COMPATIBLE, tree.boot_cpu, len(strings), len(out)
    )
    return head + reserved + bytes(out) + bytes(strings)


def _write(node: Node, out: bytearray, offsets: dict[str, int], strings: bytearray) -> None:
    out += cells(_BEGIN) + _padded(node.name.encode("ascii") + b"\0")
    for name, value in node.props.items():
        if name not in offsets:
            offsets[name] = len(strings)
            strings += name.encode("ascii") + b"\0"
        out += cells(_PROP, len(value), offsets[name]) + _padded(value)
    for child in node.children:
        _write(child, out, offsets, strings)
    out += cells(_END)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
