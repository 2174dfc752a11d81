# SPDX-License-Identifier: Apache-2.0
"""Planned cells as the hypervisor's files: they decode to exactly what was planned, and come back byte for byte."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.jailhouse import cellfile, check, codec, examples, generator, layout, model, tree
from backends.jailhouse.desk import Facts
from backends.jailhouse.plan import CellPlan, Flag, Uart, Virtual
from runphi_async.board import board as boards
from runphi_async.board import loading
from runphi_async.board.claims import Held, Owner
from runphi_async.board.ranges import Range
from runphi_async.errors import CellError, PlanError
from runphi_async.partition.image import ImageFacts, ImageFormat
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.partition.wishes import NetWish
from runphi_async.testing.fake_jailhouse import board as fake
from tests.unit.jailhousekit import recorded_bytes


def cell_plan(board: str = "qemu-arm64", **asked: Any) -> CellPlan:
    fields: dict[str, Any] = {"id": "inmate-demo", "kind": GuestKind.INMATE, "rootfs": "/r", "inmate": "/i", **asked}
    facts = Facts(board=loading.load(board), image=ImageFacts(ImageFormat.FLAT, 4096))
    return generator.plan(GuestSpec(**fields), facts).cell


@pytest.mark.parametrize("example", examples.EXAMPLES, ids=lambda example: str(example.spec["id"]))
def test_the_file_is_the_plan(example: examples.Example) -> None:
    plan = examples.plan(example).cell
    data = cellfile.write(plan)
    assert codec.detect(data).dialect.name == plan.dialect
    found = codec.decode(data)
    assert isinstance(found, model.Cell)
    assert codec.encode(found) == data
    assert (found.name, model.bits(found.cpu_set)) == (plan.name, plan.cpus)
    assert model.bits(found.rcpu_set) == plan.rpus
    assert [(m.phys_start, m.virt_start, m.size, m.colors) for m in found.memory] == [
        (r.phys, r.virt, r.size, r.colors) for r in plan.regions
    ]
    names = [{name.lower().replace("_", "-") for name in model.flag_names(model.Mem, m.flags)} for m in found.memory]
    assert names == [set(region.flags) for region in plan.regions]
    assert [model.pins(chip) for chip in found.irqchips] == [chip.pins for chip in plan.chips]
    assert [(d.bdf, d.shmem_regions_start, d.shmem_dev_id, d.shmem_protocol) for d in found.pci_devices] == [
        (d.bdf, d.first_region, d.peer, d.protocol) for d in plan.devices
    ]
    assert (found.cpu_reset_address, found.vpci_irq_base) == (plan.reset_address, plan.vpci_irq_base)


@pytest.mark.parametrize("example", examples.EXAMPLES, ids=lambda example: str(example.spec["id"]))
def test_the_file_is_the_memory_that_the_board_allows(example: examples.Example) -> None:
    board = loading.load(example.board)
    allowed = [part.range for part in board.memory]
    allowed += [part.range for rpu in board.rpu for part in rpu.memory]
    found = codec.decode(cellfile.write(examples.plan(example).cell))
    assert isinstance(found, model.Cell)
    loadable = [m for m in found.memory if m.flags & model.Mem.LOADABLE]
    assert loadable
    for region in loadable:
        assert any(Range(region.phys_start, region.phys_start + region.size).within(part) for part in allowed)
    # and every other region is something that the board lends, whole and with the flags it may have
    others = [m for m in found.memory if not m.flags & model.Mem.LOADABLE and m.size]
    assert {(m.phys_start, m.size) for m in others} <= lent(board)
    for region in others:
        alone = bool(region.flags & model.Mem.IO) and not shared_uart(board, region.phys_start)
        if not region.flags & model.Mem.COMM_REGION and not alone:
            assert region.flags & model.Mem.ROOTSHARED, region
        assert not region.flags & model.Mem.EXECUTE
    (comm,) = [m for m in found.memory if m.flags & model.Mem.COMM_REGION]
    assert (comm.virt_start, comm.size) == (board.comm.address, 4096)


def lent(board: boards.Board) -> set[tuple[int, int]]:
    """Return where everything but RAM lies that a cell may get on a board: address and size."""
    found = {(0, 4096)}  # the communication region: where it lies is the hypervisor's matter
    found |= {(uart.address, int(uart.size)) for uart in board.uart}
    templates = [board.template.inmate, board.template.linux, board.template.kernel, board.template.rpu]
    found |= {(part.start, int(part.size)) for one in templates if one is not None for part in one.shared}
    for slot in board.ivshmem:
        at = slot.base + 4096
        found |= {(slot.base, 4096), (at, int(slot.rw))}
        at += int(slot.rw)
        found |= {(at + number * int(slot.output), int(slot.output)) for number in range(slot.peers)}
    return found


def shared_uart(board: boards.Board, address: int) -> bool:
    return any(uart.shared for uart in board.uart if uart.address == address)


def test_every_shipped_board_has_the_demo_inmate() -> None:
    flat = {example.board for example in examples.EXAMPLES if example.image.format is ImageFormat.FLAT}
    assert flat == set(loading.shipped())


def test_header_of_the_recorded_demo_cell() -> None:
    """The recorded cell has a shared memory device and its own UART; the rest of its header is ours."""
    plan = msgspec.structs.replace(cell_plan(), virtual_console=Virtual.NO, uart=Uart("pl011", 0x900_0000, 0, 4))
    ours, recorded = cellfile.write(plan), recorded_bytes()
    assert ours[:0x34] == recorded[:0x34]
    assert ours[0x54:0x84] == recorded[0x54:0x84]
    assert ours[0x84:0x8C] == recorded[0x84:0x8C]


def test_every_name_has_a_number() -> None:
    for flag in Flag:
        assert model.Mem[flag.name] in model.Mem
    plan = cell_plan()
    for kind in boards.UartType.__args__:  # type: ignore[attr-defined]
        config = cellfile.config(msgspec.structs.replace(plan, uart=Uart(kind, 0x1000, 0x1000, 1)))
        assert model.name_of(model.ConsoleType, config.console.type) not in (None, "NONE")
        assert config.console.flags == model.ConsoleFlag.MMIO
    for virtual, bit in ((Virtual.ACTIVE, 1 << 31), (Virtual.PERMITTED, 1 << 30), (Virtual.NO, 0)):
        config = cellfile.config(msgspec.structs.replace(plan, virtual_console=virtual, passive=False, reply_timeout=7))
        assert (config.flags, config.msg_reply_timeout) == (bit, 7)


@pytest.mark.parametrize("dialect", [name for name, table in layout.DIALECTS.items() if table.unwritable is None])
def test_a_plan_can_be_written_for_every_writable_dialect(dialect: str) -> None:
    plan = msgspec.structs.replace(cell_plan(net=NetWish(True)), dialect=dialect, reset_address=0)
    assert codec.decode(cellfile.write(plan), dialect).name == plan.name  # type: ignore[union-attr]


def test_what_a_dialect_lacks_is_refused() -> None:
    colored = cell_plan("kria-kv260", colors=(0, 1, 2, 3))
    with pytest.raises(CellError, match="dialect mainline has no cache colours"):
        cellfile.write(msgspec.structs.replace(colored, dialect="mainline"))
    with pytest.raises(CellError, match="cannot write dialect coloured"):
        cellfile.write(msgspec.structs.replace(colored, dialect="coloured"))


def test_the_record_gets_file_and_source() -> None:
    for example in examples.EXAMPLES:
        plan, name = examples.plan(example), example.spec["id"]
        assert plan.files[f"{name}.cell"] == cellfile.write(plan.cell)
        assert f'.name = "{plan.cell.name}"'.encode() in plan.files[f"{name}.c"]
        assert plan.files.keys() - {tree.FILE} == {f"{name}.cell", f"{name}.c"}


def test_a_cell_that_endangers_the_board_is_never_written() -> None:
    for bad in ({"passive": False}, {"name": "n" * 40}, {"cpus": ()}):
        with pytest.raises(PlanError, match="cannot make cell '"):
            cellfile.artefacts("x", msgspec.structs.replace(cell_plan(), **bad))


# Section: judged by what looks at any cell


@pytest.mark.parametrize("example", examples.EXAMPLES, ids=lambda example: str(example.spec["id"]))
def test_no_planned_cell_would_endanger_a_board(example: examples.Example) -> None:
    found = check.check_bytes(cellfile.write(examples.plan(example).cell))
    assert [finding for finding in found if finding.severity is check.Severity.ERROR] == []


def test_planned_cells_go_with_the_recorded_root_cell_and_with_each_other() -> None:
    board, root = loading.load("qemu-arm64"), fake.root_config()
    held: list[Held] = []
    cells: list[check.Named] = []
    for name, asked in (
        ("a", {"net": NetWish(True)}),
        ("b", {"load_address": 0x7000_0000}),
        ("c", {"memory_limit": 1 << 26}),
    ):
        facts = Facts(board=board, image=ImageFacts(ImageFormat.FLAT, 4096), held=tuple(held))
        spec = GuestSpec(id=name, kind=GuestKind.INMATE, rootfs="/r", inmate="/i", **asked)
        plan = generator.plan(spec, facts)
        cell = codec.decode(cellfile.write(plan.cell))
        assert isinstance(cell, model.Cell)
        assert check.check_cell(cell, root, cells) == []
        cells.append(check.Named(name, cell))
        held += [Held(Owner(name, "", plan.cell.name), claim) for claim in plan.claims]
