# SPDX-License-Identifier: Apache-2.0
"""The configuration as it is used: the common tables, and one of each backend in the table of backends.

``python -m backends.configured`` prints docs/reference/configuration.md, which a test keeps current.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from backends import detect
from runphi_async.config import loading
from runphi_async.config.reference import reference
from runphi_async.config.schema import Schema, composed
from runphi_async.config.section import BackendSection

if TYPE_CHECKING:
    from runphi_async.config.schema import Config


def schema() -> Schema:
    """Return what the file may say, and which variables of the environment stand for a key."""
    brought = detect.brought()
    tables = [(name, brings.section) for name, brings in brought.items() if brings.section is not None]
    stand_ins = {
        variable: f"{name}.{key}" for name, brings in brought.items() for variable, key in brings.environment.items()
    }
    return Schema(composed(*tables), stand_ins)


def load(path: str | None = None) -> Config:
    """Read the configuration file, as ``loading.load`` does."""
    return loading.load(path, schema())


def from_table(table: dict[str, Any]) -> Config:
    """Make a configuration of a decoded TOML document."""
    return loading.from_table(table, schema=schema())


def programs(config: Config) -> tuple[str, ...]:
    """Return the programs that backends run, by name or path."""
    tables = (getattr(config, name) for name in config.__struct_fields__)
    return tuple(name for table in tables if isinstance(table, BackendSection) for name in table.programs())


if __name__ == "__main__":
    sys.stdout.write(reference(schema().kind()))
