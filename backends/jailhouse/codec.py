# SPDX-License-Identifier: Apache-2.0
"""Configurations of Jailhouse from bytes to data and back, exactly.

The dialect is found by signature, revision *and* size: a file must be exactly as long as its header's counts say, under
the dialect's own sizes. That is also what keeps a truncated file away from the driver, which would read beyond it and
stop the whole machine without a word.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backends.jailhouse.layout import ARM_PLATFORM, DIALECTS, MAINLINE, PLATFORM_SIZE, PLATFORMS, RAW_PLATFORM, Layout
from backends.jailhouse.model import Arch, CellFlag, ConsoleFlag, ConsoleType, Mem, PciType, System, known_bits, name_of
from backends.jailhouse.model import Cell as CellConfig
from runphi_async.errors import CellError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import msgspec

    from backends.jailhouse.layout import Array, Dialect, Member

#: Signatures and what they open.
CELL_SIGNATURES: Final = (b"JHCLL", b"JHCELL")
SYSTEM_SIGNATURES: Final = (b"JHSYS", b"JHSYST")
#: Bytes of the head that all dialects share: signature, architecture, revision.
HEAD_SIZE: Final = 8
_COUNT_MAX: Final = 1 << 32


class Head(NamedTuple):
    """The first bytes of a file: what it says it is."""

    signature: bytes
    architecture: int | None
    revision: int

    @property
    def is_system(self) -> bool:
        """Whether it is a system configuration."""
        return self.signature in SYSTEM_SIGNATURES

    def __str__(self) -> str:
        said = f'signature "{self.signature.decode("ascii", "backslashreplace")}", revision {self.revision}'
        if self.architecture is None:
            return said
        return f"{said}, architecture {arch_name(self.architecture)}"


class Candidate(NamedTuple):
    """A dialect that signature and revision allow.

    :ivar expected: bytes that the header's counts come to, None: the file ends within the header.
    :ivar words: what speaks for or against it.
    :ivar doubts: contents that make no sense under it.
    """

    dialect: Dialect
    expected: int | None
    words: str
    doubts: tuple[str, ...]


class Detection(NamedTuple):
    """The dialect of a file, and why it is that one."""

    dialect: Dialect
    head: Head
    why: str


def arch_name(architecture: int | None) -> str:
    """Return an architecture's name for people."""
    if architecture is None:
        return "not given"
    name = name_of(Arch, architecture)
    return name.lower() if name else f"unknown ({architecture})"


# Section: reading


def read_head(data: bytes) -> Head:
    """Return what a file says it is.

    :raises CellError: it is no configuration of Jailhouse.
    """
    long, short = data[:6], data[:5]
    if len(data) >= HEAD_SIZE:
        revision = int.from_bytes(data[6:8], "little")
        if long in CELL_SIGNATURES or long in SYSTEM_SIGNATURES:
            return Head(long, None, revision)
        if short in CELL_SIGNATURES or short in SYSTEM_SIGNATURES:
            return Head(short, data[5], revision)
    known = ", ".join(signature.decode() for signature in CELL_SIGNATURES + SYSTEM_SIGNATURES)
    begin = "is empty" if not data else f"begins with {long!r}"
    raise CellError(f"offset 0x0: no Jailhouse configuration: the file {begin}", f"one begins with one of {known}")


def detect(data: bytes) -> Detection:
    """Find the dialect of a file.

    :raises CellError: there is none, or more than one, that it can be.
    """
    head = read_head(data)
    candidates = _candidates(data, head)
    if not candidates:
        raise CellError(
            f"offset 0x6: unknown revision {head.revision} with signature {head.signature.decode()}",
            f"known ones: {_known_revisions()}",
        )
    fitting = [candidate for candidate in candidates if candidate.expected == len(data)]
    if not fitting:
        raise CellError(_misfit(data, head, candidates), _misfit_hint(data, candidates))
    sound = [candidate for candidate in fitting if not candidate.doubts]
    chosen = fitting if len(fitting) == 1 else sound
    if len(chosen) != 1:
        names = " and ".join(candidate.dialect.name for candidate in fitting)
        raise CellError(f"ambiguous: the file's {len(data)} bytes fit {names}", "say which dialect it is")
    return Detection(chosen[0].dialect, head, _why(data, head, chosen[0], candidates, fitting))


def decode(data: bytes, dialect: str | None = None) -> CellConfig | System:
    """Return the configuration in a file; without ``dialect`` it is detected.

    :raises CellError: it cannot be read, and where it breaks.
    """
    head = read_head(data)
    if dialect is None:
        table = detect(data).dialect
    else:
        table = named(dialect)
        seen = table.systems if head.is_system else table.cells
        if (head.signature, head.revision) not in seen:
            raise CellError(f"offset 0x0: {head} is not dialect {dialect}", "leave the dialect out to have it detected")
        candidate = _measure(data, head, table)
        if candidate.expected != len(data):
            raise CellError(_misfit(data, head, [candidate]), _misfit_hint(data, [candidate]))
    return _system(data, head, table) if head.is_system else _cell(data, 0, head, table)


def named(name: str) -> Dialect:
    """Return the dialect of that name.

    :raises CellError: there is none.
    """
    if name not in DIALECTS:
        raise CellError(f"unknown dialect {name!r}", f"known ones: {', '.join(DIALECTS)}")
    return DIALECTS[name]


def size_of(header: Mapping[str, int], dialect: Dialect) -> int:
    """Return the bytes of a cell whose header has these counters."""
    return dialect.header_size + sum(header[array.counter] * array.unit for array in dialect.arrays)


def _candidates(data: bytes, head: Head) -> list[Candidate]:
    allowed = []
    for dialect in DIALECTS.values():
        seen = dialect.systems if head.is_system else dialect.cells
        if (head.signature, head.revision) in seen:
            allowed.append(_measure(data, head, dialect))
    return allowed


def _measure(data: bytes, head: Head, dialect: Dialect) -> Candidate:
    fixed = dialect.system_size if head.is_system else dialect.header_size
    start = fixed - dialect.header_size
    if len(data) < fixed:
        return Candidate(dialect, None, f"{dialect.name}: the header alone has {fixed} bytes", ())
    header = _unpack_members(data, start, dialect.header)
    expected = start + size_of(header, dialect)
    doubts: tuple[str, ...] = ()
    if expected == len(data):
        doubts = tuple(_doubts(_cell(data, start, head, dialect), dialect))
        words = f"{dialect.name}: header and counts come to {expected} bytes, as the file has"
        if doubts:
            words += f", but {doubts[0]}"
    else:
        words = f"{dialect.name}: header and counts come to {expected} bytes"
    return Candidate(dialect, expected, words, doubts)


def _doubts(cell: CellConfig, dialect: Dialect) -> Iterable[str]:
    # Only asked where two dialects fit; a strange but unambiguous file is for ``check`` to judge.
    if "\0" in cell.name or any(ord(char) < 32 for char in cell.name):
        yield "the name has control characters"
    if name_of(ConsoleType, cell.console.type) is None:
        yield f"console type {cell.console.type} is unknown"
    if cell.console.flags & ~known_bits(ConsoleFlag):
        yield f"console flags {cell.console.flags:#x} are unknown"
    if cell.flags & ~known_bits(CellFlag):
        yield f"cell flags {cell.flags:#x} are unknown"
    for number, region in enumerate(cell.memory):
        if region.flags & ~known_bits(Mem) or (region.size and region.phys_start + region.size > 1 << 64):
            yield f"memory region {number} makes no sense"
    for number, device in enumerate(cell.pci_devices):
        if name_of(PciType, device.type) is None:
            yield f"PCI device {number} is of unknown type {device.type}"


def _why(data: bytes, head: Head, chosen: Candidate, all_: list[Candidate], fitting: list[Candidate]) -> str:
    text = f"{head}; {chosen.words}"
    others = [candidate.words for candidate in all_ if candidate is not chosen]
    if len(fitting) > 1:
        text += "; the only one of these that makes sense"
    return f"{text}; not {'; not '.join(others)}" if others else text


def _misfit(data: bytes, head: Head, candidates: list[Candidate]) -> str:
    return f"offset {len(data):#x}: the file ends here with {len(data)} bytes, and {head} allows: " + "; ".join(
        candidate.words for candidate in candidates
    )


def _misfit_hint(data: bytes, candidates: list[Candidate]) -> str:
    longer = [c.expected for c in candidates if c.expected is None or len(data) < c.expected]
    if len(longer) == len(candidates):
        return "the file is truncated: copy or build it again; a board that loads it would hang"
    return "the file has bytes too many, or is of a dialect that is not known here"


def _known_revisions() -> str:
    pairs = sorted({pair for dialect in DIALECTS.values() for pair in dialect.cells + dialect.systems})
    return ", ".join(f"{signature.decode()} {revision}" for signature, revision in pairs)


def _unpack(data: bytes, start: int, layout: Layout) -> msgspec.Struct:
    return layout.type(**_unpack_members(data, start, layout.members))


def _unpack_members(data: bytes, start: int, table: Iterable[Member]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for member in table:
        values[member.name] = _value(data, start, member)
        start += member.size
    return values


def _value(data: bytes, start: int, member: Member) -> Any:
    kind = member.kind
    if isinstance(kind, Layout):
        found = tuple(_unpack(data, start + n * kind.size, kind) for n in range(member.times))
        return found if member.times > 1 else found[0]
    values = struct.unpack_from("<" + kind.replace("r", "s"), data, start)
    if kind.endswith("s"):
        # Text keeps everything but the zeros that fill it up, so that it comes back byte for byte.
        return values[0].rstrip(b"\0").decode("utf-8", "surrogateescape")
    return values if len(values) > 1 else values[0]


def _cell(data: bytes, start: int, head: Head, dialect: Dialect) -> CellConfig:
    header = _unpack_members(data, start, dialect.header)
    place = start + dialect.header_size
    arrays: dict[str, Any] = {}
    for array in dialect.arrays:
        count = header.pop(array.counter)
        end = place + count * array.unit
        if array.layout is None:
            arrays[array.name] = data[place:end]
        else:
            arrays[array.name] = tuple(_unpack(data, at, array.layout) for at in range(place, end, array.unit))
        place = end
    signature = header.pop("signature")
    architecture = None
    if len(head.signature) == 5:
        signature, architecture = signature[:5], signature[5]
    return CellConfig(dialect=dialect.name, signature=signature, architecture=architecture, **header, **arrays)


def _system(data: bytes, head: Head, dialect: Dialect) -> System:
    assert dialect.system is not None  # one without never gets here: it has no system signature
    values = _unpack_members(data, 0, dialect.system)
    values["signature"] = head.signature
    raw = values.pop("platform")
    values["platform"] = _unpack(raw, 0, PLATFORMS.get(head.architecture, RAW_PLATFORM))
    values["root_cell"] = _cell(data, dialect.system_size - dialect.header_size, head, dialect)
    return System(dialect=dialect.name, architecture=head.architecture, **values)


# Section: writing


def new_cell(name: str, architecture: Arch, dialect: str = MAINLINE.name, **fields: Any) -> CellConfig:
    """Return a cell of a dialect, with the signature and revision that its files have."""
    table = named(dialect)
    signature, revision = table.cells[0]
    return CellConfig(
        dialect=dialect,
        signature=signature,
        architecture=int(architecture) if len(signature) == 5 else None,
        revision=revision,
        name=name,
        **fields,
    )


def new_system(root_cell: CellConfig, architecture: Arch, **fields: Any) -> System:
    """Return a system around a root cell, whose own signature files leave empty."""
    table = named(root_cell.dialect)
    if not table.systems or table.system is None:
        raise CellError(f"cannot make a system configuration in dialect {table.name}: its layout is not known")
    signature, revision = table.systems[0]
    has_arch = len(signature) == 5
    root = _replace(root_cell, signature=bytes(len(signature)), architecture=0 if has_arch else None, revision=0)
    return System(
        dialect=table.name,
        signature=signature,
        architecture=int(architecture) if has_arch else None,
        revision=revision,
        root_cell=root,
        **fields,
    )


def encode(config: CellConfig | System, *, readable_only: bool = False) -> bytes:
    """Return a configuration as the bytes of a file.

    :param readable_only: write a dialect too that boards are not to be given, as tests do.
    :raises CellError: a value has no place in the dialect, and which one.
    """
    dialect = named(config.dialect)
    if dialect.unwritable is not None and not readable_only:
        raise CellError(f"cannot write dialect {dialect.name}: {dialect.unwritable}", "write mainline or omnivisor")
    if not isinstance(config, System):
        return _pack_cell(config, dialect)
    if dialect.system is None:
        raise CellError(f"cannot write a system configuration in dialect {dialect.name}: its layout is not known")
    values = {name: getattr(config, name) for name in config.__struct_fields__}
    values["signature"] = _pack_signature(config.signature, config.architecture)
    values["platform"] = _pack_platform(config)
    return _pack_members("system", values, dialect.system) + _pack_cell(config.root_cell, dialect)


def encoded_size(cell: CellConfig) -> int:
    """Return the bytes that a cell takes in its dialect."""
    dialect = named(cell.dialect)
    return size_of({array.counter: len(getattr(cell, array.name)) for array in dialect.arrays}, dialect)


def _pack_cell(cell: CellConfig, dialect: Dialect) -> bytes:
    _refuse_strangers(cell, dialect)
    values = {name: getattr(cell, name) for name in cell.__struct_fields__}
    values["signature"] = _pack_signature(cell.signature, cell.architecture)
    for array in dialect.arrays:
        values[array.counter] = len(values[array.name])
        if values[array.counter] >= _COUNT_MAX:
            raise CellError(f"{array.name}: too many elements")
    arrays = (_pack_array(array, values[array.name]) for array in dialect.arrays)
    return b"".join([_pack_members("cell", values, dialect.header), *arrays])


def _pack_array(array: Array, elements: Any) -> bytes:
    if array.layout is None:
        return bytes(elements)
    return b"".join(_pack(f"{array.name}[{n}]", element, array.layout) for n, element in enumerate(elements))


def _refuse_strangers(cell: CellConfig, dialect: Dialect) -> None:
    """Refuse values that the dialect has no place for: leaving them out would change what the cell is."""
    own = {array.name for array in dialect.arrays} | {member.name for member in dialect.header}
    for name in cell.__struct_fields__:
        default = getattr(_EMPTY, name)
        if name not in own and name not in ("dialect", "architecture") and getattr(cell, name) != default:
            raise CellError(f"{name}: dialect {dialect.name} has no place for it", "use a dialect that has")
    if not any(member.name == "colors" for member in dialect.memory.members):
        for number, region in enumerate(cell.memory):
            if region.colors:
                raise CellError(f"memory[{number}].colors: dialect {dialect.name} has no cache colours")


def _pack_signature(signature: bytes, architecture: int | None) -> bytes:
    if architecture is None:
        packed = signature
    elif 0 <= architecture <= 255:
        packed = signature + bytes([architecture])
    else:
        raise CellError(f"architecture: {architecture} does not fit into a byte")
    if len(packed) != 6:
        raise CellError(f"signature: {signature!r} does not go with architecture {arch_name(architecture)}")
    return packed


def _pack_platform(system: System) -> bytes:
    layout = next(table for table in (*PLATFORMS.values(), ARM_PLATFORM) if isinstance(system.platform, table.type))
    if layout is not PLATFORMS.get(system.architecture, RAW_PLATFORM):
        raise CellError(f"platform: {layout.name} does not go with architecture {arch_name(system.architecture)}")
    packed = _pack("platform", system.platform, layout)
    assert len(packed) == PLATFORM_SIZE
    return packed


def _pack(where: str, value: msgspec.Struct, layout: Layout) -> bytes:
    return _pack_members(where, {name: getattr(value, name) for name in value.__struct_fields__}, layout.members)


def _pack_members(where: str, values: Mapping[str, Any], table: Iterable[Member]) -> bytes:
    return b"".join(_pack_member(f"{where}.{member.name}", values[member.name], member) for member in table)


def _pack_member(where: str, value: Any, member: Member) -> bytes:
    kind = member.kind
    if isinstance(kind, Layout):
        parts = value if member.times > 1 else (value,)
        if len(parts) != member.times:
            raise CellError(f"{where}: {len(parts)} elements where the layout has {member.times}")
        return b"".join(_pack(where, part, kind) for part in parts)
    if kind[-1] in "sr":
        raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        if len(raw) > member.size or (kind[-1] == "r" and len(raw) != member.size):
            raise CellError(f"{where}: {value!r} has {len(raw)} bytes, the field has {member.size}")
        return bytes(raw.ljust(member.size, b"\0"))
    numbers = value if isinstance(value, tuple) else (value,)
    try:
        return struct.pack("<" + kind, *numbers)
    except struct.error as exc:
        raise CellError(f"{where}: {value!r} does not fit: {exc}") from None


def _replace(cell: CellConfig, **changes: Any) -> CellConfig:
    fields = {name: getattr(cell, name) for name in cell.__struct_fields__}
    return CellConfig(**{**fields, **changes})


_EMPTY: Final = CellConfig(dialect="", signature=b"", architecture=None, revision=0, name="")
