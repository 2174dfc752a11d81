# SPDX-License-Identifier: Apache-2.0
"""A supervisor's world with the fake board, for every test of cells as containers."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, TypeVar

from runphi_async.board.ledger import Ledger
from runphi_async.host.files import boot_id
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.testing.cellboard import CellBoard
from runphi_async.testing.life import Life
from tests.system.place import Place
from tests.unit.sourcelife import SourceLife

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest

    from tests.system.place import Container


class CellPlace(Place):
    """A supervisor's world with a board."""

    def __init__(self, board: CellBoard, settings: dict[str, Any], more: str = "") -> None:
        lines = [f"{key} = {json.dumps(value)}" for key, value in {**board.settings(), **settings}.items()]
        super().__init__(board.image.parent, "[jailhouse]\n" + "\n".join(lines) + "\n" + more)
        self.board = board
        self.env["FAKE_JAILHOUSE"] = str(board.place.root)

    def cell(self, name: str, **more: Any) -> Container:
        """Create a container that is a cell, with a serial port of its own."""
        annotations = {"org.runphi.console-port": f"port{more.pop('port', 1)}", **more.pop("annotations", {})}
        return self.create(name, backend="jailhouse", annotations=annotations, **more)

    def running_cell(self, name: str, **more: Any) -> Container:
        """Create and start one, and wait for its prompt."""
        made = self.cell(name, **more)
        assert made.created == 0, (made.error, self.log())
        made.must("start")
        made.expect(b"> ")
        return made

    def held(self) -> set[str]:
        """Return who has something of the board."""
        return {held.owner.name for held in Ledger(str(self.run_dir / "ledger.db"), boot_id()).held()}


AnyPlace = TypeVar("AnyPlace", bound=CellPlace)


@contextlib.contextmanager
def board_in(folder: Path) -> Iterator[CellBoard]:
    """A board whose image is found as the tests' bundles name it."""
    made = CellBoard(folder)
    os.link(made.image, folder / "demo-x86_64.elf")
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def places(kind: type[AnyPlace], board: CellBoard) -> Iterator[Callable[..., AnyPlace]]:
    """What makes places on a board, given settings of Jailhouse; they are checked for left-overs at the end."""
    made: list[AnyPlace] = []

    def make(more: str = "", **settings: Any) -> AnyPlace:
        made.append(kind(board, settings, more))
        return made[-1]

    yield make
    left = [line for place in made for line in place.close()]
    assert not left, "left over:\n" + "\n".join(left)


@contextlib.contextmanager
def board_here(folder: Path, monkeypatch: pytest.MonkeyPatch, dialect: str = "mainline") -> Iterator[CellBoard]:
    """A board for a driver in this process."""
    made = CellBoard(folder, dialect=dialect)
    monkeypatch.setenv("FAKE_JAILHOUSE", str(made.place.root))
    try:
        yield made
    finally:
        made.close()


def guest(board: CellBoard, **more: Any) -> GuestSpec:
    """Return what a container of the board's image asks."""
    given: dict[str, Any] = {"id": "c1", "inmate": str(board.image), **more}
    return GuestSpec(kind=GuestKind.INMATE, rootfs=str(board.image.parent), **given)


class CellLife(SourceLife):
    """A life without a process: the stub has no child, and a cell takes its serial port with it."""

    async def start(self) -> None:
        await Life.start(self)

    def gone(self, reason: str) -> None:
        """The cell was destroyed."""

    def back(self) -> None:
        """It never comes back."""


def kill(cell: Container, signal: str) -> None:
    """Send a signal, as `runphi kill` does."""
    cell.place.must("kill", cell.name, signal, root=cell.root)
