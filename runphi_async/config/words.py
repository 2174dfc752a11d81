# SPDX-License-Identifier: Apache-2.0
"""How keys, kinds and values of the configuration are written for people."""

from __future__ import annotations

import typing
from typing import Any, Final, Literal

import msgspec

from runphi_async.config.schema import Config, ConsoleRule
from runphi_async.config.section import BackendSection, Section, Size

#: the table behind which those of backends are listed
_BEFORE_BACKENDS: Final = "log"


def tables(section: Section) -> list[str]:
    """Return the fields of a table in the order in which people read them."""
    names = section.__struct_fields__
    backends = [name for name in names if isinstance(getattr(section, name), BackendSection)]
    others = [name for name in names if name not in backends]
    at = others.index(_BEFORE_BACKENDS) + 1 if backends else 0
    return [*others[:at], *backends, *others[at:]]


def keys(section: Section, prefix: str) -> list[tuple[str, object, Any]]:
    """List (key path, default, annotation) of every key of a table and of those below it, own keys first."""
    hints = typing.get_type_hints(type(section), include_extras=True)
    own: list[tuple[str, object, Any]] = []
    below: list[tuple[str, object, Any]] = []
    for field in tables(section):
        value = getattr(section, field)
        if isinstance(value, Section):
            below += keys(value, f"{prefix}{field}.")
        else:
            own.append((prefix + field, value, hints[field]))
    return own + below


def changed(config: Config) -> list[str]:
    """Return the keys that have not their defaults, as lines of the file."""
    usual = {path: value for path, value, _ in keys(type(config)(), "")}
    return [f"{path} = {as_toml(value)}" for path, value, _ in keys(config, "") if value != usual[path]]


def kind_words(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{as_toml(choice)}`" for choice in typing.get_args(kind))
    names: dict[Any, str] = {Size: "size", str: "text", bool: "boolean", float: "number", int: "number"}
    return names.get(kind, "list of tables" if kind == tuple[ConsoleRule, ...] else "list of texts")


def as_toml(value: object) -> str:
    if isinstance(value, Size):
        return f'"{value.text()}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    return msgspec.json.encode(value).decode()
