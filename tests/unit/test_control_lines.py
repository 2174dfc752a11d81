# SPDX-License-Identifier: Apache-2.0
"""What a Linux guest's init says on its control port, when the guest itself says it: anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backends.base import Told
from backends.qemu.heard import Heard
from backends.xen.driver import Memory as XenMemory
from backends.xen.driver import XenDriver
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LINES = st.binary() | st.builds(
    lambda word, rest: word + b" " + rest,
    st.sampled_from([b"written", b"exit", b"error"]),
    st.sampled_from([b"9" * 5000, "²".encode(), b"18446744073709551616", b"-1", b"7", b""]) | st.binary(),
)


def qemu(path: Path, told: Told) -> Callable[[bytes], None]:
    heard = Heard()

    def hear(line: bytes) -> None:
        if heard.word(line) == "exit":
            told.done(heard.written)

    return hear


def xen(path: Path, told: Told) -> Callable[[bytes], None]:
    driver = XenDriver(XenMemory(kind=GuestKind.LINUX), str(path), None)  # type: ignore[arg-type]
    driver._ending.attend(told)
    return lambda line: driver._on_line(line.decode("utf-8", "replace"))


@pytest.mark.parametrize("hear_of", [qemu, xen], ids=["qemu", "xen"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(lines=st.lists(LINES, max_size=4))
@example(lines=[b"written " + b"9" * 5000, b"exit 7"])
def test_no_line_of_a_guest_is_too_much(
    tmp_path: Path, hear_of: Callable[[Path, Told], Callable[[bytes], None]], lines: list[bytes]
) -> None:
    printed: list[int] = []
    hear = hear_of(tmp_path, Told(lambda: None, printed.append, lambda text: None))
    for line in lines:
        hear(line)
    assert all(0 <= number < 1 << 63 for number in printed)


def test_a_number_that_is_none_is_no_word() -> None:
    heard = Heard()
    for line in (b"written " + b"9" * 5000, b"exit " + b"9" * 5000):
        assert heard.word(line) == ""
    assert (heard.written, heard.exit) == (0, None)
    assert heard.word(b"exit 7") == "exit"
    assert heard.exit == 7
