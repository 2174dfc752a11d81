# SPDX-License-Identifier: Apache-2.0
"""`runphi spec`: write a sample config.json of a partitioned container into the bundle directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import msgspec

from runphi_async.errors import RunphiError
from runphi_async.oci.state import OCI_VERSION

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--bundle", "-b", metavar="DIR", default=".", help="where to write config.json")
    parser.add_argument("--linux", action="store_true", help="a Linux guest on the image's rootfs, not an inmate")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Write the sample; an existing file is left alone."""
    path = os.path.join(call.path(given.bundle), "config.json")
    data = msgspec.json.format(msgspec.json.encode(sample(linux=given.linux)), indent=4) + b"\n"
    try:
        await anyio.to_thread.run_sync(_write, path, data)
    except FileExistsError:
        raise RunphiError(f"cannot write {path}: it exists already", "remove it first") from None
    except OSError as exc:
        raise RunphiError(f"cannot write {path}: {exc.strerror}") from exc


def sample(*, linux: bool) -> dict[str, object]:
    """Return the sample configuration."""
    ask = "LINUX=1" if linux else "INMATE=/boot/inmate.elf"
    namespaces = ("pid", "ipc", "uts", "mount", "network")
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", ask],
            "cwd": "/",
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "runphi",
        "annotations": {"org.runphi.backend": "qemu"},
        "linux": {
            "resources": {"memory": {"limit": 268435456}, "cpu": {"quota": 100000, "period": 100000}},
            "namespaces": [{"type": kind} for kind in namespaces],
        },
    }


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
