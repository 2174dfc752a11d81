# SPDX-License-Identifier: Apache-2.0
"""Following the hypervisor's console: lines with times, in a file that rotates, known again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from backends.lines import Kind
from consoles.errors import SourceError
from runphi_async.config.loading import from_table
from runphi_async.terminals import hypervisor
from runphi_async.terminals.hypervisor import NAME, HypervisorConsole, follow_hypervisor
from tests.unit.consolekit import until
from tests.unit.sourcekit import Puppet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from consoles.sources.base import Listener

BOOT = b"Initializing Jailhouse hypervisor v0.12 on CPU 0\nActivating hypervisor\n"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervisor, "QUIET", 0.02)


@contextlib.asynccontextmanager
async def following(directory: str, max_bytes: int = 1 << 20) -> AsyncIterator[tuple[HypervisorConsole, Puppet]]:
    source = Puppet()
    console = HypervisorConsole(source, directory, max_bytes)
    task = asyncio.create_task(console.run())
    await until(lambda: hasattr(source, "listener"))
    yield console, source
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert source.closed == 1


def texts(console: HypervisorConsole) -> list[str]:
    return [entry.text for entry in console.history(0)]


async def test_lines_are_kept_and_numbered(tmp_path: Path) -> None:
    woken: list[int] = []
    async with following(str(tmp_path / "log")) as (console, source):
        console.watch(lambda: woken.append(1))
        source.listener.received(BOOT + b'Started cell "a"\nhi\r\nprompt> ')
        await until(lambda: console.seq == 5)
        await until(lambda: len(texts(console)) == 5)
        assert [(entry.seq, entry.kind, entry.cell) for entry in console.history(0)] == [
            (1, Kind.HYPERVISOR, ""),
            (2, Kind.HYPERVISOR, ""),
            (3, Kind.HYPERVISOR, "a"),
            (4, Kind.INMATE, "a"),
            (5, Kind.UNKNOWN, ""),
        ]
        assert list(console.history(0)) == console.after(0)
        assert [entry.seq for entry in console.after(3)] == [4, 5]
        assert list(console.history(console.after(4)[0].time + 1)) == []
        assert woken


async def test_a_restarted_command_does_not_repeat_itself(tmp_path: Path) -> None:
    async with following(str(tmp_path)) as (console, source):
        source.listener.received(BOOT + b'Started cell "a"\n')
        await until(lambda: console.seq == 3)
        source.listener.gone("it ended with status 1")
        source.listener.back()
        source.listener.received(BOOT)
        source.listener.received(b'Started cell "a"\nnew\r\n')
        await until(lambda: console.seq == 6)
        await until(lambda: len(texts(console)) == 6)
        source.listener.gone("again")
        source.listener.back()
        source.listener.received(b"new\r\nnewer\r\n")
        await until(lambda: len(texts(console)) == 9)
    gone, back = "hypervisor-console-gone: ", "hypervisor-console-back"
    assert texts(console)[3:] == [gone + "it ended with status 1", back, "new", gone + "again", back, "newer"]


async def test_neither_does_a_restarted_supervisor(tmp_path: Path) -> None:
    async with following(str(tmp_path)) as (console, source):
        source.listener.received(BOOT)
        await until(lambda: len(texts(console)) == 2)
    async with following(str(tmp_path)) as (console, source):
        await until(lambda: console.seq == 2)
        source.listener.received(BOOT + b"Shutting down hypervisor\n")
        await until(lambda: console.seq == 3)
    assert texts(console)[2:] == ["Shutting down hypervisor"]


async def test_a_long_past_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervisor, "QUIET", 1000)
    async with following(str(tmp_path)) as (console, source):
        source.listener.received(b"line\r\n" * (hypervisor.PAST_MAX // 6 + 1))
        assert console.seq == hypervisor.PAST_MAX // 6 + 1


async def test_the_file_is_rotated_and_read_across(tmp_path: Path) -> None:
    async with following(str(tmp_path), 2000) as (console, source):
        for number in range(30):
            source.listener.received(b"line %d\r\n" % number)
            await until(lambda number=number: console.seq == number + 1)  # type: ignore[misc]
            await until(lambda number=number: f"line {number}" in texts(console)[-1:])  # type: ignore[misc]
    assert sorted(os.listdir(tmp_path)) == [NAME, NAME + ".1"]
    assert texts(console) == [f"line {number}" for number in range(30)]


async def test_a_removed_file_is_made_anew(tmp_path: Path) -> None:
    async with following(str(tmp_path / "log")) as (console, source):
        source.listener.received(b"one\r\n")
        await until(lambda: texts(console) == ["one"])
        (tmp_path / "log" / NAME).unlink()
        source.listener.received(b"two\r\n")
        await until(lambda: texts(console) == ["two"])


async def test_a_renamed_file_is_left_when_asked_to(tmp_path: Path) -> None:
    async with following(str(tmp_path)) as (console, source):
        source.listener.received(b"one\r\n")
        await until(lambda: texts(console) == ["one"])
        os.rename(tmp_path / NAME, tmp_path / (NAME + ".3"))
        console.reopen()
        source.listener.received(b"two\r\n")
        await until(lambda: texts(console) == ["one", "two"])
        assert len((tmp_path / NAME).read_text().splitlines()) == 1


async def test_a_disk_that_refuses_costs_lines_on_disk_only(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the way")
    async with following(str(tmp_path / "log")) as (console, source):
        source.listener.received(b"one\r\ntwo\r\n")
        await until(lambda: console.lost == 2)
        assert [entry.text for entry in console.after(0)] == ["one", "two"]
        (tmp_path / "log").unlink()
        source.listener.received(b"three\r\n")
        await until(lambda: texts(console) == ["three"])


async def test_a_cut_line_of_the_file_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"seq":1,"time":5,"kind":"inmate","text":"a"}\n{"seq":2,"ti\n')
    async with following(str(tmp_path)) as (console, _):
        assert texts(console) == ["a"]


async def test_a_flood_is_held_back_until_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervisor, "WAITING_MAX", 1000)
    async with following(str(tmp_path)) as (console, source):
        source.listener.received(b"x" * 30 + b"\r\n")
        await until(lambda: console.seq == 1)
        source.listener.received((b"x" * 30 + b"\r\n") * 100)
        assert source.is_paused()
        await until(lambda: not source.is_paused())
        assert len(texts(console)) == 101


async def test_what_the_driver_lost_is_counted(tmp_path: Path) -> None:
    async with following(str(tmp_path)) as (console, source):
        source.listener.received(b"hal<missed 8005 bytes of console log>\nf\r\n<missed 5 bytes of console log>\n")
        await until(lambda: console.seq == 4)
        assert console.statistics() == (4, 8010, 2, 0)
        assert [entry.missed for entry in console.after(0)] == [0, 8005, 0, 5]


async def test_a_backend_says_which_cells_run(tmp_path: Path) -> None:
    async with following(str(tmp_path)) as (console, source):
        console.running({"vcon1"})
        source.listener.received(b"hi\r\n")
        await until(lambda: console.seq == 1)
        assert console.after(0)[0].cell == "vcon1"


async def test_without_a_directory_the_recent_lines_are_at_hand() -> None:
    async with following("") as (console, source):
        source.listener.received(b"one\r\n")
        await until(lambda: [entry.text for entry in console.after(0)] == ["one"])
        assert list(console.history(0)) == []


async def test_a_source_that_comes_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervisor, "FIRST_PAUSE", 0.01)
    source = Puppet()
    source.refusals = [SourceError("cannot run jailhouse: there is no such program in PATH")]
    console = HypervisorConsole(source, str(tmp_path), 1 << 20)
    task = asyncio.create_task(console.run())
    await until(lambda: not source.refusals)
    source.listener.received(b"late\r\n")
    await until(lambda: [entry.text for entry in console.after(0)] == ["late"])
    task.cancel()
    await asyncio.wait([task])


async def test_a_mistake_of_ours_ends_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Puppet):
        async def open(self, listener: Listener) -> None:
            raise RuntimeError("never thought of")

    source = Broken()
    await asyncio.wait_for(HypervisorConsole(source, str(tmp_path), 1 << 20).run(), 10)
    assert source.closed == 1
    assert "is followed no more" in caplog.text


async def test_nobody_follows_unless_configured() -> None:
    assert follow_hypervisor(from_table({})) is None
    console = follow_hypervisor(from_table({"hypervisor": {"console": "exec:jailhouse console -f"}}))
    assert isinstance(console, HypervisorConsole)
