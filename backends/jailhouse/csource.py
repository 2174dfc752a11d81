# SPDX-License-Identifier: Apache-2.0
"""The C source of a cell: what somebody would have written by hand, for people to read and to build with Jailhouse.

The target needs no compiler: its ``.cell`` comes from ``codec``. The source is the same cell in the words of
Jailhouse's own headers, and compiles to the same bytes. Members that are zero are left out, as is the custom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from backends.jailhouse.codec import encode, named
from backends.jailhouse.layout import OMNIVISOR
from backends.jailhouse.model import (
    Arch,
    CacheFlag,
    CacheType,
    CapFlag,
    CellFlag,
    ConsoleFlag,
    ConsoleType,
    Mem,
    PciType,
    Protocol,
    known_bits,
    name_of,
)
from runphi_async.errors import CellError

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Iterable, Mapping

    import msgspec

    from backends.jailhouse.layout import Array, Dialect
    from backends.jailhouse.model import Cell

#: Memory flags that mainline's headers have no macro for.
_FORK_FLAGS: Final = Mem.COLORED | Mem.COLORED_NO_COPY | Mem.TMP_ROOT_REMAP | Mem.TCM_A | Mem.TCM_B
#: Those that the Omnivisor's of October 2025 have none for.
_EARLY_FLAGS: Final = Mem.TCM_A | Mem.TCM_B
#: Arrays by the names that configurations give them: member, C type of an element, and what says how many there are.
_ARRAYS: Final[Mapping[str, tuple[str, str]]] = {
    "cpu_set": ("cpus", "__u64"),
    "rcpu_set": ("rcpus", "__u64"),
    "fpga_regions": ("fpga_regions", "__u64"),
    "memory": ("mem_regions", "struct jailhouse_memory"),
    "caches": ("cache_regions", "struct jailhouse_cache"),
    "irqchips": ("irqchips", "struct jailhouse_irqchip"),
    "pio": ("pio_regions", "struct jailhouse_pio"),
    "pci_devices": ("pci_devices", "struct jailhouse_pci_device"),
    "pci_caps": ("pci_caps", "struct jailhouse_pci_capability"),
    "stream_ids": ("stream_ids", "union jailhouse_stream_id"),
    "qos_devices": ("qos_devices", "struct jailhouse_qos_device"),
    "rcpu_devices": ("rcpu_devices", "struct jailhouse_rcpu_device"),
    "fpga_devices": ("fpga_devices", "struct jailhouse_fpga_device"),
}
_BAR_MASKS: Final = {
    (0xFFFFF000, 0, 0, 0, 0, 0): "JAILHOUSE_IVSHMEM_BAR_MASK_INTX",
    (0xFFFFF000, 0xFFFFF000, 0, 0, 0, 0): "JAILHOUSE_IVSHMEM_BAR_MASK_MSIX",
    (0xFFFF0000, 0, 0, 0, 0, 0): "JAILHOUSE_IVSHMEM_BAR_MASK_INTX_64K",
    (0xFFFF0000, 0xFFFF0000, 0, 0, 0, 0): "JAILHOUSE_IVSHMEM_BAR_MASK_MSIX_64K",
}
_CONSOLE_FLAGS: Final = {
    ConsoleFlag.MMIO: "JAILHOUSE_CON_ACCESS_MMIO",
    ConsoleFlag.REGDIST_4: "JAILHOUSE_CON_REGDIST_4",
    ConsoleFlag.FB_1920x1080: "JAILHOUSE_CON_FB_1920x1080",
    ConsoleFlag.INVERTED_GATE: "JAILHOUSE_CON_INVERTED_GATE",
    ConsoleFlag.MDR_QUIRK: "JAILHOUSE_CON_MDR_QUIRK",
}
_VIRTIO: Final = {1: "VIRTIO_DEV_NET", 2: "VIRTIO_DEV_BLOCK", 3: "VIRTIO_DEV_CONSOLE"}
#: The Omnivisor's names of members that are called otherwise here.
_MEMBERS: Final = {
    ("FpgaDevice", "dto"): "fpga_dto",
    ("FpgaDevice", "module"): "fpga_module",
    ("FpgaDevice", "bitstream"): "fpga_bitstream",
    ("FpgaDevice", "region_id"): "fpga_region_id",
    ("FpgaDevice", "conf_addr"): "fpga_conf_addr",
    ("FpgaDevice", "flags"): "fpga_flags",
}


def c_source(cell: Cell) -> str:
    """Return the C source of a cell, in the macros of its dialect's headers.

    :raises CellError: the dialect's source is not written, or a value cannot be said in C.
    """
    dialect = named(cell.dialect)
    if dialect.macros is None:
        raise CellError(f"cannot write C source in dialect {dialect.name}", "mainline and omnivisor have one")
    if (cell.signature, cell.revision) != dialect.cells[0]:
        raise CellError(f"cannot write C source: signature {cell.signature!r}, revision {cell.revision} is no cell's")
    encode(cell)  # refuses whatever has no place in the dialect
    arrays = [array for array in dialect.arrays if getattr(cell, array.name)]
    lines = [
        f"/* Cell {_comment(cell.name)} for {dialect.macros}. Written by runPHI. */",
        "",
        "#include <jailhouse/types.h>",
        "#include <jailhouse/cell-config.h>",
        "",
        "struct {",
        "\tstruct jailhouse_cell_desc cell;",
        *(f"\t{_declaration(array, getattr(cell, array.name))};" for array in arrays),
        "} __attribute__((packed)) config = {",
        *_indent(_header(cell, arrays)),
    ]
    for array in arrays:
        lines += ["", *_indent(_array(array, getattr(cell, array.name), dialect))]
    return "\n".join([*lines, "};", ""])


def _comment(name: str) -> str:
    return _text(name).replace("*/", "* /")


def _declaration(array: Array, elements: Any) -> str:
    name, kind = _ARRAYS[array.name]
    if array.layout is not None:
        return f"{kind} {name}[{len(elements)}]"
    return f"{kind} {name}[{len(elements) // 8}]" if len(elements) % 8 == 0 else f"__u8 {name}[{len(elements)}]"


def _header(cell: Cell, arrays: Iterable[Array]) -> list[str]:
    arch = name_of(Arch, cell.architecture or 0)
    body = [
        ".signature = JAILHOUSE_CELL_DESC_SIGNATURE,",
        ".revision = JAILHOUSE_CONFIG_REVISION,",
        f".architecture = {f'JAILHOUSE_{arch}' if arch else cell.architecture},",
        f".name = {_text(cell.name)},",
        *([f".id = {cell.id},"] if cell.id else []),
        *([f".flags = {_flags(CellFlag, 'JAILHOUSE_CELL_', cell.flags)},"] if cell.flags else []),
        "",
    ]
    for array in arrays:
        member = f"config.{_ARRAYS[array.name][0]}"
        size = f"sizeof({member})" if array.layout is None else f"ARRAY_SIZE({member})"
        body.append(f".{array.counter} = {size},")
    numbers = {name: getattr(cell, name) for name in ("vpci_irq_base", "cpu_reset_address", "msg_reply_timeout")}
    body += [f".{name} = {_number(value)}," for name, value in numbers.items() if value]
    if console := _struct(cell.console, _console_value):
        body += ["", ".console = {", *_indent(console), "},"]
    return [".cell = {", *_indent(body), "},"]


def _array(array: Array, elements: Any, dialect: Dialect) -> list[str]:
    head = f".{_ARRAYS[array.name][0]} = {{"
    if array.layout is None:
        return [head, *_indent(f"{value}," for value in _words(elements)), "},"]
    body: list[str] = []
    for element in elements:
        members = _struct(element, _VALUES.get(type(element).__name__, _plain), dialect)
        body += ["{", *_indent(members), "},"] if members else ["{ 0 },"]
    return [head, *_indent(body), "},"]


def _words(bitmap: bytes) -> Iterable[str]:
    width = 8 if len(bitmap) % 8 == 0 else 1
    return (_hex(int.from_bytes(bitmap[at : at + width], "little")) for at in range(0, len(bitmap), width))


def _struct(value: msgspec.Struct, write: Callable[..., str | None], *more: Any) -> list[str]:
    """Return the members that are not zero; ``write`` turns one into C, None: it writes it as lines of its own."""
    lines = []
    for name in value.__struct_fields__:
        content = getattr(value, name)
        if not content or (isinstance(content, tuple) and not any(content)):
            continue
        if name == "msi_flags":
            lines += _msi(content)
            continue
        member = _MEMBERS.get((type(value).__name__, name), name)
        lines.append(f".{member} = {write(name, content, *more)},")
    return lines


def _msi(flags: int) -> list[str]:
    if flags & ~3:
        raise CellError(f"pci_devices: MSI bits {flags:#x} have no member in C", "use only bits 0 and 1")
    return [f".{member} = 1," for member, bit in (("msi_64bits", 1), ("msi_maskable", 2)) if flags & bit]


# Section: values


def _plain(name: str, value: Any, *_: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, tuple):
        return "{ " + ", ".join(_hex(one) for one in value) + " }"
    return _number(value)


def _console_value(name: str, value: int) -> str:
    if name == "type" and (kind := name_of(ConsoleType, value)):
        return "JAILHOUSE_CON_TYPE_" + kind.removeprefix("UART_")
    if name == "flags":
        words = [macro for flag, macro in _CONSOLE_FLAGS.items() if value & flag]
        rest = value & ~known_bits(ConsoleFlag)
        return " | ".join([*words, *([_hex(rest)] if rest else [])])
    return _hex(value) if name in ("address", "size", "clock_reg") else _number(value)


def _memory_value(name: str, value: int, dialect: Dialect) -> str:
    if name == "flags":
        without = _EARLY_FLAGS if dialect is OMNIVISOR else _FORK_FLAGS
        return _flags(Mem, "JAILHOUSE_MEM_", value, without)
    return _hex(value)


def _cache_value(name: str, value: int, *_: Any) -> str:
    if name == "type" and (kind := name_of(CacheType, value)):
        return "JAILHOUSE_CACHE_" + kind
    return _flags(CacheFlag, "JAILHOUSE_CACHE_", value) if name == "flags" else _number(value)


def _irqchip_value(name: str, value: Any, *_: Any) -> str:
    return _number(value) if name == "pin_base" else _hex(value) if isinstance(value, int) else _plain(name, value)


def _pci_value(name: str, value: Any, *_: Any) -> str:
    if name == "type" and (kind := name_of(PciType, value)):
        return "JAILHOUSE_PCI_TYPE_" + kind
    if name == "bar_mask":
        return _BAR_MASKS.get(value) or _plain(name, value)
    if name == "bdf":
        return f"{value >> 3} << 3" if value & 7 == 0 and value < 256 else _hex(value)
    if name == "shmem_protocol":
        return _protocol(value)
    return _hex(value) if name == "msix_address" else _number(value)


def _protocol(value: int) -> str:
    base = max(known for known in Protocol if known <= value)
    macro = "JAILHOUSE_SHMEM_PROTO_" + base.name
    rest = value - base
    if not rest:
        return macro
    if base in (Protocol.VIRTIO_FRONT, Protocol.VIRTIO_BACK):
        return f"{macro} + {_VIRTIO.get(rest, _hex(rest))}"
    return f"{macro} + {_hex(rest)}" if base is Protocol.CUSTOM else _hex(value)


def _cap_value(name: str, value: int, *_: Any) -> str:
    if name == "flags":
        return _flags(CapFlag, "JAILHOUSE_PCICAPS_", value)
    if name == "id" and value & 0x8000:
        return f"{_hex(value & 0x7FFF)} | JAILHOUSE_PCI_EXT_CAP"
    return _hex(value)


def _address_value(name: str, value: Any, *_: Any) -> str:
    return _hex(value) if isinstance(value, int) else _plain(name, value)


_VALUES: Final[Mapping[str, Callable[..., str]]] = {
    "Memory": _memory_value,
    "Cache": _cache_value,
    "Irqchip": _irqchip_value,
    "PciDevice": _pci_value,
    "PciCapability": _cap_value,
    "Pio": _address_value,
    "StreamId": _address_value,
    "QosDevice": _address_value,
    "FpgaDevice": _address_value,
}


def _flags(kind: type[enum.IntFlag], prefix: str, value: int, without: int = 0) -> str:
    nameable = known_bits(kind) & ~int(without)  # an IntFlag's own ~ forgets bits without a name
    words = [f"{prefix}{flag.name}" for flag in kind if value & flag & nameable]
    rest = value & ~nameable
    return " | ".join([*words, *([_hex(rest)] if rest else [])])


def _number(value: int) -> str:
    return str(value) if value < 4096 else _hex(value)


def _hex(value: int) -> str:
    # Above 31 bits the type matters where flags are joined or shifted.
    return f"0x{value:x}" + ("ULL" if value >= 1 << 32 else "")


def _text(value: str) -> str:
    """Return a C string literal; three octal digits, which no following digit can lengthen."""
    plain = set(range(32, 127)) - {ord('"'), ord("\\"), ord("?")}
    raw = value.encode("utf-8", "surrogateescape")
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in raw) + '"'


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"\t{line}" if line else "" for line in lines]
