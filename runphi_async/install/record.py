# SPDX-License-Identifier: Apache-2.0
"""What is written down before anything is changed: small JSON files in ``root.STATE``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from runphi_async.errors import RunphiError
from runphi_async.install.root import STATE, remove

if TYPE_CHECKING:
    from runphi_async.install.root import Root


def path(name: str) -> str:
    """Return where a record is."""
    return f"{STATE}/{name}.json"


def load(root: Root, name: str) -> dict[str, Any] | None:
    """Return a record; None when there is none."""
    data = root.read(path(name))
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as exc:
        raise RunphiError(
            f"cannot read {root(path(name))}: {exc}", "it says what was changed here; restore it from a backup"
        ) from None
    if not isinstance(found, dict):
        raise RunphiError(f"cannot read {root(path(name))}: not an object")
    return found


def save(root: Root, name: str, content: dict[str, Any]) -> None:
    """Write a record. The directories that are made for it are named in it, so that they go with it."""
    if "record_directories" not in content:
        before = load(root, name) or {}
        made = before.get("record_directories", root.missing_directories(STATE))
        content = {**content, "record_directories": made}
    root.write(path(name), json.dumps(content, indent=1).encode() + b"\n")


def forget(root: Root, name: str) -> None:
    """Remove a record, and the directories that were made for it as far as they are empty."""
    content = load(root, name) or {}
    remove(root(path(name)))
    made = [str(directory) for directory in content.get("record_directories", [])]
    if not made:
        return
    others = names(root)
    if others:  # the last one that goes takes them with it
        other = load(root, others[0]) or {}
        save(root, others[0], {**other, "record_directories": made})
        return
    remove_empty(root, made)


def names(root: Root) -> list[str]:
    """Return the names of all records."""
    try:
        found = os.listdir(root(STATE))
    except FileNotFoundError:
        return []
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))


def remove_empty(root: Root, directories: list[str]) -> None:
    """Remove directories that were made here and are empty, the innermost first."""
    for directory in sorted(directories, key=len, reverse=True):
        try:
            os.rmdir(root(directory))
        except OSError:
            continue
