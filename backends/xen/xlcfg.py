# SPDX-License-Identifier: Apache-2.0
"""Writes xl.cfg files. xl accepts keys it does not know and values that mean nothing without a word, so we check both.

Only keys of this table are ever written; what xl would take silently and differently (``vcpus = 0``, an empty name, a
CPU that is not there) is refused here or in the plan.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from runphi_async import digits
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

Value = str | int | tuple[str, ...]

#: Keys of xl.cfg(5) that we write, and what each holds.
KEYS: Final[Mapping[str, type]] = {
    "name": str,
    "uuid": str,
    "type": str,
    "kernel": str,
    "ramdisk": str,
    "extra": str,
    "memory": int,
    "maxmem": int,
    "vcpus": int,
    "cpus": tuple,
    "pool": str,
    "cpu_weight": int,
    "cap": int,
    "period": int,
    "budget": int,
    "disk": tuple,
    "vif": tuple,
    "p9": tuple,
    "pci": tuple,
    "channel": tuple,
    "iomem": tuple,
    "irqs": tuple,
    "dtdev": tuple,
    "static_shm": tuple,
    "on_poweroff": str,
    "on_reboot": str,
    "on_crash": str,
}
_NUMBERS: Final = ("irqs",)
#: Least value of numbers; all others must be positive.
_LEAST: Final[Mapping[str, int]] = {"cap": 0}
NAME: Final = re.compile(r"[\w+.,-]{1,240}", re.ASCII)
#: Quotes end a string, and a backslash begins an escape: no value of ours needs one.
_UNQUOTABLE: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


def render(entries: Mapping[str, Value]) -> bytes:
    """Return the file.

    :raises PlanError: a key or value that xl would not take as it is meant.
    """
    lines = [f"{key} = {_value(key, value)}" for key, value in entries.items()]
    return ("\n".join(lines) + "\n").encode()


def _value(key: str, value: Value) -> str:
    kind = KEYS.get(key)
    if kind is None or not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f"cannot configure the domain: {key} = {value!r} is nothing that xl.cfg has")
    if isinstance(value, int):
        if value < _LEAST.get(key, 1):
            raise PlanError(f"cannot configure the domain: {key} = {value} is too small")
        return str(value)
    if isinstance(value, tuple):
        items = [_digits(key, item) if key in _NUMBERS else quote(key, item) for item in value]
        return f"[ {', '.join(items)} ]" if items else "[]"
    if key == "name" and not NAME.fullmatch(value):
        raise PlanError(f"cannot name the domain {value!r}")
    return quote(key, value)


def _digits(key: str, text: str) -> str:
    if digits.whole(text) is None:
        raise PlanError(f"cannot configure the domain: {key} = {text!r} is no number")
    return text


def quote(key: str, text: str) -> str:
    """Return a string as xl.cfg has it."""
    mark = "'" if '"' in text else '"'
    if not text or mark in text or _UNQUOTABLE.search(text):
        raise PlanError(
            f"cannot configure the domain: {key} = {text!r} cannot be written in xl.cfg",
            "leave out backslashes, control characters and mixed quotes",
        )
    return f"{mark}{text}{mark}"
