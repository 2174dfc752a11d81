# SPDX-License-Identifier: Apache-2.0
"""The C source of a cell compiles to the very bytes that the codec writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from backends.jailhouse import codec, csource, examples, layout, model
from backends.jailhouse.model import Arch, Mem, Memory
from runphi_async.errors import CellError
from runphi_async.testing.fake_jailhouse import board
from tests.unit import jailhousekit as kit

EVERYTHING: dict[str, Any] = {
    "flags": model.CellFlag.PASSIVE_COMMREG | model.CellFlag.VIRTUAL_CONSOLE_PERMITTED | 0x100,
    "id": 3,
    "vpci_irq_base": 108,
    "cpu_reset_address": 0xFFFF000000001234,
    "msg_reply_timeout": 1 << 40,
    "console": model.Console(0x3F8, 8, model.ConsoleType.UART_8250, 0x8 | 0x2000, 1, 2, 0xFF00000000),
    "cpu_set": model.bitmap([1, 65]),
    "memory": (
        Memory(),
        Memory(1 << 40, 0, 0x1000, Mem.READ | Mem.IO | Mem.IO_32),
        Memory(flags=1 << 63),
        Memory(flags=Mem.COLORED),
    ),
    "caches": (model.Cache(1, 2, model.CacheType.L3, 0, 1), model.Cache(type=9, padding=7, flags=6)),
    "irqchips": (model.Irqchip(0x8000000, 1, 32, (1, 0, 0, 1 << 31)), model.Irqchip()),
    "pio": (model.Pio(0x3F8, 8),),
    "pci_devices": (
        board.ivshmem(3, 1, 1, 2, model.Protocol.VIRTIO_FRONT + 3),
        board.ivshmem(4, 1, 1, 2, model.Protocol.VIRTIO_BACK + 9),
        board.ivshmem(5, 1, 1, 2, model.Protocol.CUSTOM + 5),
        model.PciDevice(
            model.PciType.DEVICE, 1, 2, 0xFFF, (1, 2, 3, 4, 5, 6), 1, 2, 3, 3, 4, 5, 1 << 50, shmem_protocol=7
        ),
        model.PciDevice(type=77, bar_mask=(0xFFFFF000, 0xFFFFF000, 0, 0, 0, 0)),
    ),
    "pci_caps": (model.PciCapability(0x8001, 0x40, 8, 1), model.PciCapability(5, 1, 2, 2)),
    "stream_ids": (model.StreamId(0xFFFFFFFF), model.StreamId()),
}
OMNIVISOR_ONLY: dict[str, Any] = {
    "rcpu_set": model.bitmap([0]),
    "fpga_regions": b"\1",
    "qos_devices": (model.QosDevice("gdma", 1, 0xFD0F0000),),
    "rcpu_devices": (model.RcpuDevice(1, "riscv", "pico,v32"),),
    "fpga_devices": (model.FpgaDevice("a.dtbo", "mod", "x.bit", 1, 0x80000000, 1),),
}


#: Source trees of Jailhouse, of any dialect, to compile against besides our own transcript of its headers.
OURS = f"-I{kit.DATA / 'include'}"
TREES = [Path(name) for name in os.environ.get("RUNPHI_JAILHOUSE_SOURCES", "").split(":") if name]


def headers(dialect: str) -> list[tuple[str, ...]]:
    """Return the compiler's options for every set of headers of a dialect."""
    found: list[tuple[str, ...]] = [(OURS, *(["-DOMNIVISOR"] if dialect == "omnivisor" else []))]
    for tree in TREES:
        fork = "rcpu_set_size" in (tree / "include/jailhouse/cell-config.h").read_text()
        if fork == (dialect == "omnivisor"):
            folders = ("include", "hypervisor/include", "hypervisor/arch/arm64/include")
            found.append(tuple(f"-I{tree / folder}" for folder in folders))
    return found


def compiled(source: str, tmp_path: Path, *options: str) -> bytes:
    """Compile as Jailhouse's build does, and return what objcopy takes out."""
    (tmp_path / "cell.c").write_text(source)
    include = ["-nostdinc"] if any(option.startswith("-I") for option in options) else ["-nostdinc", OURS]
    flags = ["-std=gnu99", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]
    for command in (
        ["gcc", *include, *flags, *options, "-c", "cell.c", "-o", "cell.o"],
        ["objcopy", "-O", "binary", "--only-section=.data", "cell.o", "cell.bin"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    return (tmp_path / "cell.bin").read_bytes()


def test_the_demo_cell_compiles_to_its_bytes(tmp_path: Path) -> None:
    cell = board.inmate_demo()
    source = csource.c_source(cell)
    assert compiled(source, tmp_path) == codec.encode(cell)
    assert "\t\t.flags = JAILHOUSE_CELL_PASSIVE_COMMREG,\n" in source
    assert (
        ".flags = JAILHOUSE_MEM_READ | JAILHOUSE_MEM_WRITE | JAILHOUSE_MEM_EXECUTE | JAILHOUSE_MEM_LOADABLE" in source
    )
    assert ".bar_mask = JAILHOUSE_IVSHMEM_BAR_MASK_INTX," in source


@pytest.mark.parametrize("example", examples.EXAMPLES, ids=lambda example: str(example.spec["id"]))
def test_planned_cells_compile_to_their_files(example: examples.Example, tmp_path: Path) -> None:
    """Against the headers of this directory, and against those of real trees that the environment names."""
    plan = examples.plan(example)
    source, file = (plan.files[f"{example.spec['id']}.{kind}"] for kind in ("c", "cell"))
    for options in headers(plan.cell.dialect):
        assert compiled(source.decode(), tmp_path, *options) == file, options


def test_every_kind_of_array_compiles_for_mainline(tmp_path: Path) -> None:
    cell = codec.new_cell('a "quoted" \\ ??/ */ né0', Arch.X86, **EVERYTHING)
    source = csource.c_source(cell)
    assert compiled(source, tmp_path) == codec.encode(cell)
    assert "JAILHOUSE_SHMEM_PROTO_VIRTIO_FRONT + VIRTIO_DEV_CONSOLE" in source
    assert "JAILHOUSE_SHMEM_PROTO_CUSTOM + 0x5" in source
    assert ".flags = 0x200," in source  # no macro for colours here


def test_every_kind_of_array_compiles_for_the_omnivisor(tmp_path: Path) -> None:
    cell = codec.new_cell("rpu", Arch.ARM64, "omnivisor", **EVERYTHING, **OMNIVISOR_ONLY)
    source = csource.c_source(cell)
    assert compiled(source, tmp_path, "-DOMNIVISOR") == codec.encode(cell)
    assert ".flags = JAILHOUSE_MEM_COLORED," in source
    assert "__u8 fpga_regions[1];" in source


# No shrinking: each step is a compiler run.
@settings(max_examples=4, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_cell_compiles_to_its_bytes(data: st.DataObject, tmp_path: Path) -> None:
    cell = data.draw(kit.cells(layout.OMNIVISOR))
    devices = tuple(msgspec.structs.replace(device, msi_flags=device.msi_flags & 3) for device in cell.pci_devices)
    cell = msgspec.structs.replace(cell, pci_devices=devices)
    assert compiled(csource.c_source(cell), tmp_path, "-DOMNIVISOR") == codec.encode(cell)


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(CellError, match="cannot write C source in dialect coloured"):
        csource.c_source(codec.new_cell("x", Arch.ARM64, "coloured"))
    with pytest.raises(CellError, match="MSI bits 0x4 have no member in C"):
        csource.c_source(codec.new_cell("x", Arch.ARM64, pci_devices=(model.PciDevice(msi_flags=4),)))
    with pytest.raises(CellError, match=r"signature b'\\x00.*is no cell's"):
        csource.c_source(board.root_config().root_cell)
    with pytest.raises(CellError, match="no place"):
        csource.c_source(codec.new_cell("x", Arch.ARM64, rcpu_set=bytes(8)))
