# SPDX-License-Identifier: Apache-2.0
"""podman: a file of ours among those it reads beside containers.conf."""

from __future__ import annotations

from typing import Final

from runphi_async.install.engines import toml

PATH: Final = "/etc/containers/containers.conf.d/50-runphi.conf"


def edit(text: str) -> str:
    """Return the file with our runtime in it."""
    return toml.add(text, PATH, ["engine", "runtimes"], {"runphi": ["/usr/sbin/runphi"]})
