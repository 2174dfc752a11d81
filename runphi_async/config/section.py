# SPDX-License-Identifier: Apache-2.0
"""What tables of the configuration file are made of; each backend brings its own, others are in ``schema``."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from runphi_async import digits

_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}ib": 1 << 10 * (n + 1) for n, letter in enumerate("kmgt")},
    **{f"{letter}b": 1000 ** (n + 1) for n, letter in enumerate("kmgt")},
}


class Size(int):
    """A number of bytes, in the file either a number or a text such as ``"64 MiB"``."""

    @classmethod
    def parse(cls, value: object) -> Size:
        """Read a size as the file may give it; ValueError says what is wrong with it."""
        if isinstance(value, str):
            found = re.fullmatch(r"\s*([0-9]+)\s*([A-Za-z]*)\s*", value)
            unit = _UNITS.get(found[2].lower()) if found else None
            count = digits.whole(found[1]) if found else None
            if unit is None or count is None or count * unit > digits.LARGEST:
                raise ValueError(f'expected a size such as 65536 or "64 KiB", got {value!r:.80}')
            return cls(count * unit)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f'expected a size such as 65536 or "64 KiB", got {type(value).__name__}')
        if not 0 <= value <= digits.LARGEST:
            got = str(value) if abs(value) <= digits.LARGEST else "more than there can be"
            raise ValueError(f"expected a size of 0 or more, got {got}")
        return cls(value)

    def text(self) -> str:
        """Return the size as people write it; ``str`` stays the plain number, which command lines need."""
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            count, rest = divmod(int(self), _UNITS[unit.lower()])
            if count and not rest:
                return f"{count} {unit}"
        return f"{int(self)} B"


MIB: Final = 1 << 20


def doc(text: str) -> msgspec.Meta:
    """Return what the reference page says of a key."""
    return msgspec.Meta(description=text)


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Common options of every table of the file."""


class BackendSection(Section, frozen=True):
    """The table of one backend."""

    def programs(self) -> tuple[str, ...]:
        """Return programs that the backend runs, by name or path: a report says their versions."""
        return ()


#: What a backend's ``stop_seconds`` is.
StopSeconds = Annotated[
    float, msgspec.Meta(ge=0), doc("How long a guest asked to stop may take before it is destroyed.")
]


class MemoryDefault(Section, frozen=True):
    """RAM of a guest whose container sets no memory limit, for each kind of guest."""

    inmate: Annotated[Size, doc("A bare-metal program or RTOS (`INMATE=`).")] = Size(32 * MIB)
    linux: Annotated[Size, doc("A Linux guest that runs the image (`LINUX=1`).")] = Size(256 * MIB)
    kernel: Annotated[Size, doc("A kernel with its own ramdisk (`KERNEL=`, `RAMDISK=`).")] = Size(256 * MIB)


class MemoryMinimum(Section, frozen=True):
    """Least RAM of a guest: a container limited to less is refused."""

    inmate: Annotated[Size, doc("A bare-metal program or RTOS.")] = Size(4 * MIB)
    linux: Annotated[Size, doc("A Linux guest; Debian's kernel takes 62 MiB.")] = Size(96 * MIB)
    kernel: Annotated[Size, doc("A kernel with its own ramdisk.")] = Size(64 * MIB)
