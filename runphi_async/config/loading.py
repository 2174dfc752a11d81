# SPDX-License-Identifier: Apache-2.0
"""Reading the configuration file, and saying what is wrong with it."""

from __future__ import annotations

import difflib
import os
import tomllib
import typing
from typing import Any, Final, Literal

import msgspec

from runphi_async.config.schema import Config, Section, Size
from runphi_async.config.words import as_toml, keys, kind_words
from runphi_async.errors import ConfigError
from runphi_async.oci.spec import locate

#: read when nothing else is named
DEFAULT_PATH: Final = "/etc/runphi/config.toml"


#: environment variable that names another file
PATH_VARIABLE: Final = "RUNPHI_CONFIG"


#: environment variable that stands for ``qemu.accel`` where the file does not name it: tests and hurried people force
#: software emulation by it
ACCEL_VARIABLE: Final = "RUNPHI_ACCEL"


def load(path: str | None = None) -> Config:
    """Read the configuration file.

    :param path: a file that must exist; None for that of $RUNPHI_CONFIG, else the default file if there.
    """
    named = path or os.environ.get(PATH_VARIABLE)
    name = named or DEFAULT_PATH
    try:
        with open(name, "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        if not named:
            return from_table(_with_environment({}), f"${ACCEL_VARIABLE}")
        raise ConfigError(f"cannot read configuration {name}: not found", "leave it out to use the defaults") from None
    except OSError as exc:
        raise ConfigError(f"cannot read configuration {name}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:  # int's own of too many digits, too
        raise ConfigError(f"cannot read configuration {name}: not TOML: {exc}", "see https://toml.io") from exc
    return from_table(_with_environment(table), name)


def _with_environment(table: dict[str, Any]) -> dict[str, Any]:
    """Add what the environment says and the file leaves open."""
    wished, section = os.environ.get(ACCEL_VARIABLE), table.get("qemu", {})
    if not wished or not isinstance(section, dict) or "accel" in section:
        return table
    return {**table, "qemu": {**section, "accel": wished}}


def from_table(table: dict[str, Any], name: str = "config") -> Config:
    """Make a Config of a decoded TOML document; `name` is what errors call the file."""
    _refuse_unknown(table, Config(), name, "")
    try:
        return msgspec.convert(table, Config, dec_hook=_convert_size)
    except msgspec.ValidationError as exc:
        place, problem = locate(exc)
        key = place.removeprefix("$").removeprefix(".") or "the file"
        raise ConfigError(f"{name}: {key}: {problem}", _choices(key)) from exc


def _refuse_unknown(table: dict[str, Any], section: Section, name: str, prefix: str) -> None:
    known = section.__struct_fields__
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{name}: {prefix}{key}: unknown key", _did_you_mean(key, prefix))
        below = getattr(section, key)
        if isinstance(below, Section) and isinstance(value, dict):
            _refuse_unknown(value, below, name, f"{prefix}{key}.")


def _choices(key: str) -> str:
    for path, default, annotation in keys(Config(), ""):
        kind = typing.get_args(annotation)[0]
        if path == key and typing.get_origin(kind) is Literal:
            return f"choose one of {kind_words(kind).replace('`', '')}"
        if path == key:
            return f"the default is {as_toml(default)}"
    return "docs/reference/configuration.md lists the keys"


def _did_you_mean(key: str, prefix: str) -> str:
    """Name the key most like the one given: of the same table, or the same name in another one."""
    paths = [path for path, *_ in keys(Config(), "")]
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
