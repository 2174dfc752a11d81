# SPDX-License-Identifier: Apache-2.0
"""The true last screen of a console, through a terminal model: full-screen programs cannot be replayed line by line.

The model is pyte, an optional extra, loaded when somebody first asks. It sees only the last part of what was printed
and runs in a thread, so neither a guest that prints much nor one that prints nonsense keeps the loop. The model knows
what was printed, not what a terminal was told before that part began: a screen older than that part is not complete.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from consoles.streams.terminal import Size

if TYPE_CHECKING:
    import pyte

#: The model is fed at most this much: a tenth of a second.
PART: Final = 1 << 16
#: What a client without a size gets.
DEFAULT: Final = Size(24, 80)
#: Largest screen that is modelled, in characters: a model keeps an object for each.
LARGEST: Final = Size(200, 500)
#: Longest sequence or string that may be cut in two by the end of the part.
_CUT_MAX: Final = 256
#: A sequence that has begun and not ended: ESC, CSI, or a string (OSC, DCS, …) without its end. Source: ECMA-48.
_BEGUN: Final = re.compile(rb"\x1b(?:[ -/]*|\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?)\Z")
#: Private sequences of xterm that the model takes for others which end in the same letter.
_PRIVATE: Final = re.compile(rb"\x1b\[[<=>][0-9;]*[@-~]")
_COLOURS: Final = {
    "black": 0, "red": 1, "green": 2, "brown": 3, "blue": 4, "magenta": 5, "cyan": 6, "white": 7,
    "brightblack": 60, "brightred": 61, "brightgreen": 62, "brightbrown": 63, "brightblue": 64, "brightmagenta": 65,
    "bfightmagenta": 65, "brightcyan": 66, "brightwhite": 67,
}  # fmt: skip
_STYLES: Final = {"bold": 1, "italics": 3, "underscore": 4, "blink": 5, "reverse": 7, "strikethrough": 9}
#: The model's number of the private mode 25, cursor shown. Source: pyte.modes.
_CURSOR_SHOWN: Final = 25 << 5


class Painting(NamedTuple):
    """A screen to be shown.

    :ivar data: what paints it on an empty or used terminal; plain lines for something that is no terminal.
    :ivar used: how many of the bytes given are in it: a sequence that is not complete is left for afterwards.
    """

    data: bytes
    used: int


def available() -> bool:
    """Whether the model is installed."""
    return importlib.util.find_spec("pyte") is not None


def complete(data: bytes) -> int:
    """Return how many bytes of ``data`` there are before a sequence or character that its end cuts in two."""
    first = max(0, len(data) - _CUT_MAX)
    begun = _BEGUN.search(data, first)
    if begun is not None:
        return begun.start()
    for back in range(1, min(4, len(data) - first + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if back < length else len(data)
        if byte < 0x80:
            break
    return len(data)


def paint(data: bytes, size: Size | None) -> Painting:
    """Return the screen after ``data`` was printed; takes time, so it belongs into a thread.

    :param size: of the client's terminal; None: it is none.
    """
    used = complete(data)
    shown = Size(min(size.rows, LARGEST.rows), min(size.cols, LARGEST.cols)) if size and all(size) else DEFAULT
    screen = _screen_type()(shown.cols, shown.rows)
    _feed(screen, _PRIVATE.sub(b"", data[:used]))
    lines = [_row(screen, y, plain=size is None) for y in range(shown.rows)]
    if size is None:
        return Painting(b"".join(line + b"\n" for line in _without_end(lines)), used)
    out = [b"\x1b[!p\x1b[H\x1b[2J"]  # soft reset, home, erase
    out += [b"\x1b[%d;1H%s" % (y + 1, line) for y, line in enumerate(lines) if line]
    cursor = screen.cursor
    out.append(b"\x1b[%d;%dH" % (cursor.y + 1, min(cursor.x, shown.cols - 1) + 1))
    out.append(_style(cursor.attrs))
    if _CURSOR_SHOWN not in screen.mode:
        out.append(b"\x1b[?25l")
    return Painting(b"".join(out), used)


def _feed(screen: pyte.Screen, data: bytes) -> None:
    """Show bytes to the model; what it cannot stand costs one piece, not the screen."""
    import pyte

    stream = pyte.ByteStream(screen)
    for start in range(0, len(data), 1 << 10):
        try:
            stream.feed(data[start : start + (1 << 10)])
        except Exception:  # a guest may print anything, and the model has its own limits
            stream = pyte.ByteStream(screen)


@functools.cache
def _screen_type() -> type[pyte.Screen]:
    """The model's screen, deaf to private forms of sequences that pyte hands to methods which do not take them."""
    import pyte

    class Screen(pyte.Screen):
        """A screen that no sequence can upset."""

        def select_graphic_rendition(self, *attrs: int, **private: Any) -> None:
            """Change the style, unless it is a private sequence of the same letter (xterm's key modifiers)."""
            if not private:
                super().select_graphic_rendition(*attrs)

        def report_device_status(self, mode: int, **private: Any) -> None:
            """Say nothing: a model has nobody to talk to."""

        def report_device_attributes(self, mode: int = 0, **private: Any) -> None:
            """Say nothing."""

    return Screen


def _row(screen: pyte.Screen, y: int, *, plain: bool) -> bytes:
    row = screen.buffer[y]
    cells = [row[x] for x in range(screen.columns)]
    while cells and cells[-1].data == " " and (plain or cells[-1] == screen.default_char):
        cells.pop()
    out, style = [], b"\x1b[0m"
    for cell in cells:
        wanted = _style(cell)
        if wanted != style and not plain:
            out.append(wanted)
            style = wanted
        out.append(cell.data.encode("utf-8", "replace"))
    return b"".join(out) + (b"" if plain or style == b"\x1b[0m" else b"\x1b[0m")


def _style(cell: pyte.screens.Char) -> bytes:
    codes = ["0", *(str(code) for name, code in _STYLES.items() if getattr(cell, name, False))]
    codes += [code for code in (_colour(cell.fg, 30), _colour(cell.bg, 40)) if code]
    return f"\x1b[{';'.join(codes)}m".encode()


def _colour(name: str, first: int) -> str:
    if name == "default":
        return ""
    if name in _COLOURS:
        return str(first + _COLOURS[name])
    try:
        red, green, blue = bytes.fromhex(name)
    except ValueError:
        return ""
    return f"{first + 8};2;{red};{green};{blue}"


def _without_end(lines: list[bytes]) -> list[bytes]:
    while lines and not lines[-1]:
        lines.pop()
    return lines
