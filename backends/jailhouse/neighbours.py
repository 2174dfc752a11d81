# SPDX-License-Identifier: Apache-2.0
"""What a new cell is checked against before the tool is asked: the system configuration, and all other cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from backends.jailhouse import cellfile, check, codec, model
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.jailhouse.plan import CellPlan
    from backends.jailhouse.sysfs import View


class Neighbours(NamedTuple):
    """What there is beside a cell.

    :ivar system: the system configuration, if one is named.
    """

    system: model.System | None
    cells: list[check.Named]


def beside(name: str, cells: Mapping[str, CellPlan], system_config: str, view: View) -> Neighbours:
    """Return what the new cell must go with (blocks).

    :param name: of the new cell's record, and ``cells`` the plans of all, by their records.
    :param system_config: path of the file that the hypervisor was enabled with, "" for none.
    :raises BackendError: the system configuration is that of another board, or cannot be read.
    """
    root, system = view.root, _system(system_config)
    if system is not None and root is not None and system.root_cell.name != root.name:
        raise BackendError(
            f"cannot make cell '{cells[name].name}': the root cell here is '{root.name}', and "
            f"jailhouse.system_config is that of '{system.root_cell.name}'",
            "name the file that the hypervisor was enabled with",
        )
    others = {other: plan for other, plan in cells.items() if other != name}
    return Neighbours(system, [check.Named(f"'{other}'", cellfile.config(plan)) for other, plan in others.items()])


def _system(path: str) -> model.System | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            config = codec.decode(file.read())
    except OSError as exc:
        raise BackendError(f"cannot read jailhouse.system_config {path}: {exc.strerror}") from exc
    if not isinstance(config, model.System):
        raise BackendError(f"cannot use jailhouse.system_config {path}: it is the configuration of a cell")
    return config
