# SPDX-License-Identifier: Apache-2.0
"""Which of a pod's annotations hold for one of its containers; ``read_bundle`` asks before anybody reads them.

Kubernetes lets people annotate pods, not containers, and engines hand a pod's annotations to each of its containers.
So an annotation may name its container behind a slash: ``org.runphi.inmate/plc`` is about the container ``plc`` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runphi_async.errors import SpecError
from runphi_async.partition.request import PREFIX, is_pause

if TYPE_CHECKING:
    from collections.abc import Mapping

#: where engines say what a pod calls the container: containerd, CRI-O
_NAMES: Final = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")


def of_container(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return a container's annotations: what names it counts before what is said of the whole pod.

    :raises SpecError: one names a container, and the engine does not say which container this is.
    """
    common: dict[str, str] = {}
    own: dict[str, str] = {}
    name = next((annotations[key] for key in _NAMES if key in annotations), None)
    for key, value in annotations.items():
        setting, slash, container = key.partition("/")
        if not (slash and setting.startswith(PREFIX)):
            common[key] = value
        elif name is None and not is_pause(annotations):
            raise SpecError(
                f"cannot understand annotation {key}: the engine does not say which container of a pod this is",
                f"write {setting}",
            )
        elif container == name:
            own[setting] = value
    return common | own
