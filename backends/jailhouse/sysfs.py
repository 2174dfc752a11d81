# SPDX-License-Identifier: Apache-2.0
"""What Jailhouse shows in sysfs: the only proof that a step was done, and the only news of a cell's end.

The exit status of the tool proves nothing: a cell for another architecture is "made" with status 0. Nobody is told
when a state changes either, so it is read again and again (``watcher.py``). Everything here blocks, for about a
millisecond for each cell and for ever when the board hangs: call it off the loop.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async import digits
from runphi_async.board import ranges
from runphi_async.board.claims import Seen

if TYPE_CHECKING:
    from collections.abc import Iterable

#: where the kernel module shows itself
DIRECTORY: Final = "/sys/devices/jailhouse"
RUNNING: Final = "running"
LOCKED: Final = "running/locked"
#: made, loaded, stopped by the tool, or ended by itself: all of them look the same
SHUT_DOWN: Final = "shut down"
FAILED: Final = "failed"


class CellSeen(NamedTuple):
    """A cell as sysfs shows it.

    :ivar failed: CPUs that the hypervisor has parked; the cell has failed only when all of its CPUs are.
    :ivar rcpus: remote processors, where the hypervisor knows them.
    """

    id: int
    name: str
    state: str
    cpus: tuple[int, ...]
    failed: tuple[int, ...] = ()
    rcpus: tuple[int, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether its CPUs execute something."""
        return self.state in (RUNNING, LOCKED)


class View(NamedTuple):
    """One look.

    :ivar module: the kernel module is loaded.
    :ivar console: the end of the hypervisor's console, read only when some cell does not run.
    """

    module: bool = False
    enabled: bool = False
    cells: tuple[CellSeen, ...] = ()
    console: bytes = b""

    def find(self, name: str) -> CellSeen | None:
        """Return the cell of a name. Numbers are given to other cells at once, names are not."""
        return next((cell for cell in self.cells if cell.name == name), None)

    @property
    def root(self) -> CellSeen | None:
        """The root cell."""
        return next((cell for cell in self.cells if cell.id == 0), None)

    def guests(self) -> tuple[Seen, ...]:
        """Return every cell but the root cell, as the ledger compares them."""
        return tuple(Seen(cell.name, cell.cpus) for cell in self.cells if cell.id != 0)


def numbers(text: str) -> tuple[int, ...]:
    """Return the CPUs of a list such as ``0,2-3``; an empty one is a lone newline.

    :raises ValueError: it is no such list.
    """
    text = text.strip()
    return tuple(sorted(ranges.numbers(text))) if text else ()


def parse_cell(number: str, words: tuple[str, str], lists: tuple[str, str, str]) -> CellSeen:
    """Make a cell of the contents of its files; each ends with one newline, and a name may hold blanks.

    :param words: its name and state.
    :param lists: of its CPUs, of those that failed, and of remote processors.
    """
    name, state = (word.removesuffix("\n") for word in words)
    cpus, failed, rcpus = map(numbers, lists)
    return CellSeen(int(number), name, state, cpus, failed, rcpus)


def look(directory: str, *, console: bool = True) -> View:
    """Read everything (blocks).

    :raises OSError: the tree is there and cannot be read.
    """
    try:
        enabled = _text(directory, "enabled").strip() == "1"
    except FileNotFoundError:
        return View()
    cells = os.path.join(directory, "cells")
    seen = [cell for number in _listed(cells) if (cell := _cell(cells, number)) is not None] if enabled else []
    seen.sort()
    wanted = console and any(not cell.runs for cell in seen)
    return View(True, enabled, tuple(seen), read_console(directory) if wanted else b"")


def _listed(directory: str) -> Iterable[str]:
    try:
        return [name for name in os.listdir(directory) if digits.whole(name) is not None]
    except FileNotFoundError:
        return []


def _cell(cells: str, number: str) -> CellSeen | None:
    folder = os.path.join(cells, number)
    try:
        lists = _text(folder, "cpus_assigned_list"), _text(folder, "cpus_failed_list"), _remote(folder)
        return parse_cell(number, (_text(folder, "name"), _text(folder, "state")), lists)
    except (OSError, ValueError):
        return None  # destroyed between two of the reads


def _remote(folder: str) -> str:
    """Return the cell's remote processors; only the Omnivisor has such a file."""
    try:
        return _text(folder, "rcpus_assigned_list")
    except FileNotFoundError:
        return ""


def _text(directory: str, name: str) -> str:
    with open(os.path.join(directory, name), encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def read_console(directory: str) -> bytes:
    """Return the end of the hypervisor's console, 2 KiB at most; empty where it may not be read (blocks)."""
    try:
        with open(os.path.join(directory, "console"), "rb") as file:
            return file.read(1 << 16)
    except OSError:
        return b""


def stopped_from_outside(console: bytes, name: str) -> bool:
    """Whether the console shows that the tool stopped a cell since it was started.

    A guest that ends by itself looks the same in sysfs, but the hypervisor says nothing then.
    """
    quoted = name.encode("utf-8", "surrogateescape")
    stopped = console.rfind(b'Cell "%s" can be loaded\n' % quoted)
    return stopped >= 0 and stopped > console.rfind(b'Started cell "%s"\n' % quoted)
