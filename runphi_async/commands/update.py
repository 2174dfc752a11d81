# SPDX-License-Identifier: Apache-2.0
"""`runphi update`: change the limits of a living container, as far as its guest can follow."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import anyio

from runphi_async import digits, regular
from runphi_async.commands.cli import find_or_pass
from runphi_async.errors import SpecError
from runphi_async.host.cgroup import Limits
from runphi_async.oci.spec import Resources, resources_from_bytes
from runphi_async.operations import update as operation
from runphi_async.terminals.console import read_some, reopen

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


#: Largest resources document, in bytes.
LARGEST: Final = 1 << 20
#: Seconds in which stdin must have said them.
PATIENCE: Final = 30.0


def arguments(parser: Parser) -> None:
    """Declare the verb's options: runc's."""
    parser.add_argument("--resources", "-r", metavar="FILE", help="JSON of the OCI linux.resources; - is stdin")
    parser.add_argument("--cpu-quota", type=digits.number, metavar="US")
    parser.add_argument("--cpu-period", type=digits.number, metavar="US")
    parser.add_argument("--cpu-share", type=digits.number, metavar="SHARES")
    parser.add_argument("--cpuset-cpus", metavar="LIST", default="")
    parser.add_argument("--cpuset-mems", metavar="LIST", default="")
    parser.add_argument("--memory", type=digits.number, metavar="BYTES")
    parser.add_argument("--memory-reservation", type=digits.number, metavar="BYTES", help="accepted, not applied")
    parser.add_argument("--memory-swap", type=digits.number, metavar="BYTES", help="accepted, not applied")
    parser.add_argument(
        "--pids-limit", type=digits.number, metavar="N", help="accepted, not applied: it is the guest's matter"
    )
    parser.add_argument("--blkio-weight", type=digits.number, metavar="N", help="accepted, not applied")
    parser.add_argument("id", metavar="ID")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Apply the CPU limits; say that a guest's memory cannot change while it lives."""
    guest = find_or_pass(supervisor, given.id, options)
    resources = await _read(call, given.resources) if given.resources else Resources()
    memory = given.memory or (resources.memory.limit if resources.memory is not None else None)
    await operation.update(guest, limits(given, resources), memory)


def limits(given: Namespace, resources: Resources) -> Limits:
    """Return the new limits: options win over the document; 0 means "as it is", as for engines."""
    cpu = resources.cpu
    return Limits(
        cpu_shares=given.cpu_share or (cpu.shares if cpu else None) or None,
        cpu_quota=given.cpu_quota or (cpu.quota if cpu else None) or None,
        cpu_period=given.cpu_period or (cpu.period if cpu else None) or None,
        cpuset_cpus=given.cpuset_cpus or (cpu.cpus if cpu else ""),
        cpuset_mems=given.cpuset_mems or (cpu.mems if cpu else ""),
    )


async def _read(call: Call, name: str) -> Resources:
    try:
        if name == "-":
            data = await _stdin(call)
        else:
            data = await anyio.to_thread.run_sync(regular.read, call.path(name), LARGEST)
    except TimeoutError:
        raise SpecError(f"cannot read the resources: stdin did not end within {PATIENCE:.0f} s") from None
    except OSError as exc:
        raise SpecError(f"cannot read the resources from {name}: {exc.strerror}") from exc
    return resources_from_bytes(data)


async def _stdin(call: Call) -> bytes:
    """Read the client's stdin on the loop: whoever never ends it keeps nobody else from being served."""
    source = reopen(call.fds[0], os.O_RDONLY)
    data = b""
    try:
        with anyio.fail_after(PATIENCE):
            while len(data) <= LARGEST and (more := await read_some(source, 1 << 16)):
                data += more
    finally:
        os.close(source)
    if len(data) > LARGEST:
        raise OSError(errno.EFBIG, f"larger than {LARGEST} bytes")
    return data
