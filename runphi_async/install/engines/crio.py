# SPDX-License-Identifier: Apache-2.0
"""CRI-O: a file of ours among those it reads beside crio.conf."""

from __future__ import annotations

from typing import Final

from runphi_async import wire
from runphi_async.install.engines import toml

PATH: Final = "/etc/crio/crio.conf.d/50-runphi.conf"
TABLE: Final = {"runtime_path": "/usr/sbin/runphi", "runtime_type": "oci", "runtime_root": wire.DEFAULT_ROOT}


def edit(text: str) -> str:
    """Return the file with our runtime in it."""
    return toml.add(text, PATH, ["crio", "runtime", "runtimes", "runphi"], TABLE)
