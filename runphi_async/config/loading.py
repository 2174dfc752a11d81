# SPDX-License-Identifier: Apache-2.0
"""Reading the configuration file, and saying what is wrong with it."""

from __future__ import annotations

import difflib
import os
import tomllib
import typing
from typing import Any, Final, Literal

import msgspec

from runphi_async.config.schema import COMMON, Config, Schema
from runphi_async.config.section import Section, Size
from runphi_async.config.words import as_toml, keys, kind_words
from runphi_async.errors import ConfigError
from runphi_async.oci.spec import locate

#: read when nothing else is named
DEFAULT_PATH: Final = "/etc/runphi/config.toml"


#: environment variable that names another file
PATH_VARIABLE: Final = "RUNPHI_CONFIG"


def load(path: str | None = None, schema: Schema = COMMON) -> Config:
    """Read the configuration file.

    :param path: a file that must exist; None for that of $RUNPHI_CONFIG, else the default file if there.
    :param schema: what it may say.
    """
    named = path or os.environ.get(PATH_VARIABLE)
    name = named or DEFAULT_PATH
    try:
        with open(name, "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        if not named:
            asked = ", ".join(f"${variable}" for variable in schema.environment if os.environ.get(variable))
            return from_table(_with_environment({}, schema), asked, schema)
        raise ConfigError(f"cannot read configuration {name}: not found", "leave it out to use the defaults") from None
    except OSError as exc:
        raise ConfigError(f"cannot read configuration {name}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:  # int's own of too many digits, too
        raise ConfigError(f"cannot read configuration {name}: not TOML: {exc}", "see https://toml.io") from exc
    return from_table(_with_environment(table, schema), name, schema)


def _with_environment(table: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """Add what the environment says and the file leaves open."""
    for variable, path in schema.environment.items():
        name, _, key = path.partition(".")
        wished, section = os.environ.get(variable), table.get(name, {})
        if wished and isinstance(section, dict) and key not in section:
            table = {**table, name: {**section, key: wished}}
    return table


def from_table(table: dict[str, Any], name: str = "config", schema: Schema = COMMON) -> Config:
    """Make a Config of a decoded TOML document; `name` is what errors call the file."""
    usual = schema.kind()
    _refuse_unknown(table, usual, name)
    try:
        return msgspec.convert(table, schema.kind, dec_hook=_convert_size)
    except msgspec.ValidationError as exc:
        place, problem = locate(exc)
        key = place.removeprefix("$").removeprefix(".") or "the file"
        raise ConfigError(f"{name}: {key}: {problem}", _choices(key, usual)) from exc


def _refuse_unknown(table: dict[str, Any], usual: Config, name: str) -> None:
    """Refuse keys that there are not, in whatever table."""
    open_tables: list[tuple[str, dict[str, Any], Section]] = [("", table, usual)]
    while open_tables:
        prefix, given, section = open_tables.pop(0)
        for key, value in given.items():
            if key not in section.__struct_fields__:
                raise ConfigError(f"{name}: {prefix}{key}: unknown key", _did_you_mean(key, prefix, usual))
            below = getattr(section, key)
            if isinstance(below, Section) and isinstance(value, dict):
                open_tables.append((f"{prefix}{key}.", value, below))


def _choices(key: str, usual: Config) -> str:
    for path, default, annotation in keys(usual, ""):
        kind = typing.get_args(annotation)[0]
        if path == key and typing.get_origin(kind) is Literal:
            return f"choose one of {kind_words(kind).replace('`', '')}"
        if path == key:
            return f"the default is {as_toml(default)}"
    return "docs/reference/configuration.md lists the keys"


def _did_you_mean(key: str, prefix: str, usual: Config) -> str:
    """Name the key most like the one given: of the same table, or the same name in another one."""
    paths = [path for path, *_ in keys(usual, "")]
    whole = prefix + key
    close = difflib.get_close_matches(whole, paths, 1, 0.75)
    close += [path for path in paths if path.rpartition(".")[2] == key]
    close += difflib.get_close_matches(key, paths, 1, 0.75)
    if close:
        return f"did you mean {close[0]}?"
    here = sorted({path.removeprefix(prefix).partition(".")[0] for path in paths if path.startswith(prefix)})
    return "known here: " + ", ".join(here)


def _convert_size(kind: type, value: Any) -> Any:
    if kind is Size:
        return Size.parse(value)
    raise NotImplementedError(kind)
