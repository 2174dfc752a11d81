# SPDX-License-Identifier: Apache-2.0
"""A fake Jailhouse board, enabled, with a board file whose every cell has a serial port of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backends.configured import from_table
from backends.guest import initrd
from backends.jailhouse import codec
from runphi_async.board import loading
from runphi_async.testing import fake_jailhouse
from runphi_async.testing.fake_jailhouse import board, driver, inmates, linux, machine
from runphi_async.testing.fake_jailhouse.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runphi_async.config.schema import Config

TOOL: Final = str(Path(fake_jailhouse.__file__).parent / "bin" / "jailhouse")
CPUS: Final = 10
FIRST_UART: Final = 0x0A000000
#: Virtio consoles over shared memory: con0, con1.
CONSOLES: Final = 2

#: A guest that behaves like the demo inmate, as far as a cell can: its console is its serial port.
SCRIPT: Final = r"""#!/bin/sh
trap '' TERM
printf 'runPHI demo inmate, cell\n> '
while IFS= read -r line; do
    argument=${line#* }
    printf '%s\n' "$line"
    case $line in
        echo\ *) printf '%s\n' "$argument" ;;
        spam\ *)
            i=0
            while [ "$i" -lt "$argument" ]; do
                i=$((i + 1))
                printf 'line %07d\n' "$i"
            done
            ;;
        exit\ *) exit "$argument" ;;
        crash) kill -SEGV $$ ;;
        hang) printf 'hanging\n'; while :; do sleep 1; done ;;
        *) printf 'unknown command\n' ;;
    esac
    printf '> '
done
"""


#: What an Omnivisor's board file says more.
_RPUS: Final = f"""
[[rpu]]
id = 0
name = "r5f_0"
memory = [{{ name = "tcm", start = {board.TCM:#x}, size = 0x10000 }}]

[[rpu]]
id = 1
name = "r5f_1"
memory = [{{ name = "tcm", start = {board.TCM + 0x90000:#x}, size = 0x10000 }}]

[cache]
way_size = "64 KiB"
colors = "0-15"

[template.rpu]
memory = "1 MiB"
link = "identity"
console = "port1"
"""


class CellBoard:
    """One board in a directory.

    :ivar image: a guest for it.
    :ivar loader: what starts its Linux cells, with the kernel and the RAM disk that they have.
    :ivar rcpu_image: the same for a remote processor.
    """

    def __init__(self, root: Path, *, enable: bool = True, dialect: str = "mainline") -> None:
        self.place = Place(root / "board")
        self.place.power_on(CPUS, dialect)
        machine.insert(self.place)
        self.system = root / "system.cell"
        self.system.write_bytes(codec.encode(board.root_config(CPUS, consoles=CONSOLES, dialect=dialect)))
        self.file = root / "board.toml"
        self.file.write_text(self._board_file())
        self.env = {**os.environ, "FAKE_JAILHOUSE": str(self.place.root)}
        self.image = root / "guest.sh"
        self.image.write_bytes(SCRIPT.encode() + bytes(64))
        self.loader, self.kernel, self.initrd = (root / name for name in ("linux-loader.bin", "Image", "initrd"))
        self.loader.write_bytes(linux.loader_image())
        self.kernel.write_bytes(linux.kernel_image())
        self.initrd.write_bytes(initrd.base_initrd([], b"the fake plays it"))
        self.rcpu_image = root / "motor.elf"
        self.rcpu_image.write_bytes(inmates.rcpu_image(SCRIPT.encode()))
        if enable:
            with self.place.mutex():
                driver.Driver(self.place).enable(self.system.read_bytes())

    def _board_file(self) -> str:
        text = Path(loading.path_of("qemu-arm64")).read_text()
        text = text.replace('all = "0-3"', f'all = "0-{CPUS - 1}"').replace(
            'console = "virtual"', 'console = "port1"', 1
        )
        ports = "".join(
            f'[[uart]]\nname = "port{n}"\ntype = "pl011"\naddress = {FIRST_UART + n * 0x1000:#x}\n'
            f'tty = "{self.place.uarts}/{FIRST_UART + n * 0x1000:x}"\n\n'
            for n in range(1, CPUS)
        )
        shared = re.search(r"\[\[uart\]\].*?\n\n", text, re.DOTALL)
        assert shared is not None
        consoles = "".join(
            f'[[ivshmem]]\nname = "con{n}"\nprotocol = "console"\nbdf = "00:{2 + n:02x}.0"\n'
            f"base = {board.CONSOLE_MEMORY + n * board.CONSOLE_SIZE:#x}\nrw = {board.CONSOLE_SIZE - 0x1000:#x}\n"
            f'uio = "{self.place.devices}/uio{1 + n}"\n\n'
            for n in range(CONSOLES)
        )
        text = text.replace("peers = 3\n", f'peers = 3\nuio = "{self.place.devices}/uio0"\n')
        text = text.replace(shared[0], shared[0] + ports + consoles)
        if self.place.dialect == "omnivisor":
            text = text.replace('dialect = "mainline"', 'dialect = "omnivisor"') + _RPUS
        return text

    def config(self, **settings: Any) -> Config:
        """Return a configuration that uses the board."""
        return from_table({"backend": "jailhouse", "jailhouse": {**self.settings(), **settings}})

    def settings(self) -> dict[str, Any]:
        """Return what the section [jailhouse] must say."""
        return {
            "board": str(self.file),
            "tool": TOOL,
            "sysfs": str(self.place.sysfs),
            "system_config": str(self.system),
            "loader": str(self.loader),
            "kernel": str(self.kernel),
            "initrd": str(self.initrd),
            "dtb": "",
            "firmware": str(self.place.firmware.parent),
            "pause": "shutdown",
        }

    def run(self, *words: str) -> str:
        """Run the tool as a person would."""
        done = subprocess.run([TOOL, *words], env=self.env, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def poke(self, cell: str, *words: str) -> None:
        """Do to a cell what its guest or a fault would."""
        from runphi_async.testing.fake_jailhouse.__main__ import main

        assert main(["--dir", str(self.place.root), "poke", cell, *words]) == 0

    def inject(self, *rules: dict[str, Any]) -> None:
        """Let calls of the tool fail from now on; without rules none does."""
        self.place.control.write_text(json.dumps(list(rules)))

    def cells(self) -> Iterator[str]:
        """Return the names of all cells but the root cell."""
        for folder in (self.place.sysfs / "cells").glob("[0-9]*"):
            if folder.name != "0":
                yield (folder / "name").read_text().strip()

    def close(self) -> None:
        """Switch it off."""
        machine.power_off(self.place)
