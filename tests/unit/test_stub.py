# SPDX-License-Identifier: Apache-2.0
"""The init stub: one VMM after the other, the word that starts the second, and what a next supervisor takes back."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING

import pytest

from backends.qemu.comm import QMP_FD
from backends.qemu.net import FIRST_TAP_FD
from runphi_async.lifeline import stub
from tests.unit.stubkit import SPEAK, living

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("vmm", [(), SPEAK])
async def test_stdin_is_never_the_exit_fifo(tmp_path: Path, vmm: tuple[str, ...]) -> None:
    """Not even while the shell waits for the exit code: whoever read from it there would steal the code."""
    with living(tmp_path, stub.command((*vmm, "0") if vmm else (), None)) as life:
        if vmm:
            await asyncio.to_thread(life.rung)
        taken = stub.take(life.pidfd, stub.Fd.STDIN)
        os.write(life.typed, b"for the guest\n")
        assert os.read(taken, 100) == b"for the guest\n"
        os.close(taken)
        assert await asyncio.to_thread(life.ended, b"7") == 7


async def test_both_commands_get_their_words_as_they_are(tmp_path: Path) -> None:
    first, second = ("3", "a b", "", "*", "$HOME"), ("5", "c\td", "again", "'")
    with living(tmp_path, stub.command((*SPEAK, *first), None, (*SPEAK, *second))) as life:
        await asyncio.to_thread(life.rung)
        assert (tmp_path / "vmm.log").read_text() == "a b\n\n*\n$HOME\n"
        assert stub.read_status(str(tmp_path)) == 3
        stub.say_again(str(tmp_path))
        await asyncio.to_thread(life.rung)
        assert (tmp_path / "vmm.log").read_text() == "c\td\nagain\n'\n"
        assert stub.read_status(str(tmp_path)) == 5
        assert await asyncio.to_thread(life.ended, b"42") == 42


async def test_the_second_command_runs_once_however_often_it_is_said(tmp_path: Path) -> None:
    count = ("/bin/sh", "-c", "echo run >>runs")
    with living(tmp_path, stub.command(count, None, count)) as life:
        for _ in range(3):
            stub.say_again(str(tmp_path))
        await asyncio.to_thread(life.rung)
        await asyncio.to_thread(life.rung)
        assert await asyncio.to_thread(life.ended, b"9") == 9
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


async def test_without_the_word_there_is_no_second_try(tmp_path: Path) -> None:
    count = ("/bin/sh", "-c", "echo run >>runs")
    with living(tmp_path, stub.command(count, None, count)) as life:
        await asyncio.to_thread(life.rung)
        assert await asyncio.to_thread(life.ended, b"6") == 6
    assert (tmp_path / "runs").read_text() == "run\n"


async def test_the_vmm_has_none_of_the_stubs_descriptors(tmp_path: Path) -> None:
    look = ("/bin/sh", "-c", "for fd in 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$fd ] && echo $fd; done; exit 0")
    with living(tmp_path, stub.command(look, None, look)) as life:
        await asyncio.to_thread(life.rung)
        assert (tmp_path / "vmm.log").read_text() == ""
        stub.say_again(str(tmp_path))
        await asyncio.to_thread(life.rung)
        assert (tmp_path / "vmm.log").read_text() == ""
        assert await asyncio.to_thread(life.ended, b"0") == 0


def test_the_numbers_are_those_of_guests_that_run() -> None:
    """An init process that was made before an upgrade keeps its numbers: whoever changes one loses its console."""
    assert {fd.name: int(fd) for fd in stub.Fd} == {
        "EXIT": 0, "STDOUT": 1, "STDERR": 2, "STDIN": 3, "STDIO_CURSOR": 4, "LOG_CURSOR": 5,
        "CONSOLE": 6, "BELL": 7, "EVENTS": 8, "CONTROL": 9,
    }  # fmt: skip
    assert QMP_FD == 10, "the guest's command line has it"


def test_the_numbers_are_a_shells() -> None:
    """They are handed over as a list, so there is no gap, and no shell can name a descriptor of two digits."""
    assert list(stub.Fd) == list(range(10))
    assert stub.FIRST_EXTRA == len(stub.Fd) == QMP_FD == FIRST_TAP_FD


def test_the_shell_closes_and_rings_what_the_table_says() -> None:
    text = stub.command(("vmm",), None)[2]
    closed = {int(number) for number in re.findall(r"(\d)<&-", text)}
    assert closed == {fd for fd in stub.Fd if fd not in (stub.Fd.EXIT, stub.Fd.STDOUT, stub.Fd.STDERR)}
    assert set(re.findall(r">&(\d)", text)) == {str(int(stub.Fd.BELL)), "1"}  # 2>&1
    assert int(stub.Fd.EXIT) == 0, "`read` of the shell takes its stdin"


def test_every_descriptor_comes_to_its_place(tmp_path: Path) -> None:
    held = {fd: os.open(tmp_path / fd.name, os.O_RDWR | os.O_CREAT) for fd in stub.Fd if fd not in stub.OPTIONAL}
    extra = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("first", "second")]
    with stub.arranged(held, extra) as arranged:
        shown = [os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) for fd in arranged]
    wanted = [fd.name if fd in held else "null" for fd in stub.Fd]
    assert shown == [*wanted, "first", "second"]
    for fd in (*held.values(), *extra):
        os.close(fd)


def test_a_stub_without_a_descriptor_that_it_needs_is_not_made() -> None:
    needed = {fd: 0 for fd in stub.Fd if fd not in stub.OPTIONAL}
    for fd in needed:
        rest = {other: number for other, number in needed.items() if other is not fd}
        with pytest.raises(ValueError, match=fd.name), stub.arranged(rest):
            pass
