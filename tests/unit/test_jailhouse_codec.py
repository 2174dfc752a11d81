# SPDX-License-Identifier: Apache-2.0
"""Configurations come back byte for byte, dialects are told apart, and what cannot be read is refused with a place."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.jailhouse import codec, layout, model
from backends.jailhouse.layout import DIALECTS
from backends.jailhouse.model import Arch, CellFlag, Mem, Memory
from runphi_async.errors import CellError
from runphi_async.testing.fake_jailhouse import board
from tests.unit import jailhousekit as kit

RUNPHI_DEMO_SIZE = 808


def runphi_demo() -> model.Cell:
    """A cell of the shape of runPHI's Zephyr demo for qemu-arm64, whose figures were recorded."""
    return codec.new_cell(
        "qemu-arm64-zephyr-demo",
        Arch.ARM64,
        "coloured",
        vpci_irq_base=108,
        cpu_reset_address=0x70000000,
        console=board.UART,
        cpu_set=model.bitmap([1]),
        memory=tuple(Memory(n << 12, n << 12, 0x1000, Mem.READ) for n in range(13)),
        irqchips=(model.Irqchip(),),
        pci_devices=(board.ivshmem(0, 0, 1, 3), board.ivshmem(1, 5, 1, 2, 1)),
    )


# Section: the recorded file


def test_recorded_cell_decodes_as_recorded() -> None:
    cell = codec.decode(codec.encode(board.inmate_demo()))
    assert isinstance(cell, model.Cell)
    assert (cell.signature, cell.architecture, cell.revision, cell.name) == (b"JHCLL", Arch.ARM64, 14, "inmate-demo")
    assert cell.flags == CellFlag.PASSIVE_COMMREG
    assert (len(cell.cpu_set), len(cell.memory), len(cell.irqchips), len(cell.pci_devices)) == (8, 8, 1, 1)
    assert cell.vpci_irq_base == 0x70
    assert (cell.console.address, cell.console.type, cell.console.flags) == (0x09000000, 3, 3)
    assert model.bits(cell.cpu_set) == (1,)
    assert cell.memory[0] == Memory(0x7FAF0000, 0x7FAF0000, 0x1000, 0x81)
    assert model.pins(cell.irqchips[0]) == (144,)


def test_recorded_cell_encodes_byte_for_byte() -> None:
    recorded = kit.recorded_bytes()
    encoded = codec.encode(board.inmate_demo())
    assert len(recorded) == 208
    assert len(encoded) == 132 + 8 + 8 * 32 + 32 + 56 == 484
    assert encoded[:208] == recorded
    assert codec.encode(codec.decode(encoded)) == encoded


def test_recorded_beginning_alone_is_truncated() -> None:
    with pytest.raises(CellError, match=r"offset 0xd0: the file ends here with 208 bytes.*mainline.*484") as caught:
        codec.decode(kit.recorded_bytes())
    assert "truncated" in str(caught.value.hint)


def test_check_value_of_the_colouring_fork() -> None:
    data = codec.encode(runphi_demo(), readable_only=True)
    assert len(data) == RUNPHI_DEMO_SIZE == 136 + 8 + 13 * 40 + 32 + 2 * 56
    assert data[:8] == bytes.fromhex("4a4843454c4c0d00")
    assert struct.unpack_from("<I", data, 0x54) == (108,)
    assert struct.unpack_from("<Q", data, 0x58) == (0x70000000,)
    assert struct.unpack_from("<QIHH", data, 0x68) == (0x09000000, 0, 3, 3)
    assert codec.detect(data).dialect is layout.COLOURED


# Section: round trips

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", DIALECTS)
@quick
@given(data=st.data())
def test_cells_come_back(name: str, data: st.DataObject) -> None:
    cell = data.draw(kit.cells(DIALECTS[name]))
    encoded = codec.encode(cell, readable_only=True)
    assert len(encoded) == codec.encoded_size(cell)
    assert codec.decode(encoded, name) == cell
    assert codec.encode(codec.decode(encoded, name), readable_only=True) == encoded


@pytest.mark.parametrize("name", [name for name, dialect in DIALECTS.items() if dialect.system])
@quick
@given(data=st.data())
def test_systems_come_back(name: str, data: st.DataObject) -> None:
    system = data.draw(kit.systems(DIALECTS[name]))
    encoded = codec.encode(system, readable_only=True)
    assert codec.decode(encoded, name) == system
    assert codec.encode(codec.decode(encoded, name), readable_only=True) == encoded


@quick
@given(st.binary(max_size=400))
def test_any_bytes_are_read_exactly_or_refused(data: bytes) -> None:
    for head in (b"", b"JHCLL\x02\x0e\0", b"JHCELL\x0d\0", b"JHSYS\x02\x0e\0", b"JHSYST\x0d\0"):
        try:
            config = codec.decode(head + data)
        except CellError:
            continue
        assert codec.encode(config, readable_only=True) == head + data


@quick
@given(st.data())
def test_a_cell_that_is_cut_anywhere_is_refused(data: st.DataObject) -> None:
    encoded = codec.encode(board.inmate_demo())
    length = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(CellError, match=r"offset 0x"):
        codec.decode(encoded[:length])


def test_text_that_is_no_utf8_and_bytes_behind_the_end_of_a_name_are_kept() -> None:
    encoded = bytearray(codec.encode(board.inmate_demo()))
    encoded[8:16] = b"a\xff\0junk\0"
    cell = codec.decode(bytes(encoded))
    assert codec.encode(cell) == encoded


# Section: telling dialects apart


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_are_detected(name: str) -> None:
    dialect = DIALECTS[name]
    for signature, revision in dialect.cells:
        cell = codec.new_cell("x", Arch.ARM64, name, cpu_set=bytes(8), memory=(Memory(1, 2, 3, 7),) * 3)
        architecture = 2 if len(signature) == 5 else None
        cell = msgspec.structs.replace(cell, signature=signature, revision=revision, architecture=architecture)
        detection = codec.detect(codec.encode(cell, readable_only=True))
        assert detection.dialect is dialect
        assert f'signature "{signature.decode()}", revision {revision}' in detection.why
        assert f"{name}: header and counts come to {codec.encoded_size(cell)} bytes" in detection.why


def test_the_same_signature_and_revision_are_told_apart_by_size() -> None:
    why = codec.detect(codec.encode(runphi_demo(), readable_only=True)).why
    assert "not mainline-13: header and counts come to" in why
    assert "not omnivisor-2024: header and counts come to" in why


def test_files_that_fit_two_dialects_are_decided_by_sense_or_refused() -> None:
    # 132 + 8 + 32 + 3 * 4 bytes; the Omnivisor of 2024 reads 140 + 8 + 12 + 4 + 20: a cache, a port, a QoS device.
    cell = codec.new_cell(
        "x", Arch.ARM64, cpu_set=bytes(8), irqchips=(model.Irqchip(),), stream_ids=(model.StreamId(),) * 3
    )
    data = codec.encode(cell)
    with pytest.raises(CellError, match=r"ambiguous: the file's 184 bytes fit mainline and omnivisor-2024") as caught:
        codec.detect(data)
    assert "say which dialect" in str(caught.value.hint)
    assert codec.decode(data, "mainline") == cell
    # Where mainline keeps the clock gate, the other one keeps the type of the console, and there is no type 99.
    sound = msgspec.structs.replace(cell, console=model.Console(address=0xFF000000, type=2, gate_nr=99))
    detection = codec.detect(codec.encode(sound))
    assert detection.dialect is layout.MAINLINE
    assert "not omnivisor-2024: " in detection.why
    assert "but console type 99 is unknown" in detection.why
    assert "the only one of these that makes sense" in detection.why


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "offset 0x0: no Jailhouse configuration: the file is empty"),
        (b"JHC", "offset 0x0: no Jailhouse configuration: the file begins with b'JHC'"),
        (b"\x7fELF" + bytes(200), r"offset 0x0: no Jailhouse configuration: the file begins with b'\\x7fELF"),
        (b"JHCLL\x02\x0f\x00" + bytes(200), "offset 0x6: unknown revision 15 with signature JHCLL"),
        (b"JHSYST\x0c\x00" + bytes(800), "offset 0x6: unknown revision 12 with signature JHSYST"),
        (b"JHCLL\x02\x0e\x00", "offset 0x8: the file ends here with 8 bytes.*mainline: the header alone has 132 bytes"),
        (b"JHCLL\x02\x0e\x00" + bytes(200), "offset 0xd0: the file ends here with 208 bytes"),
    ],
)
def test_refusals_say_where(data: bytes, words: str) -> None:
    with pytest.raises(CellError, match=words):
        codec.decode(data)


def test_a_file_with_bytes_too_many_is_refused() -> None:
    with pytest.raises(CellError, match="485 bytes") as caught:
        codec.decode(codec.encode(board.inmate_demo()) + b"\0")
    assert "too many" in str(caught.value.hint)


def test_a_dialect_that_is_named_must_fit() -> None:
    data = codec.encode(board.inmate_demo())
    with pytest.raises(CellError, match=r"is not dialect coloured|ends here"):
        codec.decode(data, "coloured")
    with pytest.raises(CellError, match=r'signature "JHCLL".*is not dialect mainline-13'):
        codec.decode(data, "mainline-13")
    with pytest.raises(CellError, match="unknown dialect 'mainlin'"):
        codec.decode(data, "mainlin")


# Section: writing


@pytest.mark.parametrize("name", ["mainline-13", "mainline-10", "mainline-9", "coloured", "omnivisor-2024"])
def test_dialects_that_are_only_read_are_not_written(name: str) -> None:
    with pytest.raises(CellError, match=f"cannot write dialect {name}: ") as caught:
        codec.encode(codec.new_cell("x", Arch.ARM64, name))
    assert caught.value.hint == "write mainline or omnivisor"


@pytest.mark.parametrize("arch", Arch)
def test_mainline_is_written_for_every_architecture(arch: Arch) -> None:
    data = codec.encode(codec.new_cell("x", arch, pio=(model.Pio(0x3F8, 8),)))
    assert data[5] == arch
    assert codec.detect(data).head.architecture == arch


def test_values_without_a_place_are_refused() -> None:
    rcpu = codec.new_cell("x", Arch.ARM64, rcpu_set=bytes(8))
    with pytest.raises(CellError, match="rcpu_set: dialect mainline has no place for it"):
        codec.encode(rcpu)
    with pytest.raises(CellError, match=r"memory\[1\].colors: dialect mainline has no cache colours"):
        codec.encode(codec.new_cell("x", Arch.ARM64, memory=(Memory(), Memory(colors=1))))
    with pytest.raises(CellError, match=r"cell.name: .* has 33 bytes, the field has 32"):
        codec.encode(codec.new_cell("x" * 33, Arch.ARM64))
    with pytest.raises(CellError, match=r"memory\[0\].size: -1 does not fit"):
        codec.encode(codec.new_cell("x", Arch.ARM64, memory=(Memory(size=-1),)))
    with pytest.raises(CellError, match=r"signature: .* does not go with architecture not given"):
        codec.encode(msgspec.structs.replace(board.inmate_demo(), architecture=None))
    with pytest.raises(CellError, match=r"iommu_units: 1 elements where the layout has 8"):
        codec.encode(msgspec.structs.replace(board.root_config(), iommu_units=(model.Iommu(),)))
    with pytest.raises(CellError, match=r"platform: .* does not go with architecture x86"):
        codec.encode(msgspec.structs.replace(board.root_config(), architecture=Arch.X86))


def test_root_config_has_the_measured_places() -> None:
    data = codec.encode(board.root_config())
    assert data[:8] == b"JHSYS\x02\x0e\0"
    assert data[0x138:0x13A] == bytes([25, 3])
    assert struct.unpack_from("<Q", data, 0x13C) == (0x08000000,)
    assert struct.unpack_from("<Q", data, 0x15C) == (0x080A0000,)
    assert data[0x164:0x16C] == bytes(8)
    assert data[0x16C:0x176] == b"qemu-arm64"


# Section: small helpers


def test_bitmaps() -> None:
    assert model.bitmap([1]) == b"\x02" + bytes(7)
    assert model.bitmap([]) == bytes(8)
    assert len(model.bitmap([64])) == 16
    assert model.bits(model.bitmap([0, 5, 70])) == (0, 5, 70)
    assert model.cpu_list([3, 0, 2]) == "0,2-3"
    assert model.cpu_list([]) == ""


def test_names_of_flags() -> None:
    assert model.flag_names(Mem, 0x83) == ["READ", "WRITE", "ROOTSHARED"]
    assert model.flag_names(Mem, 0x100001) == ["READ", "0x100000"]
    assert codec.arch_name(7) == "unknown (7)"
