# SPDX-License-Identifier: Apache-2.0
"""`runphi cell`: what people and programs are shown of configuration files, and the exit statuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from backends.jailhouse import codec, describe, model
from backends.jailhouse.model import Arch, Mem, Memory
from runphi_async import wire
from runphi_async.config.schema import Config
from runphi_async.testing.fake_jailhouse import board
from tests.unit import clikit
from tests.unit.clikit import Answer, answer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "demo.cell").write_bytes(codec.encode(board.inmate_demo()))
    (tmp_path / "root.cell").write_bytes(codec.encode(board.root_config()))
    (tmp_path / "small.cell").write_bytes(codec.encode(board.small_cell("demo")))
    (tmp_path / "cut.cell").write_bytes(codec.encode(board.inmate_demo())[:200])
    return tmp_path


async def cell(place: Path, *argv: str) -> Answer:
    return await answer(
        clikit.supervisor(Config(runc="/nonexistent"), str(place / "run")), "cell", *argv, cwd=str(place)
    )


async def test_dump_says_dialect_why_and_everything_in_it(place: Path) -> None:
    call = await cell(place, "dump", "demo.cell")
    text = call.said(wire.OUT)
    assert call.status == 0
    assert text.startswith("demo.cell: cell, 484 bytes\ndialect mainline: Jailhouse since January 2023\n  because ")
    assert "header and counts come to 484 bytes, as the file has" in text
    lines = text.splitlines()
    assert 'name                 "inmate-demo"' in lines
    assert "flags                PASSIVE_COMMREG" in lines
    assert "cpu_set              1" in lines
    assert "console              address=0x9000000 type=PL011 flags=MMIO|REGDIST_4" in lines
    assert "   6  0x7fa00000    0x0           0x10000       READ WRITE EXECUTE LOADABLE" in lines
    assert "   0  address=0x8000000 pin_base=32 pin_bitmap=pins 144" in lines


async def test_dump_of_a_system_shows_its_root_cell(place: Path) -> None:
    text = (await cell(place, "dump", "root.cell")).said(wire.OUT)
    assert "system configuration, 1024 bytes" in text
    assert "hypervisor_memory    phys_start=0x7fc00000 size=0x400000" in text
    assert "platform             maintenance_irq=25 gic_version=3 gicd_base=0x8000000 gicr_base=0x80a0000" in text
    assert "\nroot cell\n" in text
    assert '  name                 "qemu-arm64"' in text


async def test_dump_as_json_has_numbers_and_names(place: Path) -> None:
    document = json.loads((await cell(place, "dump", "--format", "json", "demo.cell")).said(wire.OUT))
    assert document["kind"] == "cell"
    assert document["dialect"] == "mainline"
    assert document["size"] == 484
    assert (document["architecture"], document["architecture_name"]) == (2, "arm64")
    assert (document["cpu_set"], document["cpu_set_size"]) == ([1], 8)
    assert document["memory"][0]["flags"] == 0x81
    assert document["memory"][0]["flags_names"] == ["READ", "ROOTSHARED"]
    assert document["console"]["type_name"] == "PL011"
    assert document["pci_devices"][0]["type_name"] == "IVSHMEM"
    root = json.loads((await cell(place, "dump", "-f", "json", "root.cell")).said(wire.OUT))
    assert root["root_cell"]["name"] == "qemu-arm64"
    assert root["platform"]["gic_version"] == 3


async def test_dump_takes_a_dialect_where_two_fit(place: Path) -> None:
    doubtful = codec.new_cell(
        "x", Arch.ARM64, cpu_set=bytes(8), irqchips=(model.Irqchip(),), stream_ids=(model.StreamId(),) * 3
    )
    (place / "two.cell").write_bytes(codec.encode(doubtful))
    call = await cell(place, "dump", "two.cell")
    assert call.status == 1
    assert "two.cell: ambiguous: the file's 184 bytes fit mainline and omnivisor-2024" in call.said(wire.ERR)
    assert "because told so" in (await cell(place, "dump", "--dialect", "mainline", "two.cell")).said(wire.OUT)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("dump", "cut.cell"), "cut.cell: offset 0xc8: the file ends here with 200 bytes"),
        (("dump", "missing.cell"), "cannot read missing.cell: No such file or directory"),
        (("dump", "."), "cannot read .: not a regular file"),
        (("dump",), "the following arguments are required: FILE"),
        ((), "the following arguments are required: WORD"),
        (("frob",), "invalid choice: 'frob'"),
        (("check", "--system", "demo.cell", "demo.cell"), "demo.cell: is a cell; --system takes"),
        (("dump", "huge"), "huge: too large for a configuration"),
    ],
)
async def test_refusals(place: Path, argv: tuple[str, ...], words: str) -> None:
    with open(place / "huge", "wb") as file:
        file.truncate(1 << 30)
    call = await cell(place, *argv)
    assert call.status == 1
    assert words in call.said(wire.ERR)
    assert call.said(wire.OUT) == ""


async def test_check_of_good_cells(place: Path) -> None:
    call = await cell(place, "check", "--system", "root.cell", "demo.cell")
    assert (call.status, call.said(wire.OUT)) == (0, "demo.cell: nothing found\n")


async def test_check_compares_cells_with_each_other_and_fails(place: Path) -> None:
    call = await cell(place, "check", "--system", "root.cell", "demo.cell", "small.cell", "cut.cell")
    lines = call.said(wire.OUT).splitlines()
    assert call.status == 1
    assert "demo.cell: error: cpu_set: CPU 1 is small.cell's too; use other CPUs" in lines
    assert any(
        line.startswith("small.cell: error: memory[0]: 0x7fa00000–0x7fa0ffff overlaps demo.cell's") for line in lines
    )
    assert lines[-1].startswith("cut.cell: error: file: offset 0xc8: the file ends here")


async def test_check_as_json(place: Path) -> None:
    call = await cell(place, "check", "--format", "json", "cut.cell")
    rows = json.loads(call.said(wire.OUT))
    assert call.status == 1
    assert [(row["file"], row["severity"], row["where"]) for row in rows] == [("cut.cell", "error", "")]
    assert set(rows[0]) == {"file", "severity", "where", "words", "mend"}


async def test_diff_of_the_same_file_is_silent(place: Path) -> None:
    call = await cell(place, "diff", "demo.cell", "demo.cell")
    assert (call.status, call.said(wire.OUT)) == (0, "")


async def test_diff_of_cells_names_every_field(place: Path) -> None:
    demo = board.inmate_demo()
    regions = (*demo.memory[:5], Memory(0x7F000000, 0, 0x20000, demo.memory[6].flags), demo.memory[7])
    other = msgspec.structs.replace(
        demo, name="other", cpu_set=model.bitmap([2]), console=model.Console(), memory=regions, pci_devices=()
    )
    (place / "other.cell").write_bytes(codec.encode(other))
    call = await cell(place, "diff", "demo.cell", "other.cell")
    assert call.status == 1
    assert call.said(wire.OUT).splitlines() == [
        'name: "inmate-demo" → "other"',
        "console.address: 0x9000000 → 0x0",
        "console.type: PL011 → NONE",
        "console.flags: MMIO|REGDIST_4 → none",
        "cpu_set: 1 → 2",
        "memory[5].phys_start: 0x9000000 → 0x7f000000",
        "memory[5].virt_start: 0x9000000 → 0x0",
        "memory[5].size: 0x1000 → 0x20000",
        "memory[5].flags: READ|WRITE|IO|ROOTSHARED → READ|WRITE|EXECUTE|LOADABLE",
        "memory[6] gone: phys_start=0x7fa00000 size=0x10000 flags=READ|WRITE|EXECUTE|LOADABLE",
        (
            "pci_devices[0] gone: type=IVSHMEM domain=1 bar_mask=[0xfffff000 0x0 0x0 0x0 0x0 0x0] "
            "shmem_dev_id=1 shmem_peers=3"
        ),
    ]


async def test_diff_of_a_cell_and_a_system(place: Path) -> None:
    call = await cell(place, "diff", "demo.cell", "root.cell")
    assert (call.status, call.said(wire.OUT)) == (1, "kind: cell → system\n")


def test_differences_of_systems_reach_into_the_root_cell() -> None:
    old = board.root_config()
    new = board.root_config(2, virtual_console=False)
    assert describe.differences(old, new) == ["flags: VIRTUAL_DEBUG_CONSOLE → none", "root_cell.cpu_set: 0-3 → 0-1"]
    raw = msgspec.structs.replace(old, platform=model.RawPlatform())
    assert describe.differences(old, raw)[0].startswith("platform: ")


def test_names_that_are_no_text_are_shown_safely() -> None:
    strange = board.small_cell("a\udcff\x1b[0m")
    assert r"'a\udcff\x1b[0m'" in describe.text(strange)
    assert describe.plain(strange)["name"] == "a\\xff\x1b[0m"
    assert describe.plain(msgspec.structs.replace(strange, memory=(Memory(flags=Mem.READ),)))["memory"][0]["size"] == 0
