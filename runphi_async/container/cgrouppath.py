# SPDX-License-Identifier: Apache-2.0
"""Which cgroup a container asks for: ``linux.cgroupsPath`` in both of its forms."""

from __future__ import annotations

from runphi_async.errors import CgroupError
from runphi_async.host.cgroup import clean


def path_for(cgroups_path: str | None, container_id: str, *, systemd: bool = False) -> str:
    """Return the cgroup path that ``linux.cgroupsPath`` means, absolute, as seen from the hierarchy's root.

    :param systemd: the engine said ``--systemd-cgroup``: the path has the form ``slice:prefix:name``.
    """
    if not systemd:
        return clean(cgroups_path or f"/runphi/{container_id}")
    parts = (cgroups_path or f":runphi:{container_id}").split(":")
    if len(parts) != 3:
        raise CgroupError(f"cannot use cgroupsPath {cgroups_path!r} with --systemd-cgroup: not slice:prefix:name")
    slice_name, prefix, name = parts
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope"
    if "/" in unit:
        raise CgroupError(f"cannot use cgroupsPath {cgroups_path!r}: a systemd unit has no / in its name")
    return clean(f"{_expand_slice(slice_name or 'system.slice')}/{unit}")


def _expand_slice(name: str) -> str:
    """Return the path of a slice: systemd nests ``a-b.slice`` in ``a.slice``."""
    stem = name.removesuffix(".slice")
    if name == "-.slice":
        return "/"
    if stem == name or "/" in name or not all(stem.split("-")):
        raise CgroupError(f"cannot use systemd slice {name!r}: not a slice name", "such as system.slice")
    steps = stem.split("-")
    return "".join(f"/{'-'.join(steps[: n + 1])}.slice" for n in range(len(steps)))
