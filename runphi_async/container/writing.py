# SPDX-License-Identifier: Apache-2.0
"""What a creation writes: the first record, the files beside it, and at last the pid that engines wait for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runphi_async.container import cgrouppath
from runphi_async.errors import BackendError, RunphiError, SpecError
from runphi_async.host.files import boot_id, write_atomically
from runphi_async.partition import conf, logplan
from runphi_async.partition.spec import GuestKind
from runphi_async.record.lifecycle import Event, Status
from runphi_async.record.store import VERSION, Record
from runphi_async.terminals.console import FIFOS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runphi_async.config.schema import Config
    from runphi_async.container.order import Order
    from runphi_async.container.planning import Planned
    from runphi_async.container.recorded import Recorded, Shared
    from runphi_async.oci import spec as oci
    from runphi_async.partition.logplan import LogOrder, LogPlan


def first_record(name: str, order: Order, spec: oci.Spec, planned: Planned, shared: Shared) -> Record:
    """Return the record of a container in the making; its logs are not planned yet.

    :param name: of the record, claimed.
    """
    path = spec.linux.cgroups_path if spec.linux is not None else None
    return Record(
        version=VERSION,
        id=order.id,
        name=name,
        root=order.root,
        bundle=order.bundle,
        rootfs=planned.spec.rootfs,
        backend=planned.backend.name,
        status=Status.CREATING,
        created=shared.clock.wall(),
        boot_id=boot_id(),
        terminal=bool(spec.process and spec.process.terminal),
        attached=order.attached,
        annotations=dict(spec.annotations),
        # The name, not the id: the same id in two roots must not mean the same cgroup.
        cgroup=cgrouppath.path_for(path, name, systemd=order.systemd_cgroup),
        channels=planned.plan.channels,
        console_channel=planned.plan.console,
        plan=planned.backend.remember(planned.plan),
    )


def plan_logs(record: Record, asked: tuple[LogOrder, ...] | None, config: Config, others: Iterable[LogPlan]) -> None:
    """Put the plan of the container's logs into its record; a file belongs to one container.

    :param asked: what the annotation says, None without one.
    :param others: the logs of all other containers.
    :raises SpecError: a file is another container's, or what was asked for makes no sense.
    """
    logs = logplan.plan(config.log, record.name, asked)
    path = logplan.clash(logs, list(others))
    if path is not None:
        raise SpecError(f"cannot log to {path}: another container does", "give each its own path")
    record.log_dir = os.path.join(config.log.dir, record.name) if logs else ""
    record.logs = logs


def write_files(container: Recorded, raw: bytes, planned: Planned) -> None:
    """Write the files of a record directory, and make its FIFOs (blocks).

    :param raw: config.json as it was read.
    """
    directory, record, spec, plan = container.directory, container.record, planned.spec, planned.plan

    def text(file: str, content: str) -> None:
        write_atomically(os.path.join(directory, file), content.encode())

    def link(file: str, target: str | None) -> None:
        if target:
            os.symlink(target, os.path.join(directory, file))

    write_atomically(os.path.join(directory, "config.json"), raw)
    text(f"config{record.name}.conf", conf.render(plan))
    text("assignedCPUs", ",".join(str(cpu) for cpu in plan.pins) + "\n")
    link("bundle", record.bundle)
    link("rootfs", spec.rootfs)
    link("inmate", spec.inmate)
    link("linux", spec.kernel if spec.kind is not GuestKind.INMATE else None)
    logs = record.logs or ()
    link("console", next((log.path for log in logs if log.kind == "raw"), logs[0].path if logs else None))
    for fifo in (*FIFOS, "exit", "bell"):
        os.mkfifo(os.path.join(directory, fifo), 0o600)


def publish(container: Recorded, pid_file: str | None) -> None:
    """Make it known that the container is created.

    :raises BackendError: it has ended meanwhile.
    :raises RunphiError: the pid file cannot be written.
    """
    if container.settled.is_set():
        raise BackendError(f"cannot create the guest: {container.record.reason}")
    container.lifecycle.tell(Event.MADE)
    container.save()
    pid = b"%d" % container.record.pid
    write_atomically(os.path.join(container.directory, "pidfile"), pid)
    if pid_file is not None:
        try:
            write_atomically(pid_file, pid, 0o644)
        except OSError as exc:
            raise RunphiError(f"cannot write the pid file {pid_file}: {exc.strerror}") from exc
