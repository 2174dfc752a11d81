# SPDX-License-Identifier: Apache-2.0
"""What would hang a board or make a useless cell is found before the tool is called, and good cells are left alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.jailhouse import check, codec, model
from backends.jailhouse.check import Finding, Named, Severity
from backends.jailhouse.model import Arch, CellFlag, Mem, Memory, bitmap
from runphi_async.testing.fake_jailhouse import board

ROOT = board.root_config()
RAM = Mem.READ | Mem.WRITE | Mem.EXECUTE | Mem.LOADABLE


def changed(cell: model.Cell | None = None, **fields: Any) -> model.Cell:
    return msgspec.structs.replace(cell or board.small_cell("demo"), **fields)


def with_region(number: int, **fields: Any) -> model.Cell:
    cell = board.small_cell("demo")
    regions = list(cell.memory)
    regions[number] = msgspec.structs.replace(regions[number], **fields)
    return changed(cell, memory=tuple(regions))


def with_device(**fields: Any) -> model.Cell:
    cell = board.inmate_demo()
    return changed(cell, pci_devices=(msgspec.structs.replace(cell.pci_devices[0], **fields),))


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


@pytest.mark.parametrize("cell", [board.inmate_demo(), board.small_cell("demo"), board.small_cell("two", (1, 2))])
def test_good_cells_are_left_alone(cell: model.Cell) -> None:
    assert check.check_bytes(codec.encode(cell), ROOT) == []


def test_a_good_board_is_left_alone() -> None:
    assert check.check_bytes(codec.encode(ROOT)) == []


@pytest.mark.parametrize("length", [0, 7, 60, 132, 200, 483])
def test_files_that_are_cut_hang_the_board(length: int) -> None:
    finding = only(check.check_bytes(codec.encode(board.inmate_demo())[:length]))
    assert finding.severity is Severity.ERROR
    assert finding.words.startswith("offset 0x")
    assert check.hopeless([finding])


ERRORS: list[tuple[model.Cell, str, str]] = [
    (changed(name="n" * 32), "name", "has 32 bytes; the driver cuts it at 31"),
    (changed(name="a\0b"), "name", "has a zero byte inside"),
    (changed(name=""), "name", "takes an empty name for the root cell"),
    (changed(cpu_set=bytes(8)), "cpu_set", "no CPU"),
    (changed(cpu_set=b"\2"), "cpu_set", "1 bytes are read as words of 8"),
    (board.small_cell("x", (0,), arch=Arch.X86), "cpu_set", "CPU 0 cannot leave the root cell on x86"),
    (changed(flags=0), "msg_reply_timeout", "an active communication region and no reply timeout"),
    (changed(flags=0, memory=(Memory(0x40000000, 0, 0x1000, RAM),)), "msg_reply_timeout", "messages to answer and no"),
    (with_region(0, size=0x10001), "memory[0]", "is not made of whole pages"),
    (with_region(0, phys_start=(1 << 64) - 0x1000), "memory[0]", "goes beyond the end of the address space"),
    (with_region(0, flags=Mem.READ | Mem.LOADABLE), "memory[0]", "every load into it fails"),
    (with_region(0, flags=RAM | Mem.COLORED), "memory[0]", "is COLORED, but has no colours"),
    (with_region(1, size=0x2000), "memory[1]", "a communication region of 0x2000 bytes"),
    (with_region(1, virt_start=0xF000), "memory[0]", "overlaps memory[1] at guest address 0xf000"),
    (with_device(shmem_regions_start=4), "pci_devices[0]", "needs memory regions up to 8 for 3 peers, the cell has 8"),
    (with_device(shmem_peers=13), "pci_devices[0]", "13 peers"),
    (with_device(shmem_dev_id=3), "pci_devices[0]", "is peer 3 of 3"),
    (with_device(type=9), "pci_devices[0]", "unknown type 9"),
    (with_device(num_caps=1), "pci_devices[0]", "capabilities 0+1 of 0"),
    (changed(stream_ids=(model.StreamId(),) * 17000), "", "are more than the 65536 that the hypervisor maps"),
]


@pytest.mark.parametrize(("cell", "where", "words"), ERRORS, ids=[words[:40] for _, _, words in ERRORS])
def test_errors_of_a_cell_by_itself(cell: model.Cell, where: str, words: str) -> None:
    errors = [finding for finding in check.check_cell(cell) if finding.severity is Severity.ERROR]
    assert where in [finding.where for finding in errors]
    assert any(words in finding.words and finding.where == where for finding in errors)
    assert all(finding.mend for finding in errors)


WARNINGS: list[tuple[model.Cell, str, str]] = [
    (changed(name="42"), "name", "is a number"),
    (changed(name="ü"), "name", "unusual characters"),
    (changed(stream_ids=(model.StreamId(),) * 16000), "", "fit into the hypervisor's 16 pages only where"),
    (with_region(0, flags=RAM | 0x100000), "memory[0]", "flags 0x100000 are unknown"),
    (with_region(0, flags=RAM | Mem.TMP_ROOT_REMAP), "memory[0]", "hypervisor's own"),
    (with_region(0, flags=RAM | Mem.ROOTSHARED), "memory[0]", "is LOADABLE and shared with the root cell"),
    (with_region(0, flags=Mem.READ), "memory", "no region is LOADABLE"),
    (changed(console=model.Console(type=99), flags=1), "console.type", "unknown type 99"),
    (board.small_cell("x", uart=True), "console", "every character comes twice"),
    (
        changed(memory=(*board.small_cell("x").memory, Memory(board.DEMO_RAM, 0x100000, 0x1000, Mem.READ))),
        "memory[0]",
        "is the same memory as memory[2]",
    ),
]


@pytest.mark.parametrize(("cell", "where", "words"), WARNINGS, ids=[words[:40] for _, _, words in WARNINGS])
def test_warnings_of_a_cell_by_itself(cell: model.Cell, where: str, words: str) -> None:
    findings = check.check_cell(cell)
    assert any(words in finding.words and finding.where == where for finding in findings)
    assert not check.hopeless(findings)


BOARD: list[tuple[model.Cell, Severity, str, str]] = [
    (board.small_cell("x", arch=Arch.X86), Severity.ERROR, "architecture", "report success and make no cell"),
    (
        changed(revision=13),
        Severity.ERROR,
        "architecture",
        "is for arm64, revision 13, the board for arm64, revision 14",
    ),
    (codec.new_cell("x", Arch.ARM64, "omnivisor"), Severity.ERROR, "", "of dialect omnivisor, the board of mainline"),
    (changed(name="qemu-arm64"), Severity.ERROR, "name", "is the root cell's"),
    (changed(cpu_set=bitmap([3, 4, 9])), Severity.ERROR, "cpu_set", "CPU 4,9 is not the root cell's, which has 0-3"),
    (changed(cpu_set=bitmap(range(4))), Severity.ERROR, "cpu_set", "takes every CPU"),
    (
        with_region(0, phys_start=0x7FA10000, virt_start=0),
        Severity.ERROR,
        "memory[0]",
        "0x7fa10000–0x7fa1ffff is not within the root cell's memory from 0x7fa10000 on: loading an image hangs",
    ),
    (with_region(0, phys_start=0x7FC00000), Severity.ERROR, "memory[0]", "overlaps the hypervisor's own"),
    (with_region(0, phys_start=0x7FA00000, size=0x20000), Severity.ERROR, "memory[0]", "from 0x7fa10000 on"),
    (
        with_region(0, phys_start=0x5000000000, flags=Mem.READ),
        Severity.WARNING,
        "memory[0]",
        "is not within the root cell's memory",
    ),
    (
        changed(irqchips=(model.Irqchip(0, 0, 160, (1, 0, 0, 0)),)),
        Severity.WARNING,
        "irqchips[0]",
        "interrupts 160 are not the root cell's",
    ),
]


@pytest.mark.parametrize(("cell", "severity", "where", "words"), BOARD, ids=[row[3][:40] for row in BOARD])
def test_findings_of_a_cell_on_a_board(cell: model.Cell, severity: Severity, where: str, words: str) -> None:
    found = [f for f in check.check_cell(cell, ROOT) if f.where == where and words in f.words]
    assert [finding.severity for finding in found] == [severity]


def test_a_board_without_a_readable_console() -> None:
    blind = board.root_config(virtual_console=False)
    assert only(check.check_cell(board.small_cell("demo"), blind)).where == "flags"
    assert "nothing of the hypervisor's console" in only(check.check_system(blind)).words


def test_a_board_whose_memory_is_the_hypervisors() -> None:
    region = board.same(0x7FC00000, 0x1000, Mem.READ)
    root = msgspec.structs.replace(ROOT.root_cell, memory=(region,), cpu_set=bytes(8), pci_devices=())
    findings = check.check_system(msgspec.structs.replace(ROOT, root_cell=root))
    assert [finding.where for finding in findings] == ["root_cell.cpu_set", "root_cell.memory[0]"]


def test_coloured_cells_may_share_a_range() -> None:
    def coloured(name: str, colors: int) -> model.Cell:
        cell = board.small_cell(name, (1,) if name == "one" else (2,))
        ram = msgspec.structs.replace(cell.memory[0], flags=RAM | Mem.COLORED, colors=colors)
        return changed(cell, memory=(ram, *cell.memory[1:]))

    one = Named("one", coloured("one", 0b0011))
    assert check.check_cell(coloured("two", 0b1100), others=(one,)) == []
    assert "overlaps one's memory[0]" in only(check.check_cell(coloured("two", 0b0110), others=(one,))).words
    found = only(check.check_cell(with_region(0, colors=3)))
    assert (found.severity, found.where) == (Severity.WARNING, "memory[0]")
    assert "has colours, but is not COLORED" in found.words


def test_cells_beside_each_other() -> None:
    findings = check.check_cell(board.small_cell("demo"), ROOT, [Named("b.cell", board.small_cell("demo"))])
    assert [finding.where for finding in findings] == ["name", "cpu_set", "memory[0]"]
    assert "b.cell's memory[0] 0x7fa00000–0x7fa0ffff; Jailhouse does not notice" in findings[2].words
    apart = board.small_cell("other", (2,), ram=0x7F000000)
    assert check.check_cell(board.small_cell("demo"), ROOT, [Named("b.cell", apart)]) == []


def test_cells_may_share_what_the_root_cell_shares_too() -> None:
    other = changed(board.inmate_demo(), name="b", cpu_set=bitmap([2]), memory=board.inmate_demo().memory[:6])
    findings = check.check_cell(board.inmate_demo(), ROOT, [Named("b.cell", other)])
    assert [(finding.severity, finding.where) for finding in findings] == [(Severity.WARNING, "irqchips")]


def test_a_cell_of_remote_cores_needs_no_cpu() -> None:
    cell = codec.new_cell("rpu", Arch.ARM64, "omnivisor", flags=1, cpu_set=bytes(8), rcpu_set=bitmap([0]))
    assert check.check_cell(cell) == []


@pytest.mark.parametrize("name", ["0", "42", "0x10", "01", " 1", "+7", ""])
def test_names_that_the_tool_reads_as_ids(name: str) -> None:
    assert check.reads_as_id(name)


@pytest.mark.parametrize("name", ["-1", "0x", "1a", "08", "a1", "1 ", "x"])
def test_names_that_the_tool_reads_as_names(name: str) -> None:
    assert not check.reads_as_id(name)


def test_active_cells_with_a_timeout_are_fine() -> None:
    assert check.check_cell(board.small_cell("x", flags=CellFlag.VIRTUAL_CONSOLE_ACTIVE, timeout=1000), ROOT) == []
