# SPDX-License-Identifier: Apache-2.0
"""Board files made of root configurations: what the file says is in them, and what it cannot say is asked for."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.jailhouse import codec, layout, model, sysconfig
from backends.jailhouse.model import Arch, Mem
from runphi_async import wire
from runphi_async.board import boardcheck, loading, ranges
from runphi_async.board.ranges import Range
from runphi_async.config.schema import Config
from runphi_async.errors import CellError
from runphi_async.testing.fake_jailhouse import board as fake
from tests.unit import clikit, jailhousekit
from tests.unit.clikit import answer

if TYPE_CHECKING:
    from pathlib import Path

    from runphi_async.board.board import Board

#: of the recorded board, booted with mem=768M
IOMEM = """\
09000000-09000fff : pl011@9000000
40000000-6fffffff : System RAM
  40210000-4164ffff : Kernel code
  6fe00000-6fffffff : reserved
7faf0000-7faf0fff : 0001:00:00.0
"""
RWX = Mem.READ | Mem.WRITE | Mem.EXECUTE
ROOT = fake.root_config()


def derived(system: model.System, iomem: str | None = IOMEM) -> Board:
    return loading.parse(sysconfig.board_file(system, iomem).encode(), "derived")


def omnivisor() -> model.System:
    """A root configuration such as that of a Zynq board: the hypervisor's memory lies within the root cell's RAM."""
    root = codec.new_cell(
        'Zynq "MP"',
        Arch.ARM64,
        "omnivisor",
        vpci_irq_base=104,
        cpu_set=model.bitmap(range(4)),
        rcpu_set=model.bitmap([0, 1]),
        fpga_regions=bytes(8),
        memory=(
            fake.same(0xFFE0_0000, 0xC0000, RWX),
            fake.same(0, 0x4000_0000, RWX),
            fake.same(0x4000_0000, 0x4000_0000, RWX),
            fake.same(0x8_0000_0000, 0x8000_0000, RWX),
            fake.same(0xFD00_0000, 0x300_0000, Mem.READ | Mem.WRITE | Mem.IO),
        ),
        irqchips=(model.Irqchip(0xF901_0000, 0, 32, (0xFFFFFFFF,) * 4),),
        rcpu_devices=(model.RcpuDevice(0, "r5f_0", "r5"),),
    )
    return codec.new_system(
        root,
        Arch.ARM64,
        hypervisor_memory=model.Memory(phys_start=0x6F00_0000, size=0x100_0000),
        debug_console=model.Console(0xFF00_0000, 0x1000, model.ConsoleType.XUARTPS, 3),
        pci_domain=0xFFFF,
        coloring=model.Coloring(0x10000, 0),
        platform=model.ArmPlatform(gic_version=2),
    )


def test_the_recorded_board_comes_out_as_it_is_shipped() -> None:
    found, shipped = derived(ROOT), loading.load("qemu-arm64")
    assert boardcheck.findings(found) == []
    for field in ("name", "arch", "dialect", "root_cell", "cpus", "ram", "irqchip", "ivshmem"):
        assert getattr(found, field) == getattr(shipped, field), field
    assert [part.range for part in found.memory] == [part.range for part in shipped.memory]
    (ours,), (theirs,) = found.uart, shipped.uart
    assert (ours.type, ours.address, ours.shared) == (theirs.type, theirs.address, True)
    assert not set(ranges.numbers(found.vpci.irqs)) & {128, 129, 130, 131}
    assert found.template.inmate is not None
    assert found.template.inmate.console == "virtual"


def test_a_board_with_remote_processors_and_colours() -> None:
    found = derived(omnivisor(), "00000000-3fffffff : System RAM\n80000000-ffffffff : other\n")
    assert boardcheck.findings(found) == []
    assert (found.dialect, found.root_cell, found.name) == ("omnivisor", "Zynq ?MP?", "zynq-mp")
    assert [(rpu.id, rpu.name) for rpu in found.rpu] == [(0, "r5f_0"), (1, "rpu1")]
    # neighbours are one, special memory is none, and the hypervisor's is nobody's
    assert [part.range for part in found.ram] == [Range(0, 0x8000_0000), Range(0x8_0000_0000, 0x8_8000_0000)]
    assert [part.range for part in found.memory] == [
        Range(0x4000_0000, 0x6F00_0000),
        Range(0x7000_0000, 0x8000_0000),
        Range(0x8_0000_0000, 0x8_8000_0000),
    ]
    assert found.cache is not None
    assert (found.cache.count, found.cache.colors) == (16, "0-15")
    assert (found.vpci.domain, found.template.inmate and found.template.inmate.console) == (1, "none")
    assert found.template.rpu is not None


def test_without_iomem_the_memory_is_asked_for() -> None:
    text = sysconfig.board_file(ROOT)
    assert "# TODO: [[memory]] with name, start and size" in text
    assert [f.key for f in boardcheck.findings(loading.parse(text.encode(), "b")) if f.fatal] == ["memory"]
    full = sysconfig.board_file(ROOT, "40000000-7fffffff : System RAM\n")
    assert "# The root system uses all it has" in full


def test_only_whole_free_pages_are_offered() -> None:
    found = derived(ROOT, "40000000-700007ff : System RAM\n")
    assert found.memory[0].range.start == 0x7000_1000


@pytest.mark.parametrize(
    ("iomem", "words"),
    [("", "names no System RAM"), ("00000000-00000000 : System RAM\n", "read /proc/iomem as root: others see zeros")],
)
def test_an_iomem_that_says_nothing_is_refused(iomem: str, words: str) -> None:
    with pytest.raises(CellError, match=words):
        sysconfig.board_file(ROOT, iomem)


def with_root(**fields: object) -> model.System:
    return msgspec.structs.replace(ROOT, root_cell=msgspec.structs.replace(ROOT.root_cell, **fields))


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (with_root(cpu_set=bytes(8)), "the root cell has no CPU"),
        (with_root(memory=()), "the root cell has no RAM"),
        (with_root(pci_devices=(fake.ivshmem(0, 9, 0, 5),)), "names regions that are not there"),
        (msgspec.structs.replace(ROOT, architecture=None), "does not say its architecture"),
    ],
)
def test_a_configuration_that_says_too_little_is_refused(system: model.System, words: str) -> None:
    with pytest.raises(CellError, match=words):
        sysconfig.board_file(system, IOMEM)


SYSTEMS = st.one_of([jailhousekit.systems(table) for table in layout.DIALECTS.values() if table.system is not None])


@settings(deadline=None, max_examples=60)
@given(SYSTEMS)
def test_any_configuration_gives_toml_or_a_reason(system: model.System) -> None:
    text = ""
    with suppress(CellError):  # it says too little
        text = sysconfig.board_file(system, IOMEM)
    assert not text or tomllib.loads(text)["arch"] in ("x86", "arm", "arm64")


async def test_a_board_is_compared_with_the_running_system(tmp_path: Path) -> None:
    supervisor = clikit.supervisor(Config(), str(tmp_path))
    (tmp_path / "iomem").write_text(IOMEM)
    call = await answer(supervisor, "board", "check", "--iomem", "iomem", "qemu-arm64", cwd=str(tmp_path))
    assert call.status == 0
    (tmp_path / "iomem").write_text(IOMEM.replace("6fffffff", "7fffffff"))
    call = await answer(supervisor, "board", "check", "--iomem", "iomem", "qemu-arm64", cwd=str(tmp_path))
    assert call.status == 1
    assert call.said(wire.OUT) == (
        "qemu-arm64: memory[0]: 0x70000000-0x7fa0ffff overlaps 0x40000000-0x7fffffff, which the running root system "
        "uses as its RAM; boot it with mem= or a reserved-memory node, or lend other memory\n"
    )


async def test_the_verb(tmp_path: Path) -> None:
    supervisor = clikit.supervisor(Config(), str(tmp_path))
    (tmp_path / "root.cell").write_bytes(codec.encode(ROOT))
    (tmp_path / "demo.cell").write_bytes(codec.encode(fake.inmate_demo()))
    (tmp_path / "iomem").write_text(IOMEM)
    given = ("board", "from-sysconfig", "--iomem", "iomem")
    call = await answer(supervisor, *given, "root.cell", cwd=str(tmp_path))
    assert call.status == 0
    assert call.said(wire.OUT) == sysconfig.board_file(ROOT, IOMEM, "root.cell")
    for name, words in (
        ("demo.cell", "it is a cell; name the file given to jailhouse enable"),
        ("iomem", "offset 0x0"),
        ("none", "cannot read"),
    ):
        call = await answer(supervisor, *given, name, cwd=str(tmp_path))
        assert call.status == 1
        assert words in call.said(wire.ERR)
