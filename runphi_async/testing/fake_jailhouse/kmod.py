# SPDX-License-Identifier: Apache-2.0
"""``modprobe``, ``insmod`` and ``rmmod`` of the board, for its one module, in the words of the real ones."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from runphi_async.testing.fake_jailhouse import machine
from runphi_async.testing.fake_jailhouse.place import Errno, Place
from runphi_async.testing.fake_jailhouse.rootsystem import here

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the tool that the first word names."""
    tool, words = os.path.basename(argv[0]), [word for word in argv[1:] if word != "-r"]
    place = Place()
    remove = tool == "rmmod" or "-r" in argv
    rule = place.injected(tool, None) or {}
    error = rule.get("stderr") or (_remove(place, tool, words) if remove else _insert(place, tool, words))
    if error:
        sys.stderr.write(f"{error}\n")
    return int(rule.get("status", bool(error)))


def _insert(place: Place, tool: str, words: list[str]) -> str:
    """Load the module; return what went wrong."""
    name = words[0] if words else ""
    if tool == "insmod" and not os.path.exists(name):
        return f"insmod: ERROR: could not load module {name}: No such file or directory"
    if tool == "modprobe" and (name != "jailhouse" or not _listed(place)):
        return f"modprobe: FATAL: Module {name} not found in directory {here('/lib/modules/RELEASE')}"
    if place.state()["module"]:
        return f"insmod: ERROR: could not insert module {name}: File exists" if tool == "insmod" else ""
    machine.insert(place)
    return ""


def _listed(place: Place) -> bool:
    try:
        return "jailhouse.ko:" in (place.root / here("lib/modules/RELEASE/modules.dep")).read_text()
    except OSError:
        return False


def _remove(place: Place, tool: str, words: list[str]) -> str:
    prefix = "rmmod: ERROR:" if tool == "rmmod" else "modprobe: FATAL:"
    if words != ["jailhouse"] or not place.state()["module"]:
        return f"{prefix} Module {words[0] if words else ''} is not currently loaded"
    try:
        machine.remove(place)
    except Errno:
        return f"{prefix} Module jailhouse is in use"
    return ""
