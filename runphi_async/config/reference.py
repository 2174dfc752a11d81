# SPDX-License-Identifier: Apache-2.0
"""The reference page of the configuration file; ``backends.configured`` prints it with the tables of all backends."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING

from runphi_async.config.loading import DEFAULT_PATH, PATH_VARIABLE
from runphi_async.config.section import Section
from runphi_async.config.words import as_toml, kind_words, tables

if TYPE_CHECKING:
    from runphi_async.config.schema import Config


def reference(usual: Config) -> str:
    """Return the reference page of the configuration file, in Markdown.

    :param usual: the configuration of an empty file.
    """
    lines = [
        "# Configuration",
        "",
        f"The supervisor reads `{DEFAULT_PATH}`, or the file that `${PATH_VARIABLE}` names, as it starts.",
        "The file is [TOML](https://toml.io). Every key is optional, and so is the file; an unknown key is",
        "an error.",
        'Sizes are numbers of bytes, or texts such as `"64 KiB"` or `"1 GiB"`.',
        "",
        "<!-- made by `python -m backends.configured` of runphi_async/config/schema.py and backends' settings.py -->",
    ]
    _describe(usual, "", lines)
    return "\n".join(lines) + "\n"


def _describe(section: Section, path: str, lines: list[str]) -> None:
    lines += ["", f"## `[{path}]`" if path else "## Top of the file", "", type(section).__doc__ or "", ""]
    lines += ["| key | kind | default | meaning |", "|---|---|---|---|"]
    hints = typing.get_type_hints(type(section), include_extras=True)
    below = []
    for field in tables(section):
        value = getattr(section, field)
        if isinstance(value, Section):
            below.append((value, f"{path}.{field}" if path else field))
            continue
        kind, *metas = typing.get_args(hints[field])
        meaning = next(meta.description for meta in metas if meta.description)
        lines.append(f"| `{field}` | {kind_words(kind)} | `{as_toml(value)}` | {meaning} |")
    for value, name in below:
        _describe(value, name, lines)
