# SPDX-License-Identifier: Apache-2.0
"""Numbers that strangers write: guests, images, clients, files. The one way from their text to an int.

``int`` alone takes signs, blanks, underscores and other scripts' digits, is of no bound, and raises for more than 4300
digits; ``str.isdigit`` takes digits such as ``²`` that ``int`` refuses. So a number is ASCII digits here, not
longer than 64 bits need, and at most what its reader can use; everything else is no number, and a caller says that in
its own words. A test keeps ``isdigit`` and its like out of the rest of the project.
"""

from __future__ import annotations

import re
from typing import Final

#: the most that a file offset, and msgspec's JSON, can hold
LARGEST: Final = (1 << 63) - 1
#: Source: proc(5), /proc/sys/kernel/pid_max
PID_MAX: Final = 1 << 22
#: digits of any 64-bit number, with room for the zeros that programs write in front
_DIGITS_MAX: Final = 24

_DECIMAL: Final = re.compile(rf"[0-9]{{1,{_DIGITS_MAX}}}")
_HEX: Final = re.compile(rf"[0-9a-fA-F]{{1,{_DIGITS_MAX}}}")


def whole(text: str | bytes, most: int = LARGEST) -> int | None:
    """Return the number that decimal digits say; None: they are none, or it is greater than ``most``."""
    return _number(_DECIMAL, text, 10, most)


def hexadecimal(text: str | bytes, most: int = LARGEST) -> int | None:
    """Return the number that hexadecimal digits without a prefix say; None as for `whole`."""
    return _number(_HEX, text, 16, most)


def whole_or_hex(text: str, most: int = LARGEST) -> int | None:
    """Return the number that decimal digits, or hexadecimal ones behind ``0x``, say; None as for `whole`."""
    return hexadecimal(text[2:], most) if text[:2] in ("0x", "0X") else whole(text, most)


def number(text: str) -> int:
    """Return the value of a command line's option, for argparse, which says "invalid number value" itself.

    A minus is taken: engines write -1 for "no limit".

    :raises ValueError: it is no such number.
    """
    found = whole(text.removeprefix("-"))
    if found is None:
        raise ValueError("no number")
    return -found if text.startswith("-") else found


def _number(form: re.Pattern[str], text: str | bytes, base: int, most: int) -> int | None:
    word = text if isinstance(text, str) else text.decode("latin-1")
    if form.fullmatch(word) is None:
        return None
    found = int(word, base)
    return found if found <= most else None
