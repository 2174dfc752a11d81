# SPDX-License-Identifier: Apache-2.0
"""The process of a cell: its CPUs, communication region and UART, with a guest program inside.

It lives from ``cell create`` to ``cell destroy``. The tool tells it through a socket what the hypervisor does to the
cell; what the guest does, it shows in sysfs and on the consoles by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tty
from typing import TYPE_CHECKING, Any, Final

from backends.jailhouse import codec, model
from backends.jailhouse.model import CellFlag, Mem, System
from runphi_async.testing.fake_jailhouse import hvc, link, vpci
from runphi_async.testing.fake_jailhouse.place import start_time
from runphi_async.testing.fake_jailhouse.ring import Ring
from runphi_async.testing.fake_jailhouse.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from runphi_async.testing.fake_jailhouse.place import Place

    #: runs an image in a cell: the cell, the image, its command line, and where a copy of it may lie
    Program = Callable[["CellProcess", bytes, str, Path], Awaitable[None]]

#: Values of a cell's state.
RUNNING: Final = 0
RUNNING_LOCKED: Final = 1
SHUT_DOWN: Final = 2
FAILED: Final = 3
#: Answers to messages.
DENIED: Final = 2
APPROVED: Final = 3
RECEIVED: Final = 4
#: Loops of the hypervisor in a second, for reply timeouts, and the longest that the fake waits.
LOOPS: Final = 10**8
LONGEST: Final = 2.0
#: Seconds between two looks at whether the board still exists; a test may have removed it.
LOOK: Final = 1.0
#: Seconds that a Linux guest waits for somebody to read its UART before bytes are lost.
READER: Final = 5.0
#: Bytes of memory that are looked at for a program, and where the demos' command line lies.
PROGRAM_MAX: Final = 1 << 20
COMMAND_LINE: Final = 0x1000
COMMAND_LINE_MAX: Final = 256


def serve(place: Place, number: int, ready: int, program: Program) -> None:
    """Run the process of a cell; ``ready`` is told when it listens, ``program`` is what runs an image."""
    asyncio.run(CellProcess(place, number, program).run(ready))


class CellProcess:
    """One cell."""

    def __init__(self, place: Place, number: int, program: Program) -> None:
        config = codec.decode((place.run / f"{number}.cell").read_bytes())
        assert not isinstance(config, System)
        self.config = config
        self.cpus = model.bits(config.cpu_set)
        #: it runs on a remote processor, which no shutdown stops and whose guest cannot reach the cell's state
        self._remote = bool(model.bits(config.rcpu_set))
        #: what arrives on the UART
        self.input: asyncio.Queue[bytes] = asyncio.Queue()
        #: messages to the guest
        self.messages: asyncio.Queue[int] = asyncio.Queue()
        self._place = place
        self._number = number
        self._program = program
        self._ring = Ring(place)
        self._tree = Tree(place)
        #: set when the guest has done what it does at once, and waits or goes on for ever
        self.settled = asyncio.Event()
        self._state = SHUT_DOWN
        self._failed: list[int] = []
        self._guest: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[int] | None = None
        self._end = asyncio.Event()
        self._uart = _Uart(place, config.console.address) if config.console.type else None
        self._sides: list[vpci.Side] = []
        self._hvc: hvc.Hvc | None = None
        self._mover: asyncio.Task[None] | None = None

    async def run(self, ready: int) -> None:
        """Listen until the cell is destroyed."""
        self._sides = list(vpci.of_cell(self._place, self.config))
        pid = os.getpid()
        (self._place.run / f"{self._number}.pid").write_text(f"{pid} {start_time(pid)}\n")
        with link.address(self._place, self._number) as path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            server = await asyncio.start_unix_server(self._serve, path)
        os.write(ready, b"+")
        os.close(ready)
        if self._uart is not None:
            self._uart.watch(self.input)
        while not self._end.is_set() and self._place.run.exists():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._end.wait()
        await self._halt()
        server.close()
        for side in self._sides:
            side.close()
        if self._uart is not None:
            self._uart.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readline())
        answer = await self._do(request)
        writer.write(json.dumps(answer).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()
        if request["do"] == "close":
            self._end.set()

    async def _do(self, request: dict[str, Any]) -> Any:
        match request["do"]:
            case "halt":
                if not self._remote:
                    await self._halt()
            case "start":
                await self._halt()
                self._show(RUNNING, [])
                self._connect()
                self.settled.clear()
                self._guest = asyncio.create_task(self._run_guest())
            case "park":
                if not self._remote:
                    await self._halt()
                self._show(self._state if request["loadable"] else SHUT_DOWN, [])
            case "close":
                await self._halt()
                for suffix in ("sock", "pid", "cell", "err"):
                    (self._place.run / f"{self._number}.{suffix}").unlink(missing_ok=True)
            case "message":
                return await self._message(request["message"])
            case "settle":
                if self._guest is not None:
                    await self.settled.wait()
            case "poke":
                if request.get("after"):
                    asyncio.get_running_loop().call_later(request["after"], self._poke, request)
                else:
                    self._poke(request)
        return True

    def _poke(self, request: dict[str, Any]) -> None:
        """Do what a guest or a hardware fault would."""
        if "state" in request:
            self.set_state(request["state"])
        if "park" in request:
            self.park(request["park"])
        if "print" in request:
            self.write(request["print"].encode("utf-8", "surrogateescape"))

    # Section: what the guest can do

    def write(self, data: bytes, *, putc: bool = False) -> None:
        """Print where the cell's console is; ``putc``: on the virtual console, if the cell may."""
        flags = self.config.flags
        allowed = flags & (CellFlag.VIRTUAL_CONSOLE_ACTIVE | CellFlag.VIRTUAL_CONSOLE_PERMITTED)
        if flags & CellFlag.VIRTUAL_CONSOLE_ACTIVE or (putc and allowed):
            self._ring.write(data)
        if self._uart is not None:
            self._uart.write(data)
        if self._hvc is not None:
            self._hvc.write(data)

    async def flush(self) -> None:
        """Wait until a console that waits for its reader has been read."""
        if self._hvc is not None:
            await self._hvc.flush()

    async def write_all(self, data: bytes) -> None:
        """Print at the pace of whoever reads the UART, as far as one does."""
        if self.config.flags & CellFlag.VIRTUAL_CONSOLE_ACTIVE:
            self._ring.write(data)
        if self._uart is not None:
            await self._uart.write_all(data)
        if self._hvc is not None:
            self._hvc.write(data)
            await self._hvc.flush()

    @property
    def has_hvc(self) -> bool:
        """Whether it has a console in shared memory."""
        return self._hvc is not None

    def memory(self, address: int, size: int) -> bytes:
        """Return what the cell sees at an address; less where the region ends, nothing where there is none."""
        for region in self.config.memory:
            if region.virt_start <= address < region.virt_start + region.size:
                offset = address - region.virt_start
                with open(self._place.memory, "rb") as memory:
                    memory.seek(region.phys_start + offset)
                    return memory.read(min(size, region.size - offset))
        return b""

    def log(self, text: str) -> None:
        """Append a line to the kernel log of the board."""
        self._place.dmesg(text)

    def scratch(self) -> Path:
        """Return an empty directory for the guest."""
        path = self._place.run / f"{self._number}.root"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o755)
        return path

    def has_state(self, address: int) -> bool:
        """Whether the communication region is at an address."""
        return any(r.virt_start == address and r.flags & Mem.COMM_REGION for r in self.config.memory)

    def set_state(self, state: int) -> None:
        """Write the state into the communication region, whatever it is."""
        if not self._remote:
            self._show(state, self._failed)

    def crash(self, cause: str, dump: str) -> None:
        """Violate the cell's borders: the CPU is parked. Nobody hears of a remote processor's fault."""
        if self._remote:
            return
        self._ring.write(f"{cause}\n{dump}\n")
        self.park(self.cpus[0] if self.cpus else 0)

    def park(self, cpu: int) -> None:
        """Lose a CPU; a cell without any left has failed."""
        self._ring.write(f'Parking CPU {cpu} (Cell: "{self.config.name}")\n')
        failed = sorted({*self._failed, cpu})
        self._show(FAILED if set(failed) >= set(self.cpus) else self._state, failed)

    def reply(self, number: int) -> None:
        """Answer a message."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(number)

    # Section: parts

    def _show(self, state: int, failed: list[int]) -> None:
        self._state, self._failed = state, failed
        with contextlib.suppress(FileNotFoundError):  # the cell is being taken away
            self._tree.show_state(self._number, state, failed)

    def _connect(self) -> None:
        """The guest finds its devices as a reset has left them."""
        self._hvc = hvc.console(self.config, self._sides, self.input.put_nowait)
        if self._hvc is not None:
            self._mover = asyncio.create_task(self._hvc.run())

    async def _disconnect(self) -> None:
        mover, self._mover, self._hvc = self._mover, None, None
        if mover is not None:
            mover.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await mover
        for side in self._sides:
            side.set_state(0)

    async def _halt(self) -> None:
        await self._disconnect()
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await guest
            self.settled.set()
        self.messages = asyncio.Queue()

    async def _message(self, number: int) -> bool:
        if self._state in (SHUT_DOWN, FAILED):
            return True
        self._answer = asyncio.get_running_loop().create_future()
        self.messages.put_nowait(number)
        loops = self.config.msg_reply_timeout
        try:
            async with asyncio.timeout(min(loops / LOOPS, LONGEST) if loops else None):
                return await self._answer in (APPROVED, RECEIVED)
        except TimeoutError:
            self._ring.write("Timeout expired while waiting for reply from target cell\n")
            await self._halt()
            self._show(FAILED, self._failed)
            return True

    async def _run_guest(self) -> None:
        if self._remote:
            path = self._place.run / f"{self._number}.rcpu"
            program = path.read_bytes().partition(b"\0")[0] if path.exists() else b""
            await self._program(self, program, "", self._place.run / f"{self._number}.image")
            return
        base = self.config.cpu_reset_address
        program = self.memory(base, PROGRAM_MAX).partition(b"\0")[0]
        words = self.memory(base + COMMAND_LINE, COMMAND_LINE_MAX).partition(b"\0")[0]
        await self._program(self, program, words.decode("latin-1"), self._place.run / f"{self._number}.image")


class _Uart:
    """A UART: a pseudo terminal whose far end is named after the UART's address. What nobody reads is lost."""

    def __init__(self, place: Place, base: int) -> None:
        self._near, self._far = os.openpty()
        tty.setraw(self._far)
        os.set_blocking(self._near, False)
        self._name = os.ttyname(self._far)
        self._link = place.uarts / f"{base:x}"
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(self._name)

    def watch(self, queue: asyncio.Queue[bytes]) -> None:
        """Hand on what arrives."""

        def arrived() -> None:
            with contextlib.suppress(OSError):
                queue.put_nowait(os.read(self._near, 4096))

        asyncio.get_running_loop().add_reader(self._near, arrived)

    def write(self, data: bytes) -> None:
        """Send."""
        with contextlib.suppress(OSError):
            os.write(self._near, data)

    async def write_all(self, data: bytes) -> None:
        """Send; wait for the reader as long as one reads at all."""
        loop = asyncio.get_running_loop()
        while data:
            try:
                data = data[os.write(self._near, data) :]
            except BlockingIOError:
                room = asyncio.Event()
                loop.add_writer(self._near, room.set)
                try:
                    async with asyncio.timeout(READER):
                        await room.wait()
                except TimeoutError:
                    return
                finally:
                    loop.remove_writer(self._near)

    def close(self) -> None:
        """Let go of it; another cell may have taken it over."""
        asyncio.get_running_loop().remove_reader(self._near)
        with contextlib.suppress(OSError):
            if os.readlink(self._link) == self._name:
                self._link.unlink()
        os.close(self._near)
        os.close(self._far)
