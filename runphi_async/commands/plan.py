# SPDX-License-Identifier: Apache-2.0
"""`runphi plan`: say how a bundle's partition would be made, and why; nothing is made, claimed or written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import msgspec

from backends import detect
from runphi_async.container.bundle import is_wanted, read_bundle
from runphi_async.errors import SpecError
from runphi_async.partition import conf
from runphi_async.partition.guest import guest_spec
from runphi_async.record.store import check_id

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--backend", metavar="NAME", help="plan for this hypervisor instead of the container's")
    parser.add_argument("--id", metavar="ID", help="id of the container (default: name of the bundle)")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", default=".", help="bundle directory (default: here)")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Plan, and print the plan with the sentence behind each decision."""
    bundle = await anyio.to_thread.run_sync(os.path.realpath, call.path(given.bundle))
    asked = await anyio.to_thread.run_sync(read_bundle, bundle, supervisor.config.annotations.of_images)
    if asked.request is None or not (given.backend or is_wanted(asked, supervisor.config)):
        raise SpecError(
            f"cannot plan {bundle}: it asks for no partition, so the ordinary runtime would run it",
            "docs/reference/annotations-and-image-contract.md says how a container asks for one",
        )
    request, config = asked.request, supervisor.config
    container_id = given.id if given.id is not None else os.path.basename(bundle) or "container"
    if given.id is not None:
        check_id(given.id)
    name = given.backend or request.backend or config.backend
    planner = await detect.backend(name, supervisor.detection)
    spec = await anyio.to_thread.run_sync(guest_spec, request, asked.spec, container_id, bundle, config.inmate)
    plan = await planner.plan(spec)
    if given.format == "json":
        files = {name: len(data) for name, data in plan.files.items()}  # a RAM disk is nothing to read
        document = {**msgspec.to_builtins(msgspec.structs.replace(plan, files={})), "files": files}
        await call.out(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    else:
        await call.out(conf.render(plan))
