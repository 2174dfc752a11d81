# SPDX-License-Identifier: Apache-2.0
"""The reference page of the configuration file.

``python -m runphi_async.config.reference`` prints docs/reference/configuration.md, which a test keeps current.
"""

from __future__ import annotations

import sys
import typing

from runphi_async.config.loading import DEFAULT_PATH, PATH_VARIABLE
from runphi_async.config.schema import Config, Section
from runphi_async.config.words import as_toml, kind_words


def reference() -> str:
    """Return the reference page of the configuration file, in Markdown."""
    lines = [
        "# Configuration",
        "",
        f"The supervisor reads `{DEFAULT_PATH}`, or the file that `${PATH_VARIABLE}` names, as it starts.",
        "The file is [TOML](https://toml.io). Every key is optional, and so is the file; an unknown key is",
        "an error.",
        'Sizes are numbers of bytes, or texts such as `"64 KiB"` or `"1 GiB"`.',
        "",
        "<!-- made by `python -m runphi_async.config.reference`: change runphi_async/config/schema.py -->",
    ]
    _describe(Config(), "", lines)
    return "\n".join(lines) + "\n"


def _describe(section: Section, path: str, lines: list[str]) -> None:
    lines += ["", f"## `[{path}]`" if path else "## Top of the file", "", type(section).__doc__ or "", ""]
    lines += ["| key | kind | default | meaning |", "|---|---|---|---|"]
    hints = typing.get_type_hints(type(section), include_extras=True)
    below = []
    for field in section.__struct_fields__:
        value = getattr(section, field)
        if isinstance(value, Section):
            below.append((value, f"{path}.{field}" if path else field))
            continue
        kind, *metas = typing.get_args(hints[field])
        meaning = next(meta.description for meta in metas if meta.description)
        lines.append(f"| `{field}` | {kind_words(kind)} | `{as_toml(value)}` | {meaning} |")
    for value, name in below:
        _describe(value, name, lines)


if __name__ == "__main__":
    sys.stdout.write(reference())
