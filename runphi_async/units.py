# SPDX-License-Identifier: Apache-2.0
"""Numbers as people write them in annotations, environment and configuration, and back again for messages."""

from __future__ import annotations

import re
from typing import Final

from runphi_async import digits

#: an address of a guest, which may have all 64 bits
_INT_MAX: Final = (1 << 64) - 1
#: characters of a text in a message
_SHOWN_MAX: Final = 80
KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

#: more numbers than any board has of anything that is counted
_MANY: Final = 8192
_NUMBERS: Final = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7}))?")
_SIZE = re.compile(r"([0-9]+)\s*([kmgt]?)(i?b?)", re.IGNORECASE | re.ASCII)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """Bytes of ``64M``, ``64Mi``, ``64MiB``, ``65536`` (powers of 1024, as with engines' ``--memory``) or
    ``64MB``.
    """
    match = _SIZE.fullmatch(text.strip())
    count = digits.whole(match[1]) if match is not None else None
    if match is None or count is None:
        raise ValueError(f"{shown(text)} is not a size such as 64M or 1G")
    unit = 1000 if match[3].lower() == "b" else 1024
    size = count * int(unit ** _POWER[match[2].lower()])
    if size > digits.LARGEST:
        raise ValueError(f"{shown(text)} is more than there can be")
    return size


def parse_int(text: str) -> int:
    """A whole number that is not negative, decimal or with 0x in front."""
    word = text.strip()
    value = digits.whole_or_hex(word, _INT_MAX)
    if value is None and digits.whole_or_hex(word.removeprefix("-"), _INT_MAX) is not None:
        raise ValueError(f"{shown(text)} is negative")
    if value is None:
        raise ValueError(f"{shown(text)} is not a number such as 4096 or 0x1000")
    return value


def shown(text: str) -> str:
    """Return a stranger's text for a message: quoted, in one line, and not longer than that may be."""
    return f"'{text}'" if text.isprintable() and len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]!a} …"


def parse_bool(text: str) -> bool:
    """Yes or no in the usual spellings; empty is no."""
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on", "y"):
        return True
    if word in ("", "0", "false", "no", "off", "n"):
        return False
    raise ValueError(f"'{text}' is neither yes nor no")


def parse_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as ``0-2,5``, ascending, each once.

    :raises ValueError: it is no such list.
    """
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _NUMBERS.fullmatch(part)
        if match is None:
            raise ValueError(f"{shown(part)} is no number or range such as 0-3")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high or high - low > _MANY:
            raise ValueError(f"{shown(part)} is not a range")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def human(size: int) -> str:
    """A size for a sentence: ``64 MiB``, ``1.5 GiB``, ``512 bytes``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            text = f"{size / unit:.1f}".removesuffix(".0")
            return f"{text} {name}"
    return f"{size} bytes"


def round_up(value: int, step: int) -> int:
    """The smallest multiple of ``step`` that is not below ``value``."""
    return -(-value // step) * step
