# SPDX-License-Identifier: Apache-2.0
"""Taking over a QEMU guest that an earlier supervisor made, wherever that one left it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from backends.qemu import again, runstate
from backends.qemu.runstate import Standing
from backends.qemu.watch import LOOK_PATIENCE
from runphi_async.errors import BackendError
from runphi_async.lifeline import stub

if TYPE_CHECKING:
    from backends.base import Told
    from backends.qemu.beside import Beside
    from backends.qemu.vmm import Vmm
    from backends.qemu.watch import RunWatch

log = logging.getLogger(__name__)


async def adopt(vmm: Vmm, beside: Beside, watch: RunWatch, told: Told) -> bool | None:
    """Open everything again; ask QEMU whether the guest had been started. As ``backends.base.Driver.adopt``."""
    vmm.wires.open()
    vmm.init.replaying = True  # what the record holds was acted on by our predecessor
    vmm.ending.attend(told)
    decided = again.load(vmm.directory)
    vmm.second = again.is_handed_over(vmm.directory)
    if vmm.second and decided is not None:
        watch.restart(again.ACCEL)
        vmm.wires.listen(decided.events_from, decided.control_from)
    else:
        vmm.wires.listen()
    vmm.wires.poll()
    vmm.init.replaying = False
    watch.recall(vmm.remains.clock(), vmm.heard.started)
    if vmm.second and decided is not None:
        told.again(decided.reason)
        if stub.read_pid(vmm.directory) is None:
            stub.say_again(vmm.directory)
        if not vmm.ended:
            watch.take_up(decided)
            watch.start(vmm.tasks)
            return decided.started
    if vmm.ended or vmm.hold() is None:
        asyncio.get_running_loop().call_soon(vmm.first_or_last)
        watch.start(vmm.tasks)
        return vmm.heard.started if vmm.has_spare else None
    return await _adopt_living(vmm, beside, watch)


async def _adopt_living(vmm: Vmm, beside: Beside, watch: RunWatch) -> bool:
    vmm.monitor.connect_soon()
    await beside.take_up(stub.read_pid(vmm.directory))
    started = vmm.heard.started
    try:
        state = runstate.status_of(await vmm.monitor.execute("query-status", patience=LOOK_PATIENCE))
        started = runstate.standing(state) is not Standing.BEFORE
    except BackendError as exc:
        # A full console of an aarch64 guest stops its QEMU from answering: the guest is there all the same.
        log.warning("%s: adopted without an answer: %s", vmm.name, exc)
    watch.recall(vmm.remains.clock(), started)
    watch.look()
    watch.start(vmm.tasks)
    return started
