# SPDX-License-Identifier: Apache-2.0
"""The features document of the OCI runtime specification, printed by the verb `features`.

Containers that ask for no partition run in the real runc, so the runtime can do what runc can: its document,
when there is one, is the base, and what partitions add is laid over it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

#: range of config.json versions that are read
OCI_VERSION_MIN = "1.0.0"
OCI_VERSION_MAX = "1.0.2"

#: hooks that run for a partition; the two others need a process inside the container's namespaces
PARTITION_HOOKS = ("prestart", "createRuntime", "poststart", "poststop")

#: prefix of our annotations
PREFIX = "org.runphi."


def features(version: str, *, backends: Iterable[str] = (), runc: bytes = b"") -> bytes:
    """Return the features document, indented like runc's, with a newline.

    :param version: of this runtime.
    :param backends: names of the backends this installation knows.
    :param runc: output of ``runc features``; empty, or not JSON, when that runc is absent or too old.
    """
    document = _decode(runc)
    if not document:
        document = {
            "ociVersionMin": OCI_VERSION_MIN,
            "ociVersionMax": OCI_VERSION_MAX,
            "hooks": list(PARTITION_HOOKS),
            "mountOptions": [],
            "linux": {
                "namespaces": [],
                "capabilities": [],
                "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False},
                "seccomp": {"enabled": False},
                "apparmor": {"enabled": False},
                "selinux": {"enabled": False},
            },
        }
    annotations = document.get("annotations")
    document["annotations"] = {
        **(annotations if isinstance(annotations, dict) else {}),
        f"{PREFIX}version": version,
        f"{PREFIX}backends": ",".join(backends),
        f"{PREFIX}hooks": ",".join(PARTITION_HOOKS),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=4) + b"\n"


def _decode(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
