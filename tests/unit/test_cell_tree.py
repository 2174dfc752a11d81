# SPDX-License-Identifier: Apache-2.0
"""Device trees of Linux cells: those that are made for a board, and how any tree is fitted to a cell."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.guest import fdt
from backends.guest.fdt import Node, Tree, cells, texts, wide
from backends.jailhouse import examples, tree
from runphi_async.board import loading
from runphi_async.errors import PlanError, TreeError
from runphi_async.partition.wishes import NetWish

if TYPE_CHECKING:
    from pathlib import Path

    from backends.jailhouse.plan import JailhousePlan

LINUX = next(example for example in examples.EXAMPLES if example.spec["id"] == "shell")
NET = next(example for example in examples.EXAMPLES if example.spec["id"] == "linux")


def made(example: examples.Example, **asked: Any) -> tuple[JailhousePlan, bytes]:
    plan = examples.plan(example._replace(spec={**example.spec, "dtb": None, **asked}))
    return plan, plan.files[tree.FILE]


def dts(data: bytes, folder: Path) -> str:
    (folder / "t.dtb").write_bytes(data)
    # every check of the compiler, but for those that no tree for Linux follows
    words = ["dtc", "-I", "dtb", "-O", "dts", "-Wno-interrupt_provider", str(folder / "t.dtb")]
    done: subprocess.CompletedProcess[str] = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(shutil.which("dtc") is None, reason="needs device-tree-compiler")
@pytest.mark.parametrize("example", [LINUX, NET])
@pytest.mark.parametrize("board", loading.shipped())
def test_a_made_tree_is_one_without_fault(example: examples.Example, board: str, tmp_path: Path) -> None:
    about = loading.load(board)
    port = next((uart.name for uart in about.uart if not uart.shared), "virtual")
    net = next((slot.name for slot in about.ivshmem if slot.protocol == "veth"), None)
    wish = NetWish(True, net) if net is not None and example is NET else None
    plan, data = made(example._replace(board=board), console_port=port, net=wish)
    assert len(data) <= tree.MADE_MAX
    text = dts(data, tmp_path)
    assert text.count('device_type = "cpu"') == len(plan.cell.cpus)
    whole = dts(tree.patched(data, plan.cell, (0x4000_0000, 0x4012_3456)), tmp_path)
    assert f'bootargs = "{plan.cell.cmdline}";' in whole
    assert "linux,initrd-end = <0x00 0x40123456>;" in whole


def test_a_board_that_says_nothing_has_no_tree() -> None:
    bare = msgspec.structs.replace(loading.load("zcu104"), devicetree=None)
    with pytest.raises(PlanError, match="board 'zcu104' does not describe one"):
        tree.made(bare, (1,), None, (), 0)
    port = msgspec.structs.replace(loading.load("zcu104").uart[1], type="scif")
    with pytest.raises(PlanError, match="no recipe for serial ports of type scif"):
        tree.made(loading.load("zcu104"), (1,), port, (), 0)
    old = msgspec.structs.replace(port, type="8250", regdist=1)
    node = fdt.parse(tree.made(loading.load("zcu104"), (1,), old, (), 0)).root.child("serial")
    assert node is not None
    assert (node.number("reg-shift"), node.number("reg-io-width"), "clocks" in node.props) == (0, 1, False)


# Section: fitting


def stock(cpus: tuple[int, ...] = (2, 3), cell_count: int = 2) -> Node:
    """A tree as they come with Jailhouse, for a cell with other CPUs, and with a device that ours has not."""
    root = Node("", {"#address-cells": cells(cell_count), "#size-cells": cells(cell_count)})
    root.make("chosen", **{"linux,initrd-start": cells(1), "stdout-path": texts("serial0")})
    processors = root.make("cpus")
    processors.props |= {"#address-cells": cells(1), "#size-cells": cells(0)}
    for cpu in cpus:
        node = processors.make(f"cpu@{cpu}", device_type=texts("cpu"), compatible=texts("arm,cortex-a53"))
        node.props |= {"reg": cells(cpu), "phandle": cells(cpu)}
    processors.make("cpu-map")
    processors.make("idle-states")
    root.make("memory@0", reg=wide(0, cell_count) + wide(1 << 30, cell_count))
    root.make("serial@ff010000", reg=wide(0xFF01_0000, cell_count) + wide(4096, cell_count))
    root.make("ethernet@ff0e0000", reg=wide(0xFF0E_0000, cell_count) + wide(4096, cell_count))
    gic = root.make("interrupt-controller@f9010000", compatible=texts("arm,gic-400"))
    gic.props["reg"] = wide(0xF901_0000, cell_count) + wide(4096, cell_count)
    return root


@pytest.mark.parametrize("count", [1, 2])
def test_a_tree_of_the_image_is_fitted_to_the_cell(count: int) -> None:
    plan, _ = made(NET)
    ram = next(region for region in plan.cell.regions if region.what == "RAM")
    data = fdt.encode(Tree(stock(cell_count=count), [(ram.virt, 4096), (0x1000, 4096)]))
    found = fdt.parse(tree.patched(data, plan.cell, None))
    root = found.root
    names = [node.name for node in root.children]
    memory = f"memory@{ram.virt:x}"
    assert names == [memory, "chosen", "cpus", "serial@ff010000", "interrupt-controller@f9010000"]
    assert root.children[0].props["reg"] == wide(ram.virt, count) + wide(ram.size, count)
    assert list(root.children[1].props) == ["stdout-path", "bootargs"]
    one, two, idle = root.children[2].children
    assert (one.name, one.props["reg"], one.texts("compatible"), "phandle" in one.props) == (
        "cpu@1", cells(1), ["arm,cortex-a53"], False)  # fmt: skip
    assert (two.name, two.props["phandle"], idle.name) == ("cpu@2", cells(2), "idle-states")
    assert found.reserved == [(ram.virt, 4096)]


@pytest.mark.parametrize("address", [(), (0, 0)])
def test_the_virtual_pci_host_gets_the_cells_interrupts(address: tuple[int, ...]) -> None:
    plan, _ = made(NET)
    root = stock()
    host = root.make("pci@fc000000", compatible=texts("pci-host-ecam-generic"))
    entries = [
        (0, 0, 0, pin, 9, *address, 0, number, 1) for pin, number in zip(range(1, 5), range(64, 68), strict=True)
    ]
    host.props["interrupt-map"] = b"".join(cells(*entry) for entry in entries)
    cell = msgspec.structs.replace(plan.cell, vpci_irq_base=112)
    found = fdt.parse(tree.patched(fdt.encode(Tree(root)), cell, None)).root.child("pci")
    assert found is not None
    wanted = [(*entry[:-2], 112 + pin, 1) for pin, entry in enumerate(entries)]
    assert found.props["interrupt-map"] == b"".join(cells(*entry) for entry in wanted)
    alone = msgspec.structs.replace(cell, devices=())
    left = fdt.parse(tree.patched(fdt.encode(Tree(root)), alone, None)).root.child("pci")
    assert left == host


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 30))
def test_a_ram_disk_is_told_exactly(start: int, size: int) -> None:
    plan, data = made(LINUX)
    chosen = fdt.parse(tree.patched(data, plan.cell, (start, start + size))).root.child("chosen")
    assert chosen is not None
    assert chosen.props["linux,initrd-start"] == wide(start, 2)
    assert chosen.props["linux,initrd-end"] == wide(start + size, 2)
    assert chosen.texts("bootargs") == [plan.cell.cmdline]


def test_what_is_no_tree_for_a_cell_is_refused() -> None:
    plan, _ = made(LINUX)
    with pytest.raises(TreeError, match="does not begin as one"):
        tree.patched(b"\x7fELF" + bytes(60), plan.cell, None)
    with pytest.raises(TreeError, match="does not say how long addresses are; configs/arm64/dts"):
        tree.patched(fdt.encode(Tree()), plan.cell, None)
    with pytest.raises(TreeError, match="it has no CPUs"):
        tree.patched(fdt.encode(Tree(stock(cpus=()))), plan.cell, None)
