# SPDX-License-Identifier: Apache-2.0
"""Configurations for people and for programs: a page of text, plain JSON, and the differences of two."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from backends.jailhouse import model
from backends.jailhouse.codec import arch_name
from backends.jailhouse.model import System, flag_names, name_of

if TYPE_CHECKING:
    import enum
    from collections.abc import Iterable, Mapping

    from backends.jailhouse.model import Cell

#: Numbers that name something, by type and field.
_ENUMS: Final[Mapping[tuple[str, str], type[enum.IntEnum]]] = {
    ("Console", "type"): model.ConsoleType,
    ("Cache", "type"): model.CacheType,
    ("PciDevice", "type"): model.PciType,
}
_FLAGS: Final[Mapping[tuple[str, str], type[enum.IntFlag]]] = {
    ("Cell", "flags"): model.CellFlag,
    ("System", "flags"): model.SystemFlag,
    ("Memory", "flags"): model.Mem,
    ("Console", "flags"): model.ConsoleFlag,
    ("Cache", "flags"): model.CacheFlag,
    ("PciDevice", "msi_flags"): model.MsiFlag,
    ("PciCapability", "flags"): model.CapFlag,
}
#: Bitmaps that are shown as the numbers they hold.
_SETS: Final = ("cpu_set", "rcpu_set", "fpga_regions")
#: Fields that are counts or small numbers; all others are shown in hexadecimal.
_DECIMAL: Final = (
    *("revision", "id", "vpci_irq_base", "msg_reply_timeout", "divider", "gate_nr", "pin_base"),
    *("caps_start", "num_caps", "num_msi_vectors", "num_msix_vectors", "domain", "iommu", "rcpu_id", "region_id"),
    *("shmem_regions_start", "shmem_dev_id", "shmem_peers", "pci_domain", "pci_mmconfig_end_bus", "pci_is_virtual"),
    *("maintenance_irq", "gic_version", "num_irqs", "num_pmu_irq", "tsc_khz", "apic_khz", "max_regions"),
)


#: Fields that are shown even when they are zero.
_ALWAYS: Final = ("architecture", "cpu_set", "name", "flags")


def plain(config: Cell | System) -> dict[str, Any]:
    """Return a configuration as JSON-ready data: numbers stay numbers, flags and kinds get names beside them."""
    fields: dict[str, Any] = _plain(config)
    return {"kind": "system" if isinstance(config, System) else "cell", **fields}


def _plain(value: Any, field: str = "") -> Any:
    if isinstance(value, msgspec.Struct):
        kind = type(value).__name__
        result: dict[str, Any] = {}
        for name in value.__struct_fields__:
            content = getattr(value, name)
            result[name] = _plain(content, name)
            if flags := _FLAGS.get((kind, name)):
                result[name + "_names"] = flag_names(flags, content)
            if enum_ := _ENUMS.get((kind, name)):
                result[name + "_name"] = name_of(enum_, content)
            if name in _SETS:
                result[name + "_size"] = len(content)
            if name == "architecture":
                result["architecture_name"] = arch_name(content)
        return result
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        if field == "signature":
            return value.decode("latin-1")
        return list(model.bits(value)) if field in _SETS else value.hex()
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value


# Section: text


def text(config: Cell | System) -> str:
    """Return a configuration as a page of text; what is zero is left out."""
    if isinstance(config, System):
        lines = [*_fields(config, skip=("dialect", "root_cell", "iommu_units")), ""]
        for number, unit in enumerate(config.iommu_units):
            if unit != model.Iommu():
                lines.append(f"iommu {number}: {_inline(unit)}")
        return "\n".join([*lines, "root cell", *(f"  {line}".rstrip() for line in _cell(config.root_cell))]) + "\n"
    return "\n".join(_cell(config)) + "\n"


def _cell(cell: Cell) -> list[str]:
    arrays = [name for name in cell.__struct_fields__ if isinstance(getattr(cell, name), tuple)]
    lines = list(_fields(cell, skip=("dialect", *arrays)))
    for name in arrays:
        if elements := getattr(cell, name):
            lines += ["", f"{name} ({len(elements)})"]
            lines += (
                _memory(elements)
                if name == "memory"
                else [f"  {number:>2}  {_inline(element)}" for number, element in enumerate(elements)]
            )
    return lines


def _memory(regions: Iterable[model.Memory]) -> Iterable[str]:
    yield f"   #  {'physical':<12}  {'guest':<12}  {'size':<12}  flags"
    for number, region in enumerate(regions):
        flags = " ".join(flag_names(model.Mem, region.flags)) or "-"
        colours = f"  colours {region.colors:#x}" if region.colors else ""
        place = f"{region.phys_start:<#12x}  {region.virt_start:<#12x}  {region.size:<#12x}"
        yield f"  {number:>2}  {place}  {flags}{colours}"


def _fields(value: msgspec.Struct, skip: tuple[str, ...]) -> Iterable[str]:
    for name in value.__struct_fields__:
        content = getattr(value, name)
        if name in skip or (name not in _ALWAYS and not _matters(content)):
            continue
        yield f"{name:<20} {show(value, name)}"


def _matters(content: Any) -> bool:
    if isinstance(content, msgspec.Struct):
        return any(_matters(getattr(content, name)) for name in content.__struct_fields__)
    if isinstance(content, bytes):
        return any(content)
    return bool(content) and (not isinstance(content, tuple) or any(content))


def _inline(value: msgspec.Struct) -> str:
    names = (name for name in value.__struct_fields__ if _matters(getattr(value, name)))
    return " ".join(f"{name}={show(value, name)}" for name in names) or "all zero"


def show(owner: msgspec.Struct, name: str) -> str:
    """Return one field's value in words."""
    kind, value = type(owner).__name__, getattr(owner, name)
    if flags := _FLAGS.get((kind, name)):
        return "|".join(flag_names(flags, value)) or "none"
    if enum_ := _ENUMS.get((kind, name)):
        return name_of(enum_, value) or f"unknown {value}"
    if isinstance(owner, model.Irqchip) and name == "pin_bitmap":
        return f"pins {model.cpu_list(model.pins(owner)) or 'none'}"
    if isinstance(value, msgspec.Struct):
        return _inline(value)
    if isinstance(value, bytes):
        return model.cpu_list(model.bits(value)) or "none" if name in _SETS else repr(value)
    if isinstance(value, str):
        return f'"{_plain(value)}"' if value.isprintable() and value.isascii() else ascii(value)
    if isinstance(value, tuple):
        return "[" + " ".join(f"{item:#x}" for item in value) + "]"
    if name == "architecture":
        return arch_name(value)
    if name == "bdf":
        return f"{value >> 8:02x}:{value >> 3 & 31:02x}.{value & 7}"
    return str(value) if value is None or name in _DECIMAL else f"{value:#x}"


# Section: differences


def differences(old: Cell | System, new: Cell | System) -> list[str]:
    """Return a line for every field that differs, by its path; none when the two say the same."""
    if type(old) is not type(new):
        kinds = ["system" if isinstance(config, System) else "cell" for config in (old, new)]
        return [f"kind: {kinds[0]} → {kinds[1]}"]
    return list(_compare("", old, new))


def _compare(path: str, old: msgspec.Struct, new: msgspec.Struct) -> Iterable[str]:
    if type(old) is not type(new):
        yield f"{path}: {_inline(old)} → {_inline(new)}"
        return
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        where = f"{path}.{name}" if path else name
        if isinstance(before, msgspec.Struct):
            yield from _compare(where, before, after)
        elif isinstance(before, tuple) and any(isinstance(item, msgspec.Struct) for item in before + after):
            yield from _compare_lists(where, before, after)
        else:
            yield f"{where}: {show(old, name)} → {show(new, name)}"


def _compare_lists(path: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> Iterable[str]:
    """Compare arrays by content first: an element that was put in must not make all behind it differ."""
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, first, end, other, other_end in matcher.get_opcodes():
        if kind == "equal":
            continue
        pairs = min(end - first, other_end - other)
        for n in range(pairs):
            yield from _compare(f"{path}[{first + n}]", old[first + n], new[other + n])
        for n in range(first + pairs, end):
            yield f"{path}[{n}] gone: {_inline(old[n])}"
        for n in range(other + pairs, other_end):
            yield f"{path}[{n}] new: {_inline(new[n])}"
