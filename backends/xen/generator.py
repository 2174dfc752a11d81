# SPDX-License-Identifier: Apache-2.0
"""The Xen config generator: six decisions, six Xen halves, one domain.

:func:`plan` is pure; facts about host and image are gathered before, by ``gathering.py``, and what the container asks
of Xen alone is decoded by ``wishes.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.xen import boot, comm, cpu, dev, mem, net, root, xlcfg
from backends.xen.plan import CONFIG, XenPlan

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts, PlanConfig
    from backends.xen.wishes import XenWishes
    from backends.xen.xlcfg import Value
    from runphi_async.partition.spec import GuestSpec

#: for the record and its reader; the driver runs it in the record directory
COMMAND: Final = ("xl", "create", "-q", "-e", "-p", CONFIG)


def plan(spec: GuestSpec, wishes: XenWishes, facts: HostFacts, config: PlanConfig, *, pv_note: bool) -> XenPlan:
    """Plan the partition.

    :param wishes: what the container asks of Xen alone.
    :param pv_note: whether the image has the notes of a PV kernel.
    :raises PlanError: when it cannot be had; the message says what is missing.
    """
    memory = mem.choose(spec, facts, config)
    cpus = cpu.choose(spec, facts)
    booting = boot.choose(spec, facts, config)
    chosen = boot.guest_type(spec, booting, facts, pv_note)
    channels = comm.choose(spec, wishes, facts)
    network = net.choose(spec, wishes, facts)
    entries: dict[str, Value] = {
        **boot.keys(spec, booting, chosen),
        **mem.keys(memory, facts),
        **cpu.keys(spec, wishes, cpus, facts),
        **net.keys(wishes, config.bridges, network),
        **dev.keys(wishes, facts, config),
        # Nobody carries these out with -e; they tell what we do: a domain that shut down is kept until we saw why.
        "on_poweroff": "preserve",
        "on_reboot": "preserve",
        "on_crash": "preserve",
    }
    handing = root.choose(spec, wishes, facts, config, memory)
    xlcfg.render(entries)  # what cannot be written is refused now, not when it is made
    return XenPlan(
        backend="xen",
        kind=spec.kind,
        arch=booting.arch,
        memory_bytes=memory.bytes,
        vcpus=cpus.count,
        pins=cpus.pins,
        argv=COMMAND,
        id=spec.id,
        keys=entries,
        rootfs=spec.rootfs if handing.how else None,
        rootfs_by=handing.how,
        disk_dir=handing.disk_dir,
        netns=spec.netns if network.macs else None,
        macs=network.macs,
        channels=(*spec.channels, *channels.extra),
        console=spec.console,
        handed=boot.handed(spec, booting),
        initrd=root.initrd(spec, facts, handing, network),
        explain=(
            *booting.explain,
            boot.explain(chosen),
            memory.explain,
            *cpus.explain,
            *cpu.explain(entries),
            *handing.explain,
            *network.explain,
            *channels.explain,
        ),
    )
