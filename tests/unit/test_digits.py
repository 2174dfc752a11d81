# SPDX-License-Identifier: Apache-2.0
"""Numbers of strangers: one helper with a limit, what goes through it, and nobody beside it."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.jailhouse.marks import Filter, Said
from backends.xen.states import parse_pools
from consoles.errors import SourceError
from consoles.sharedmem.regions import parse_place
from consoles.sources import settings
from runphi_async import digits, units
from runphi_async.board import ranges
from runphi_async.commands.logs import moment
from runphi_async.config.section import Size
from runphi_async.errors import RunphiError
from runphi_async.host.cgroup import _number as cgroup_number
from runphi_async.oci import signals
from runphi_async.partition.guest import parse_cpuset
from runphi_async.terminals import replay, sessions

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
#: the smallest members of the kind: other scripts' digits, more of them than int takes, than JSON holds, than a seek
ODD = ("²", "٣", "9" * 5000, "9" * 30, str(1 << 64), "1_000", " 7", "+1", "-0", "0x" + "f" * 5000, "1e9", "")
NUMBERS = st.sampled_from(ODD) | st.text() | st.integers().map(str) | st.integers(min_value=0).map(hex)


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_number(text: str) -> None:
    assert digits.whole(text) is None
    assert digits.whole(text.encode()) is None
    with pytest.raises(ValueError, match="no number"):
        digits.number("--1" if text == "-0" else text)


def test_numbers_and_their_bounds() -> None:
    assert digits.whole("0007") == 7
    assert digits.whole(b"7") == 7
    assert digits.whole(str(digits.LARGEST)) == digits.LARGEST
    assert digits.whole(str(digits.LARGEST + 1)) is None
    assert digits.whole("8", 7) is None
    assert digits.whole_or_hex("0X1f") == 31
    assert digits.hexadecimal("1f", 30) is None
    assert digits.number("-1") == -1


@given(st.text())
def test_a_number_is_what_int_makes_of_it(text: str) -> None:
    found = digits.whole(text)
    assert found is None or found == int(text)


#: what reads numbers of others, and the one kind of error that it may raise
READERS: dict[str, Callable[[str], Any]] = {
    "sizes of annotations": units.parse_size,
    "numbers of annotations": units.parse_int,
    "sizes of the configuration": Size.parse,
    "lists of board files": ranges.numbers,
    "cpuset": parse_cpuset,
    "--since": lambda text: moment(text, 0),
    "--replay": replay.check,
    "kill": signals.parse,
    "terminal sizes": lambda text: sessions.read_size(text.encode("utf-8", "surrogatepass")),
    "exit codes in the record": Said.read,
    "cgroup files": cgroup_number,
    "cpupools": lambda text: parse_pools(f"h\n{text}\n", f"h\na {text}\n"),
    "shared memory": lambda text: parse_place(f"mem:{text}+{text}"),
    "uio": lambda text: parse_place(f"/dev/uio{text}:{text}"),
    "serial ports": lambda text: settings.parse_serial(f"/dev/ttyS0,{text}"),
    "words of a cell's init": lambda text: Filter("m")._word(f"exit={text}".encode("utf-8", "surrogatepass")),
}


@pytest.mark.parametrize("reader", READERS)
@given(text=NUMBERS)
@example(text=ODD[0])
@example(text=ODD[2])
@example(text=ODD[3])
def test_every_reader_of_numbers_says_no_in_its_own_words(reader: str, text: str) -> None:
    with contextlib.suppress(RunphiError, ValueError, SourceError, settings.SettingError):
        READERS[reader](text)
    with contextlib.suppress(RunphiError, ValueError, SourceError, settings.SettingError):
        _bounded(READERS[reader](text))


def _bounded(found: object) -> None:
    if isinstance(found, int):
        assert abs(found) < 1 << 64
    elif isinstance(found, tuple):
        for item in found:
            _bounded(item)


def test_nobody_asks_a_text_whether_it_is_a_number() -> None:
    """``isdigit`` and its like take what ``int`` refuses, and set no bound: `digits` is there for that."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.attr}"
        for part in ("runphi_async", "backends", "consoles")
        for path in (ROOT / part).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("isdigit", "isdecimal", "isnumeric")
    ]
    assert [place for place in found if "/testing/" not in place] == []
