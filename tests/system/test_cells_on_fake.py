# SPDX-License-Identifier: Apache-2.0
"""Planned cells on the fake board: the tool takes their files and images, and sysfs shows what the ledger says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from backends.jailhouse.plan import Form
from backends.jailhouse.planner import JailhousePlanner
from backends.jailhouse.settings import Jailhouse
from runphi_async.board import claims
from runphi_async.board.claims import Seen
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.partition.wishes import NetWish
from runphi_async.testing.fake_jailhouse import inmates
from runphi_async.units import MIB
from tests.unit.configkit import config as configured
from tests.unit.fakeboard import FakeBoard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.jailhouse.plan import JailhousePlan


@pytest.fixture
def board() -> Iterator[FakeBoard]:
    made = FakeBoard()
    made.enable()
    yield made
    made.off()


def make(board: FakeBoard, plan: JailhousePlan) -> None:
    """Do with a plan what a driver does: write the files, create, load, start."""
    for name, data in plan.files.items():
        (board.root / name).write_bytes(data)
    name = plan.cell.name
    steps = [["cell", "create", str(board.root / next(file for file in plan.files if file.endswith(".cell")))]]
    load = ["cell", "load", "--name", name]
    for part in plan.cell.loads:
        load += ["-s", part.source] if part.form is Form.TEXT else [part.source]
        load += ["-a", hex(part.address)]
    for step in (*steps, load, ["cell", "start", "--name", name]):
        result = board.jailhouse(*step)
        assert (result.out, result.err, result.status) == ("", "", 0), step


async def test_planned_cells_live_side_by_side(board: FakeBoard) -> None:
    config = configured(Jailhouse(board="qemu-arm64"))
    planner = JailhousePlanner(config, str(board.root), str(board.place.sysfs))
    image = board.root / "image.bin"
    image.write_bytes(inmates.image("gic-demo"))
    wishes: dict[str, dict[str, Any]] = {
        "plain": {"cmdline": "x=1"},
        "0123456789abcdef" * 4: {"net": NetWish(True), "memory_limit": 4 * MIB},
        "zephyr": {"load_address": 0x7000_0000},
    }
    plans = {}
    for name, wish in wishes.items():
        spec = GuestSpec(id=name, kind=GuestKind.INMATE, rootfs="/", inmate=str(image), **wish)
        plans[name] = await planner.reserve(spec, name)
        make(board, plans[name])
    seen = planner.cells()
    assert seen == [Seen(plan.cell.name, plan.cell.cpus) for plan in plans.values()]
    assert claims.check(planner.ledger.held(), seen) == []
    states = [(board.place.sysfs / "cells" / str(n) / "state").read_text() for n in (1, 2, 3)]
    assert states == ["running\n"] * 3

    assert board.jailhouse("cell", "destroy", "--name", "plain").status == 0
    (found,) = claims.check(planner.ledger.held(), planner.cells())
    assert (found.owner, found.stale) == ("plain", True)
    freed = planner.ledger.free("plain")
    assert set(freed) == set(plans["plain"].claims)
    spec = GuestSpec(id="next", kind=GuestKind.INMATE, rootfs="/", inmate=str(image))
    again = await planner.reserve(spec, "next")
    assert again.cell.cpus == plans["plain"].cell.cpus
    assert again.cell.regions == plans["plain"].cell.regions
    make(board, again)
    assert claims.check(planner.ledger.held(), planner.cells()) == []
