# SPDX-License-Identifier: Apache-2.0
"""Sources against real far ends: the consoles that QEMU itself offers, and a guest of it in the timeline."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from typing import TYPE_CHECKING

import pytest

from consoles.errors import SourceError
from consoles.sources.pty import PtySource
from consoles.sources.serial import SerialSource
from consoles.sources.settings import SerialSettings
from consoles.sources.unixsocket import UnixSource
from tests.system.place import PATIENCE, until
from tests.unit.sourcekit import Ear, quick

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from consoles.sources.base import Source
    from tests.system.place import Place

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(90),
]


@contextlib.asynccontextmanager
async def machine(inmates: Path, chardev: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the demo inmate with its serial port on a character device of QEMU."""
    process = await asyncio.create_subprocess_exec(
        "qemu-system-x86_64", "-M", "microvm,isa-serial=on", "-accel", "tcg", "-m", "32", "-nodefaults",
        "-no-user-config", "-display", "none", "-no-reboot", "-kernel", str(inmates / "demo-x86_64.elf"),
        "-chardev", f"{chardev},id=con", "-serial", "chardev:con",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


async def talk(source: Source, ear: Ear) -> None:
    """Type at the demo inmate's prompt until it answers."""
    async with asyncio.timeout(PATIENCE):
        while b"unknown command" not in ear.data:
            assert source.write(b"hm\n") == 3
            await asyncio.sleep(0.1)
    source.write(b"echo over and out\n")
    await ear.hears(b"\nover and out\r\n")


async def test_a_chardev_socket_of_qemu(inmates_built: Path, tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    ear, source = Ear(), UnixSource(str(path), quick())
    async with machine(inmates_built, f"socket,path={path},server=on,wait=on"):
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(SourceError):  # it is not there yet, or does not listen yet
                    await source.open(ear)
                    break
                await asyncio.sleep(0.01)
        await ear.hears(b"runPHI demo inmate, x86_64")  # it waited for us with its first byte
        await talk(source, ear)
    await ear.is_told("gone")
    ear.data = b""
    async with machine(inmates_built, f"socket,path={path},server=on,wait=on"):
        await ear.is_told("gone", "back")
        await ear.hears(b"runPHI demo inmate, x86_64")
        await source.close()


@pytest.mark.parametrize("kind", ["pty", "serial"])
async def test_a_chardev_pty_of_qemu(inmates_built: Path, kind: str) -> None:
    async with machine(inmates_built, "pty") as process:
        assert process.stdout is not None
        said = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        path = re.search(r"/dev/pts/\d+", said.decode())
        assert path is not None, said
        ear = Ear()
        source = PtySource(path[0]) if kind == "pty" else SerialSource(SerialSettings(path[0]))
        await source.open(ear)
        await talk(source, ear)
        process.kill()
        await ear.is_told("gone")
        await source.close()


def test_a_guest_of_qemu_in_the_timeline(place: Place) -> None:
    c = place.running("c1")
    c.type(b"echo hello\nexit 3\n")
    assert c.wait() == 3

    def complete() -> bool:
        return '"event": "exit"' in place.must("timeline", "--format", "json")

    until(complete, "the end in the timeline")
    seen = [json.loads(line) for line in place.must("timeline", "--format", "json", "c1").splitlines()]
    assert [item["time"] for item in seen] == sorted(item["time"] for item in seen)
    words = [item["event"] if item["source"] == "event" else item["text"] for item in seen]
    positions = [words.index(word) for word in ("create", "start", "hello", "exit")]
    assert positions == sorted(positions)
    assert any(word.startswith("runPHI demo inmate, x86_64") for word in words)
    assert place.must("timeline", "--since", "0s", "c1") == ""
