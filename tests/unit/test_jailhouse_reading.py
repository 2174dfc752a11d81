# SPDX-License-Identifier: Apache-2.0
"""Reads that never return: they are given up, told of, and never take the threads of others."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import anyio
import pytest

from backends.jailhouse import reading
from backends.jailhouse.errortext import Hung
from backends.jailhouse.reading import THREADS, Reading
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hanging reads wait for; opened at the end, else their threads would never end."""
    made = threading.Event()
    yield made
    made.set()


async def gone(read: Reading) -> None:
    with anyio.fail_after(30):
        while read.lost:
            await anyio.sleep(0.01)


async def test_what_answers_is_returned() -> None:
    read = Reading("/sys/x")
    assert await read.call(lambda: 7) == 7
    assert read.lost == 0


async def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(BackendError, match="cannot read /sys/x: No such file or directory"):
        await Reading("/sys/x").call(lambda: os.stat("/nonexistent"))


async def test_lost_reads_take_a_few_threads_and_no_more(gate: threading.Event) -> None:
    read = Reading("/sys/x", patience=0.2)
    begun = []

    def hang() -> None:
        begun.append(1)
        gate.wait()

    while read.lost < THREADS:
        with pytest.raises(Hung, match=r"cannot read /sys/x: no answer within 0.2 s"):
            await read.call(hang)
    for _ in range(3):
        with pytest.raises(Hung, match="cannot read /sys/x: 4 earlier reads never came back"):
            await read.call(hang)
    assert (len(begun), read.lost) == (THREADS, THREADS)
    assert await anyio.to_thread.run_sync(lambda: "others have their threads") == "others have their threads"
    gate.set()
    await gone(read)
    assert await read.call(lambda: 1) == 1  # the board answers again


async def test_an_answer_that_comes_too_late_is_no_loss(gate: threading.Event) -> None:
    read = Reading("/sys/x", patience=0.2)
    while not read.lost:
        with pytest.raises(Hung, match="no answer") as caught:
            await read.call(lambda: gate.wait())
    assert caught.value.hint == reading.HANGS
    gate.set()
    await gone(read)
