# SPDX-License-Identifier: Apache-2.0
"""A board drawn with the owners of its parts: as text for a terminal, as SVG for documents. Pure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async.board import ranges
from runphi_async.board.claims import Claim, Kind, bits, units
from runphi_async.board.ranges import Range
from runphi_async.units import human

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runphi_async.board.board import Board
    from runphi_async.board.claims import Held

ROOT: Final = "root cell"
FREE: Final = "free"
#: columns of a memory bar
COLUMNS: Final = 64
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#: fills of owners, apart for people who see red and green alike
_FILLS: Final = ("#7fb8d8", "#f4cf80", "#80cfb9", "#e5bcd3", "#b9e0f7", "#eaae80", "#f3ec8f", "#b9b9ea")
_WIDTH: Final = 760
_MARGIN: Final = 16
_ROW: Final = 24
_BOX: Final = 34


class Piece(NamedTuple):
    """A part of a memory range: whose it is, and what for."""

    range: Range
    owner: str
    what: str


class Unit(NamedTuple):
    """One thing that has a number: a CPU, a remote processor, a peer."""

    label: str
    owner: str


def pieces(whole: Range, held: Iterable[Held]) -> list[Piece]:
    """Return a memory range cut up by its owners, free parts included, ascending; coloured ones may overlap."""
    found = [
        Piece(Range(max(h.claim.start, whole.start), min(h.claim.end, whole.end)), h.owner.name, _what(h.claim))
        for h in held
        if h.claim.kind is Kind.MEMORY and h.claim.range.overlaps(whole)
    ]
    found += [Piece(part, FREE, "") for part in ranges.without([whole], [piece.range for piece in found])]
    return sorted(found)


def _what(claim: Claim) -> str:
    color = f", colours {ranges.listed(bits(claim.colors))}" if claim.colors else ""
    return f"{claim.what}{color}"


def processors(board: Board, held: Sequence[Held]) -> list[Unit]:
    """Return the board's processors with their owners."""
    root = ranges.numbers(board.cpus.root)
    found = [
        Unit(f"CPU {cpu}", ROOT if cpu in root else _owner(held, units(Kind.CPU, [cpu])[0]))
        for cpu in ranges.numbers(board.cpus.all)
    ]
    return found + [Unit(f"RPU {rpu.id}", _owner(held, units(Kind.RPU, [rpu.id])[0])) for rpu in board.rpu]


def places(board: Board, held: Sequence[Held]) -> list[Unit]:
    """Return serial ports and places in shared memory devices with their owners."""
    found = []
    for uart in board.uart:
        claim = Claim(Kind.DEVICE, uart.address, uart.address + 1)
        found.append(Unit(uart.name, _owner(held, claim, ROOT if uart.shared else FREE)))
    for slot in board.ivshmem:
        for peer in ranges.numbers(slot.ids):
            claim = Claim(Kind.IVSHMEM, peer, peer + 1, slot.name)
            found.append(Unit(f"{slot.name}.{peer}", _owner(held, claim)))
    return found


def _owner(held: Iterable[Held], claim: Claim, nobody: str = FREE) -> str:
    names = dict.fromkeys(h.owner.name for h in held if claim.excludes(h.claim))
    return ", ".join(names) or nobody


# Section: text


def text(board: Board, held: Sequence[Held]) -> str:
    """Return the board as lines for a terminal."""
    lines = [f"{board.name}: {board.title}" if board.title else board.name, ""]
    cells = [*processors(board, held), *places(board, held)]
    width = max(len(unit.label) for unit in cells)
    lines += [f"  {unit.label:<{width}}  {unit.owner}" for unit in cells]
    for part in board.memory:
        lines += ["", f"  {part.name or 'memory'}, {human(part.size)} at {part.range.text()}", *_bar(part.range, held)]
    return "\n".join(lines) + "\n"


def _bar(whole: Range, held: Sequence[Held]) -> list[str]:
    cut = pieces(whole, held)
    letters = _legend(cut)
    row = ["."] * COLUMNS
    for piece in cut:
        if piece.owner == FREE:
            continue
        first = (piece.range.start - whole.start) * COLUMNS // whole.size
        last = (piece.range.end - 1 - whole.start) * COLUMNS // whole.size
        for column in range(first, last + 1):
            row[column] = letters[piece.owner]
    lines = [f"  [{''.join(row)}]"]
    for piece in cut:
        mark = "." if piece.owner == FREE else letters[piece.owner]
        what = f"  {piece.what}" if piece.what else ""
        lines.append(f"  {mark} {piece.range.text():<25} {human(piece.range.size):>10}  {piece.owner}{what}")
    return lines


def _legend(cut: Iterable[Piece]) -> dict[str, str]:
    owners = dict.fromkeys(piece.owner for piece in cut if piece.owner != FREE)
    return {owner: _LETTERS[i % len(_LETTERS)] for i, owner in enumerate(owners)}


# Section: SVG


def svg(board: Board, held: Sequence[Held]) -> str:
    """Return the board as an SVG document."""
    sheet = _Sheet(_fills(board, held))
    sheet.title(f"{board.name}: {board.title}" if board.title else board.name)
    for row in (processors(board, held), places(board, held)):
        sheet.boxes(row)
    for part in board.memory:
        sheet.memory(part.name or "memory", part.range, held)
    return sheet.document()


def _fills(board: Board, held: Sequence[Held]) -> dict[str, str]:
    """Give every owner a fill; the root cell and what is free have none of the colours."""
    owners = dict.fromkeys(h.owner.name for h in held)
    named = {owner: _FILLS[i % len(_FILLS)] for i, owner in enumerate(owners)}
    return {FREE: "#f4f4f4", ROOT: "#c8c8c8", **named}


class _Sheet:
    """What was drawn, and how far down the next thing goes."""

    def __init__(self, fills: dict[str, str]) -> None:
        self._fills = fills
        self._y = _MARGIN + _ROW
        self._out: list[str] = []

    def title(self, words: str) -> None:
        """Write what is drawn above it."""
        self._out.append(_text(_MARGIN, self._y - 8, words, bold=True))

    def boxes(self, units: Sequence[Unit]) -> None:
        """Draw a row of boxes, as many rows as it takes."""
        width = 116
        columns = (_WIDTH - 2 * _MARGIN) // (width + 8)
        for i, unit in enumerate(units):
            x = _MARGIN + i % columns * (width + 8)
            top = self._y + i // columns * (_BOX + 8)
            fill = self._fills.get(unit.owner, self._fills[ROOT])  # several owners: none of their fills
            self._out.append(_rect(x, top, width, _BOX, fill))
            self._out.append(_text(x + 6, top + 14, unit.label, bold=True))
            self._out.append(_text(x + 6, top + 28, _short(unit.owner, 17)))
        rows = -(-len(units) // columns)
        self._y += rows * (_BOX + 8) + 8

    def memory(self, name: str, whole: Range, held: Sequence[Held]) -> None:
        """Draw a range of memory as a bar with its pieces listed."""
        width, y = _WIDTH - 2 * _MARGIN, self._y
        self._out.append(_text(_MARGIN, y + 12, f"{name}, {human(whole.size)} at {whole.text()}", bold=True))
        self._out.append(_rect(_MARGIN, y + 20, width, _BOX, self._fills[FREE]))
        row = y + 20 + _BOX + 16
        for piece in pieces(whole, held):
            x = _MARGIN + (piece.range.start - whole.start) * width // whole.size
            wide = max(2, piece.range.size * width // whole.size)
            fill = self._fills[piece.owner]
            if piece.owner != FREE:
                self._out.append(_rect(x, y + 20, min(wide, _MARGIN + width - x), _BOX, fill))
            what = f" ({piece.what})" if piece.what else ""
            line = f"{piece.range.text()}  {human(piece.range.size)}  {piece.owner}{what}"
            self._out.append(_rect(_MARGIN, row - 9, 10, 10, fill))
            self._out.append(_text(_MARGIN + 16, row, line))
            row += 18
        self._y = row + 8

    def document(self) -> str:
        """Say which fill is whose, and return all of it."""
        x, y = _MARGIN, self._y
        for owner, fill in self._fills.items():
            name = _short(owner, 40)
            if x + 16 + 7 * len(name) > _WIDTH - _MARGIN:
                x, y = _MARGIN, y + 18
            self._out += [_rect(x, y, 12, 12, fill), _text(x + 16, y + 10, name)]
            x += 32 + 7 * len(name)
        height = y + 12 + _MARGIN
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        style = f' width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
        return "\n".join([head + style, _rect(0, 0, _WIDTH, height, "#ffffff"), *self._out, "</svg>"]) + "\n"


def _short(word: str, most: int) -> str:
    return word if len(word) <= most else word[: most - 1] + "…"


def _rect(x: int, y: int, width: int, height: int, fill: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="#555555" stroke-width="0.5"/>'
    )


def _text(x: int, y: int, words: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}"{weight}>{escape(words)}</text>'
