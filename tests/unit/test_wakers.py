# SPDX-License-Identifier: Apache-2.0
"""Waiting for room: each who waits is called once, in order, and what is lost wakes nobody."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from consoles.wakers import Wakers, Writable
from tests.unit.consolekit import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def test_all_who_wait_are_called_once_and_in_order() -> None:
    wakers, called = Wakers(), list[str]()
    assert not wakers
    wakers.add(lambda: called.append("first"))
    wakers.add(lambda: called.append("second"))
    assert wakers
    wakers.wake()
    wakers.wake()
    assert called == ["first", "second"]
    assert not wakers


def test_who_asks_again_from_within_waits_for_the_next_time() -> None:
    wakers, called = Wakers(), list[int]()

    def again() -> None:
        called.append(len(called))
        wakers.add(again)

    wakers.add(again)
    wakers.wake()
    assert called == [0]
    assert wakers
    wakers.wake()
    assert called == [0, 1]


def test_what_is_lost_wakes_nobody_not_even_who_asks_later() -> None:
    wakers, called = Wakers(), list[str]()
    wakers.add(lambda: called.append("before"))
    wakers.drop()
    wakers.add(lambda: called.append("after"))
    wakers.wake()
    assert called == []
    assert not wakers


def test_those_who_wait_can_be_passed_on() -> None:
    here, there, called = Wakers(), Wakers(), list[str]()
    here.add(lambda: called.append("first"))
    here.add(lambda: called.append("second"))
    here.pass_on(there.add)
    here.wake()
    assert called == []
    there.wake()
    assert called == ["first", "second"]


class Pipe:
    """A pipe that is full."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK)
        self.room = Writable(self.writer)
        self.woken = 0
        self.fill()

    def fill(self) -> None:
        while True:
            try:
                os.write(self.writer, bytes(4096))
            except BlockingIOError:
                return

    def empty(self) -> None:
        while True:
            try:
                os.read(self.reader, 65536)
            except BlockingIOError:
                return

    def woke(self) -> None:
        self.woken += 1

    def woke_and_full_again(self) -> None:
        self.woken += 1
        self.fill()
        self.room.add(self.woke_and_full_again)

    @property
    def watched(self) -> bool:
        """Whether the loop watches the writer; asking takes it out."""
        return asyncio.get_running_loop().remove_writer(self.writer)


@pytest.fixture
async def pipe() -> AsyncIterator[Pipe]:
    made = Pipe()
    yield made
    made.room.drop()
    os.close(made.reader)
    os.close(made.writer)


async def test_a_descriptor_wakes_when_it_takes_bytes_and_is_watched_no_longer(pipe: Pipe) -> None:
    pipe.room.add(pipe.woke)
    pipe.room.add(pipe.woke)
    await asyncio.sleep(0)
    assert pipe.room
    assert pipe.woken == 0
    pipe.empty()
    await until(lambda: pipe.woken == 2)
    assert not pipe.room
    assert not pipe.watched


async def test_who_fills_it_again_and_asks_again_is_woken_again(pipe: Pipe) -> None:
    pipe.room.add(pipe.woke_and_full_again)
    pipe.empty()
    await until(lambda: pipe.woken == 1)
    assert pipe.room
    pipe.empty()
    await until(lambda: pipe.woken == 2)
    assert pipe.room


async def test_a_descriptor_that_is_lost_wakes_nobody(pipe: Pipe) -> None:
    pipe.room.add(pipe.woke)
    pipe.room.drop()
    assert not pipe.watched
    pipe.empty()
    pipe.room.add(pipe.woke)
    assert not pipe.room
    assert not pipe.watched
    await asyncio.sleep(0.01)
    assert pipe.woken == 0


async def test_it_may_be_lost_while_it_wakes(pipe: Pipe) -> None:
    pipe.room.add(pipe.room.drop)
    pipe.room.add(pipe.woke)
    pipe.empty()
    await until(lambda: pipe.woken == 1)  # it was among those who waited
    assert not pipe.watched


async def test_what_never_was_wakes_nobody() -> None:
    nothing = Writable(-1)
    nothing.add(lambda: pytest.fail("woken"))
    assert not nothing
    nothing.drop()
