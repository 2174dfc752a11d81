# SPDX-License-Identifier: Apache-2.0
"""The engines that can be told of a runtime named ``runphi``: one module each, and the table of them.

A module says which file is changed and makes its new text of the old one, byte for byte the same but for what is
added. ``change.py`` shows it, writes it, and takes it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async.errors import RunphiError
from runphi_async.install.engines import containerd, crio, docker, podman

if TYPE_CHECKING:
    from collections.abc import Callable

#: the name of the runtime in every engine
RUNTIME: Final = "runphi"


class Engine(NamedTuple):
    """One engine.

    :ivar path: the file that is changed.
    :ivar edit: makes the new text of the old one; raises RunphiError when it cannot.
    :ivar after: what to do so that the engine reads it.
    :ivar use: how a container is started then.
    """

    path: str
    edit: Callable[[str], str]
    after: str
    use: str


ENGINES: Final = {
    "containerd": Engine(
        containerd.PATH,
        containerd.edit,
        "systemctl restart containerd",
        "Kubernetes: a RuntimeClass with handler runphi; ctr: ctr run --runc-binary /usr/sbin/runphi …",
    ),
    "podman": Engine(podman.PATH, podman.edit, "", "podman --runtime runphi run …"),
    "docker": Engine(docker.PATH, docker.edit, "systemctl reload docker", "docker run --runtime runphi …"),
    "cri-o": Engine(crio.PATH, crio.edit, "systemctl restart crio", "Kubernetes: a RuntimeClass with handler runphi"),
}


def engine(name: str) -> Engine:
    """Return an engine by its name.

    :raises RunphiError: there is none.
    """
    if name not in ENGINES:
        raise RunphiError(f"unknown engine {name!r}", f"known: {', '.join(ENGINES)}")
    return ENGINES[name]
