# SPDX-License-Identifier: Apache-2.0
"""Configurations with some tables of backends, without a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends import detect
from backends.configured import schema

if TYPE_CHECKING:
    from runphi_async.config.schema import Config
    from runphi_async.config.section import BackendSection


def config(*tables: BackendSection) -> Config:
    """Return the defaults, but for these tables."""
    names = {brings.section: name for name, brings in detect.brought().items()}
    fields: dict[str, Any] = {names[type(table)]: table for table in tables}
    return schema().kind(**fields)
