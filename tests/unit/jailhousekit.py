# SPDX-License-Identifier: Apache-2.0
"""What several tests of the Jailhouse backend need: recorded bytes, and any configuration at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from backends.jailhouse import codec, layout, model

if TYPE_CHECKING:
    from backends.jailhouse.layout import Dialect, Layout, Member

DATA = Path(__file__).parent.parent / "data" / "jailhouse"


def recorded_bytes() -> bytes:
    """The recorded beginning of the stock demo cell."""
    lines = (DATA / "inmate-demo.hex").read_text().splitlines()
    return b"".join(bytes.fromhex(line[10:49].replace(" ", "")) for line in lines if not line.startswith("#"))


def values(member: Member) -> st.SearchStrategy[Any]:
    """Any value of a member, up to the largest that its field holds."""
    kind = member.kind
    if isinstance(kind, layout.Layout):
        one = structs(kind)
        return st.tuples(*[one] * member.times) if member.times > 1 else one
    size = member.size
    if kind[-1] == "r":
        return st.binary(min_size=size, max_size=size)
    if kind[-1] == "s":
        return st.binary(max_size=size).map(lambda raw: raw.rstrip(b"\0").decode("utf-8", "surrogateescape"))
    count = int(kind[:-1] or 1)
    number = st.integers(0, (1 << 8 * (size // count)) - 1)
    return st.tuples(*[number] * count) if count > 1 else number


def structs(table: Layout) -> st.SearchStrategy[Any]:
    """Any value of a structure."""
    return st.builds(table.type, **{member.name: values(member) for member in table.members})


def cells(dialect: Dialect) -> st.SearchStrategy[model.Cell]:
    """Any cell of a dialect, its own signature and revision apart."""
    counters = {array.counter for array in dialect.arrays}
    fields: dict[str, st.SearchStrategy[Any]] = {
        member.name: values(member)
        for member in dialect.header
        if member.name not in counters and member.name not in ("signature", "revision")
    }
    for array in dialect.arrays:
        fields[array.name] = (
            st.binary(max_size=16) if array.layout is None else st.lists(structs(array.layout), max_size=2).map(tuple)
        )
    arch = st.sampled_from(list(model.Arch))
    return st.builds(
        lambda architecture, **rest: codec.new_cell(architecture=architecture, dialect=dialect.name, **rest),
        architecture=arch,
        **fields,
    )


def systems(dialect: Dialect) -> st.SearchStrategy[model.System]:
    """Any system of a dialect."""
    assert dialect.system is not None
    own = ("signature", "revision", "platform")
    fields = {member.name: values(member) for member in dialect.system if member.name not in own}

    def build(cell: model.Cell, architecture: model.Arch, platforms: dict[Any, Any], **rest: Any) -> model.System:
        known = architecture if len(dialect.systems[0][0]) == 5 else None
        return codec.new_system(cell, architecture, platform=platforms[known], **rest)

    platforms = st.fixed_dictionaries({arch: structs(table) for arch, table in layout.PLATFORMS.items()})
    arch = st.sampled_from(list(model.Arch))
    return st.builds(build, cell=cells(dialect), architecture=arch, platforms=platforms, **fields)
