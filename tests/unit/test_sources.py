# SPDX-License-Identifier: Apache-2.0
"""Ptys, unix sockets and commands as sources: both directions, back pressure, lost and back again, closed cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from consoles.errors import SourceError
from consoles.sources import link
from consoles.sources.link import Backoff
from consoles.sources.process import ProcessSource
from consoles.sources.pty import Identity, PtySource, is_same_console
from consoles.sources.unixsocket import UnixSource
from tests.unit.consolekit import pattern, until
from tests.unit.sourcekit import Ear, Terminal, quick, send_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "STEADY", 0.05)


@pytest.fixture
def unsteady(steady: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For far ends that are lost soon, however busy the machine is."""
    monkeypatch.setattr(link, "STEADY", 1000)


@pytest.fixture(autouse=True)
async def no_descriptor_stays() -> AsyncIterator[None]:
    await asyncio.to_thread(lambda: None)  # the pool's own
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.hang_up()


# Section: pauses


def test_pauses_grow_to_a_bound_and_begin_again() -> None:
    backoff = Backoff(1, 5)
    assert [backoff.pause() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.pause() == 1


# Section: ptys


async def test_a_pty_both_ways(terminal: Terminal) -> None:
    ear, source = Ear(), PtySource(terminal.path)
    await source.open(ear)
    os.write(terminal.master, b"hello\r\n\x00\xff")
    await ear.hears(b"hello\r\n\x00\xff")
    assert source.write(b"\x03ls\r") == 4  # raw: no signal, no echo, no translation
    assert await terminal.reads(4) == b"\x03ls\r"
    await source.close()
    assert ear.said == []


async def test_a_pty_that_is_full_takes_more_later(terminal: Terminal) -> None:
    ear, source = Ear(), PtySource(terminal.path)
    await source.open(ear)
    total = pattern(0, 100_000)
    sending = asyncio.ensure_future(send_all(source, total))
    await until(lambda: source.write(b"") == 0)
    assert await terminal.reads(len(total)) == total
    await sending
    await source.close()


async def test_a_paused_pty_makes_the_far_end_wait(terminal: Terminal) -> None:
    ear, source = Ear(), PtySource(terminal.path)
    source.pause()
    await source.open(ear)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += os.write(terminal.master, pattern(sent, 512))
    await asyncio.sleep(0.02)
    assert ear.data == b""
    source.resume()
    await until(lambda: len(ear.data) == sent)
    assert ear.data == pattern(0, sent)
    await source.close()


async def test_what_a_pty_holds_is_read_when_it_is_closed(terminal: Terminal) -> None:
    ear, source = Ear(), PtySource(terminal.path)
    source.pause()
    await source.open(ear)
    os.write(terminal.master, b"last words")
    await source.close()
    assert ear.data == b"last words"


async def test_a_pty_hangs_up_and_another_one_takes_its_place(tmp_path: Path) -> None:
    first, path = Terminal(), tmp_path / "console"
    path.symlink_to(first.path)
    ear, source = Ear(), PtySource(str(path), quick())
    await source.open(ear)
    os.write(first.master, b"one")
    await ear.hears(b"one")
    first.hang_up()
    await ear.is_told("gone")
    assert source.write(b"lost") == 0
    second = Terminal()
    (tmp_path / "new").symlink_to(second.path)
    os.rename(tmp_path / "new", path)
    await ear.is_told("gone", "back")
    os.write(second.master, b"two")
    await ear.hears(b"onetwo")
    assert source.write(b"typed") == 5
    assert await second.reads(5) == b"typed"
    await source.close()
    second.hang_up()


async def test_the_number_of_a_pty_that_hung_up_is_not_opened_again() -> None:
    for _ in range(50):
        first = Terminal()
        ear, source = Ear(), PtySource(first.path, quick())
        await source.open(ear)
        first.hang_up()
        await ear.is_told("gone")  # and has closed it: the number is free
        others = [Terminal() for _ in range(3)]
        reused = [other for other in others if other.path == first.path]
        if reused:  # unless somebody else on this machine was faster
            await asyncio.sleep(0.15)  # several tries
            os.write(reused[0].master, b"secret")
            await asyncio.sleep(0.05)
        await source.close()
        for other in others:
            other.hang_up()
        if reused:
            break
    assert reused
    assert len(ear.said) == 1
    assert ear.data == b""


async def test_a_pty_is_looked_up_before_every_opening() -> None:
    terminals = [Terminal(), Terminal()]

    async def find() -> str:
        return terminals[0].path

    ear, source = Ear(), PtySource(find, quick())
    await source.open(ear)
    terminals.pop(0).hang_up()
    await ear.is_told("gone", "back")
    os.write(terminals[0].master, b"found")
    await ear.hears(b"found")
    await source.close()
    terminals[0].hang_up()


def test_which_terminal_may_come_back() -> None:
    old, new = Identity("/dev/pts/3", 1, 1), Identity("/dev/pts/3", 2, 2)
    assert is_same_console("/dev/pts/3", None, old)
    assert not is_same_console("/dev/pts/3", old, new)
    assert is_same_console("/run/console", old, new)
    assert not is_same_console("/run/console", old, old)
    real = Identity("/dev/ttyS0", 1, 1)
    assert is_same_console("/dev/ttyS0", real, real)


async def test_what_is_no_terminal_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "fifo", tmp_path / "file", tmp_path / "missing", tmp_path, "/dev/null"):
        with pytest.raises(SourceError, match=f"cannot open {path}: "):
            await PtySource(str(path)).open(Ear())


# Section: unix sockets


class Server:
    """A listening socket, as QEMU's chardev makes it."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        directory = os.open(path.parent, os.O_PATH)
        self.listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        self.listener.listen(1)
        self.listener.setblocking(False)

    async def accept(self) -> socket.socket:
        async with asyncio.timeout(10):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        return sock


async def test_a_unix_socket_both_ways_and_back_again(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / "console.sock"  # longer than an address may be
    path.parent.mkdir()
    server, ear, source = Server(path), Ear(), UnixSource(str(path), quick())
    await source.open(ear)
    peer = await server.accept()
    peer.send(b"hello")
    await ear.hears(b"hello")
    assert source.write(b"typed") == 5
    assert await asyncio.get_running_loop().sock_recv(peer, 100) == b"typed"
    peer.close()
    await ear.is_told("gone", "back")
    peer = await server.accept()
    peer.send(b" again")
    await ear.hears(b"hello again")
    server.listener.close()
    os.unlink(path)
    peer.close()
    await ear.is_told("gone", "back", "gone")
    server = Server(path)
    await ear.is_told("gone", "back", "gone", "back")
    await source.close()
    server.listener.close()


@pytest.mark.usefixtures("unsteady")
async def test_a_server_that_hangs_up_at_once_is_not_back(tmp_path: Path) -> None:
    server, ear, source = Server(tmp_path / "sock"), Ear(), UnixSource(str(tmp_path / "sock"), quick())
    await source.open(ear)
    for _ in range(5):
        (await server.accept()).close()
    await ear.is_told("gone")
    peer = await server.accept()
    peer.send(b"x")
    await ear.is_told("gone", "back")
    await source.close()
    peer.close()
    server.listener.close()


async def test_a_socket_nobody_listens_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file or directory"):
        await UnixSource(str(tmp_path / "none")).open(Ear())
    with pytest.raises(SourceError, match="No such file or directory"):
        await UnixSource(str(tmp_path / "no" / "none")).open(Ear())
    server = Server(tmp_path / "sock")
    server.listener.close()
    with pytest.raises(SourceError, match="Connection refused"):
        await UnixSource(str(tmp_path / "sock")).open(Ear())


# Section: commands


def python(text: str) -> list[str]:
    return [sys.executable, "-IS", "-u", "-c", text]


async def test_a_command_both_ways() -> None:
    ear, source = Ear(), ProcessSource(["cat"], stdin=True)
    await source.open(ear)
    assert source.write(b"to and fro") == 10
    await ear.hears(b"to and fro")
    await source.close()
    assert ear.said == []


async def test_a_command_without_stdin_swallows_what_is_typed() -> None:
    ear, source = Ear(), ProcessSource(["sleep", "100"])
    await source.open(ear)
    assert source.write(b"typed") == 5
    await source.close()


async def test_a_command_that_ends_is_started_again_and_says_why(tmp_path: Path) -> None:
    script = python(
        f"import os; n = len(os.listdir('{tmp_path}')); open('{tmp_path}/%d' % n, 'w'); print('run', n, flush=True);"
        "os.write(2, b'warming up\\nno such cell\\n'); os._exit(3) if n == 0 else __import__('time').sleep(100)"
    )
    ear, source = Ear(), ProcessSource(script, backoff=quick())
    await source.open(ear)
    await ear.hears(b"run 1\n")
    assert ear.said == ["gone: it ended with status 3: no such cell", "back"]
    assert ear.data == b"run 0\nrun 1\n"
    await source.close()


@pytest.mark.usefixtures("unsteady")
async def test_a_command_that_fails_at_once_fails_once_for_its_listener(tmp_path: Path) -> None:
    count = tmp_path / "count"
    ear, source = Ear(), ProcessSource(["sh", "-c", f"echo >>{count}; kill -9 $$"], backoff=quick())
    await source.open(ear)
    await until(lambda: count.exists() and count.stat().st_size >= 4)
    await source.close()
    assert ear.said == ["gone: it was ended by signal 9"]


@pytest.mark.usefixtures("unsteady")
async def test_pauses_grow_for_a_command_that_says_something_and_fails() -> None:
    """As `jailhouse` does, which prints its usage: it must not do so every second for ever."""
    asked: list[float] = []

    class Noted(Backoff):
        def pause(self) -> float:
            asked.append(super().pause())
            return 0

    ear, source = Ear(), ProcessSource(["sh", "-c", "echo usage; exit 1"], backoff=Noted(1, 8))
    await source.open(ear)
    await until(lambda: len(asked) >= 5)
    await source.close()
    assert asked[:5] == [1, 2, 4, 8, 8]
    assert ear.said[:3] == ["gone: it ended with status 1", "back", "gone: it ended with status 1"]


async def test_a_paused_command_waits(tmp_path: Path) -> None:
    ear, source = Ear(), ProcessSource(python("import os\nfor n in range(99): os.write(1, b'%05d' % n * 2000)"))
    source.pause()
    await source.open(ear)
    await asyncio.sleep(0.1)
    assert ear.data == b""
    source.resume()
    await until(lambda: len(ear.data) == 99 * 10000)
    assert ear.data.endswith(b"00098")
    await source.close()


async def test_a_command_that_ignores_term_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consoles.sources.process.TERM_GRACE", 0.05)
    text = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf'); time.sleep(100)"
    ear, source = Ear(), ProcessSource(python(text))
    await source.open(ear)
    await ear.hears(b"deaf")
    await source.close()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_nothing_a_command_started_stays_behind() -> None:
    ear, source = Ear(), ProcessSource(["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"])
    await source.open(ear)
    await ear.hears(b"\n")
    child = int(ear.data)
    assert alive(child)
    await source.close()
    await until(lambda: not alive(child))


async def test_a_child_that_holds_the_output_of_an_ended_command_goes_with_it() -> None:
    ear, source = Ear(), ProcessSource(["sh", "-c", "sleep 1000 & echo $!"], backoff=Backoff(100, 100))
    await source.open(ear)
    await ear.is_told("gone")
    child = int(ear.data)
    await until(lambda: not alive(child))
    await source.close()


async def test_closing_while_a_lost_command_is_being_ended() -> None:
    """It has closed its output and lives on: whoever closes the source meanwhile must not leave it behind."""
    ear, source = Ear(), ProcessSource(python("import os, time; print(os.getpid()); os.close(1); time.sleep(100)"))
    await source.open(ear)
    await ear.hears(b"\n")
    pid = int(ear.data)
    await until(lambda: source._closing is not None)
    await source.close()
    assert not alive(pid)


async def test_a_command_dies_with_the_process_that_follows_it(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; sys.path.insert(0, '.')\n"
        "from consoles.sources.process import ProcessSource\n"
        "class Ear:\n"
        "    def received(self, data): print(data.decode(), flush=True)\n"
        "    def gone(self, reason): pass\n"
        "    def back(self): pass\n"
        "async def main():\n"
        "    await ProcessSource(['sh', '-c', 'echo $$; exec sleep 1000']).open(Ear())\n"
        "    await asyncio.sleep(100)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    pid = int(await asyncio.wait_for(process.stdout.readline(), 20))
    assert alive(pid)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await until(lambda: not alive(pid))
    with contextlib.suppress(Exception):
        process._transport.close()  # type: ignore[attr-defined]


async def test_being_out_of_descriptors_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever cannot be had: nothing is left half open, and the source goes on when it can be."""
    script = ["sh", "-c", f"echo $$ >> {tmp_path}/pids; exec cat"]
    ear, source = Ear(), ProcessSource(script, stdin=True, backoff=quick())
    await source.open(ear)
    pids = tmp_path / "pids"
    await until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    first = int(pids.read_text())
    real = os.pidfd_open
    refused: list[int] = []

    def none_left(pid: int) -> int:
        if len(refused) < 3:
            refused.append(pid)
            raise OSError(24, "Too many open files")
        return real(pid)

    monkeypatch.setattr(os, "pidfd_open", none_left)
    os.kill(first, signal.SIGKILL)
    await ear.is_told("gone", "back")
    assert len(refused) == 3
    assert not any(alive(pid) for pid in refused)
    source.write(b"here again")
    await ear.hears(b"here again")
    await source.close()


async def test_a_command_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SourceError, match="cannot run jailhoose: there is no such program"):
        await ProcessSource(["jailhoose", "console", "-f"]).open(Ear())
