# SPDX-License-Identifier: Apache-2.0
"""Guest programs of the fake's cells.

An image that begins with ``#!fake:NAME`` is one of the programs here, one that begins with ``#!/`` is run as the
script it is, with the cell's UART as its stdin and the cell's console as its stdout. Where the command line names a
kernel and a device tree the image is Jailhouse's Linux loader, see ``linux.py``. Any other image, such as a real
inmate, is played by ``demo``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
from asyncio.subprocess import PIPE, STDOUT
from typing import TYPE_CHECKING, Final

from runphi_async.testing.fake_jailhouse import linux
from runphi_async.testing.fake_jailhouse.guests import Guest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from runphi_async.testing.fake_jailhouse.cellprocess import CellProcess

#: Bytes of a program's image: as large as a small real one, so that where it fits is as with those.
IMAGE_SIZE: Final = 0x5800
#: Seconds between two lines of the programs that go on.
BEAT: Final = 0.2


def image(name: str) -> bytes:
    """Return the image of a program."""
    return f"#!fake:{name}\n".encode().ljust(IMAGE_SIZE, b"\0")


def rcpu_image(program: bytes) -> bytes:
    """Return a program as an ELF file for a Cortex-R, in the first bytes of its own memory."""
    head = struct.pack(
        "<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01".ljust(16, b"\0"), 2, 40, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0
    )
    size = len(program) + 1
    return head + struct.pack("<8I", 1, 84, 0, 0, size, size, 7, 4) + program + b"\0"


async def run(cell: CellProcess, program: bytes, words: str, path: Path) -> None:
    """Run a guest until it ends or its CPUs are parked."""
    guest = Guest(cell, words)
    if program.startswith(b"#!/"):
        await _script(guest, program, path)
        return
    if {"kernel", "dtb"} <= guest.args.keys():
        await linux.run(guest)
        return
    name = program.removeprefix(b"#!fake:").split(b"\n")[0].decode("latin-1")
    if program:  # without an image a real CPU runs whatever is there; nothing is seen of that
        await PROGRAMS.get(name, demo)(guest)
    cell.settled.set()
    await asyncio.Event().wait()


async def _script(guest: Guest, program: bytes, path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700)
    os.write(fd, program)
    os.close(fd)
    env = {**os.environ, "CELL": guest.cell.config.name, **{f"ARG_{key}": value for key, value in guest.args.items()}}
    process = await asyncio.create_subprocess_exec(
        path, stdin=PIPE, stdout=PIPE, stderr=STDOUT, env=env, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    guest.cell.settled.set()
    feeder = asyncio.create_task(_feed(guest, process.stdin))
    try:
        while data := await process.stdout.read(4096):
            guest.cell.write(data.replace(b"\n", b"\r\n"))
            await guest.cell.flush()
        status = await process.wait()
        if status < 0:
            guest.crash()
        else:
            guest.cell.set_state(2 if status == 0 else 3)
    finally:
        feeder.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _feed(guest: Guest, stdin: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            stdin.write(await guest.cell.input.get())
            await stdin.drain()


# Section: programs


async def demo(guest: Guest) -> None:
    """Greet, then echo lines; ``exit``, ``fail`` and ``crash`` do that, ``spam N`` prints N lines."""
    cpus = ",".join(map(str, guest.cell.cpus)) or "no"
    guest.say(f'demo inmate in cell "{guest.cell.config.name}", CPU {cpus}')
    line = b""
    guest.cell.settled.set()
    while True:
        line += await guest.cell.input.get()
        *whole, line = line.replace(b"\r", b"\n").split(b"\n")
        for command in whole:
            words = command.decode("utf-8", "replace").split()
            if words == ["exit"]:
                guest.say("bye")
                await guest.cell.flush()
                guest.cell.set_state(2)
                return
            if words == ["fail"]:
                guest.cell.set_state(3)
                return
            if words == ["crash"]:
                guest.crash()
                return
            if len(words) == 2 and words[0] == "spam" and words[1].isdigit():
                for number in range(int(words[1])):
                    guest.say(f"spam {number}")
            elif words:
                guest.say("> " + " ".join(words))


async def gic_demo(guest: Guest) -> None:
    """Print how late a timer is, for ever."""
    guest.say("Initializing the GIC...")
    guest.say("Initializing the timer...")
    guest.cell.settled.set()
    while True:
        await asyncio.sleep(BEAT)
        guest.say("Timer fired, jitter:   1024 ns, min:   1024 ns, max:   1024 ns")


async def uart_demo(guest: Guest) -> None:
    """Print as fast as it goes."""
    number = 0
    while True:
        for _ in range(50):
            guest.say(f"Hello {number} from cell!")
            number += 1
        guest.cell.settled.set()
        await asyncio.sleep(0.01)


async def jhtest(guest: Guest) -> None:
    """Do what the command line says, as the program did that the transcripts were recorded with."""
    cell, args = guest.cell, guest.args
    mode, tag = args.get("mode", "hello"), args.get("tag", "")
    flags = (cell.config.flags >> 30 & 3) | (cell.config.flags >> 31)
    console = cell.config.console

    def say(text: str) -> None:
        guest.say(f"jhtest[{tag}] {text}")

    if mode != "putc":
        say(
            f"mode={mode} comm: rev=2 flags={flags:#x} cell_state=0 con.type={console.type} "
            f"con.addr={console.address:#x} gic=3 vpci_irq={cell.config.vpci_irq_base}"
        )
    limit = int(args.get("max", "0"))
    match mode:
        case "count":
            await _count(guest, say, limit)
        case "flood":
            for number in range(limit):
                say(f"flood line {number}")
            say("flood done")
        case "exit":
            say("setting SHUT_DOWN")
            cell.set_state(2)
        case "fail":
            say("setting FAILED")
            cell.set_state(3)
        case "badstate":
            cell.set_state(99)
        case "off":
            say("PSCI CPU_OFF")
        case "sysoff":
            say("PSCI SYSTEM_OFF")
            guest.say("sysoff returned -1")
        case "hc":
            for line in ("HC destroy from cell: -1", "HC info: 3", "HC unknown: -38"):
                guest.say(line)
        case "crash":
            guest.crash()
        case "smc":
            guest.crash("Unhandled SMC arch trap 0", 0x17)
        case "lock" | "deny" | "approve" | "ignore":
            await _answer(guest, say, mode)


async def _count(guest: Guest, say: Callable[[str], None], limit: int) -> None:
    number = 0
    while not limit or number < limit:
        say(f"count {number}")
        number += 1
        if not limit:
            guest.cell.settled.set()
        await asyncio.sleep(BEAT)


async def _answer(guest: Guest, say: Callable[[str], None], mode: str) -> None:
    denials = int(guest.args.get("denials", "0"))
    if mode == "lock":
        guest.cell.set_state(1)
    guest.cell.settled.set()
    while True:
        message = await guest.cell.messages.get()
        if mode == "ignore":
            say(f"ignoring msg {message}")
            continue
        say(f"got msg {message}")
        if message != 1:
            guest.cell.reply(4)
        elif mode != "approve" and denials > 0:
            denials -= 1
            say("DENY")
            guest.cell.reply(2)
        else:
            say("APPROVE")
            if guest.args.get("setdown") != "false":
                guest.cell.set_state(2)
            guest.cell.reply(3)


PROGRAMS: Final[Mapping[str, Callable[[Guest], Awaitable[None]]]] = {
    "demo": demo,
    "gic-demo": gic_demo,
    "uart-demo": uart_demo,
    "jhtest": jhtest,
}
