# SPDX-License-Identifier: Apache-2.0
"""All containers of this machine: what verbs find them by, and what they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import anyio

from backends import detect
from backends.base import Accounting
from backends.detect import Detection
from runphi_async.container.container import Container
from runphi_async.container.initprocess import InitProcess
from runphi_async.container.recorded import Shared
from runphi_async.errors import NotFoundError
from runphi_async.host import clock
from runphi_async.record.eventlog import EventLog
from runphi_async.record.store import Store
from runphi_async.terminals.hypervisor import follow_hypervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backends.base import Backend
    from runphi_async.config.schema import Config
    from runphi_async.container.assembly import Assembly
    from runphi_async.container.running import Running
    from runphi_async.host.clock import Timekeeper
    from runphi_async.host.processes import Process
    from runphi_async.partition.logplan import LogPlan
    from runphi_async.record.store import Record


class Nursery(Protocol):
    """Where containers live: a task group that is entered, and outlives them."""

    async def start(self, func: Callable[..., Coroutine[Any, Any, Any]], *args: Any, name: object = None) -> Any:
        """Start a task, and return what it gives back when it has begun."""
        ...


class Supervisor:
    """All containers of this machine, and who may talk to them.

    :param nursery: its containers' tasks run there.
    """

    def __init__(self, config: Config, run_dir: str, nursery: Nursery, time: Timekeeper = clock.SYSTEM) -> None:
        self.config = config
        self.store = Store(run_dir)
        self.events = EventLog(time)
        self.hypervisor = follow_hypervisor(config)
        self.detection = Detection(config, run_dir, {}, self.hypervisor)
        self.shared = Shared(config, self.store, self.events, time)
        self.guests: dict[str, Container] = {}
        self._nursery = nursery
        #: containers that are still to be taken over from an earlier supervisor; set, and gone, when they are
        self.adopting: dict[str, anyio.Event] = {}
        #: set when all of them are, and what they have is compared with the hypervisors
        self.recovered = anyio.Event()
        self.recovered.set()  # until a recovery begins there is nothing to wait for
        #: members of this group may use consoles; -1: there is none
        self.group = -1

    async def backend(self, name: str) -> Backend:
        """Return a backend of which something may be claimed; "": that of the configuration.

        :raises PlanError: there is none of that name.
        """
        found = await detect.backend(name or self.config.backend, self.detection)
        if isinstance(found, Accounting):  # what it frees as nobody's must not be what is claimed now
            await self.recovered.wait()
        return found

    def logged(self) -> list[LogPlan]:
        """Return the logs of all containers."""
        return [log for container in self.guests.values() for log in container.logs(None)]

    def adopt(self, record: Record) -> Container:
        """Keep a container; from now on verbs find it."""
        container = self.guests[record.name] = Container(record, self.shared)
        return container

    def holds(self, container: Container) -> bool:
        """Whether verbs find this very container, and not another one of its name, or none."""
        return self.guests.get(container.record.name) is container

    def drop(self, container: Container) -> None:
        """Forget a container, unless another one has its name by now; who follows its events learns it."""
        if self.holds(container):
            del self.guests[container.record.name]
        self.events.forget(container.directory)

    async def enliven(self, container: Container, assembly: Assembly, process: Process) -> Running:
        """Start the guest's own task, which owns assembly and process from here on; return what runs."""
        init = InitProcess(process, container.directory)
        running: Running = await self._nursery.start(
            container.live, assembly, init, name=f"guest {container.record.name}"
        )
        return running

    async def adopted(self, container_id: str) -> None:
        """Wait until whatever container goes by this id or name is taken over from an earlier supervisor."""
        for name, done in list(self.adopting.items()):
            if container_id in (name, self.guests[name].record.id):
                await done.wait()

    def find(self, container_id: str, root: str) -> Container:
        """Return the container ``container_id`` of ``root``.

        :raises NotFoundError: with the words engines know.
        """
        guest = self.guests.get(self.store.find(container_id, root))
        if guest is None:
            raise NotFoundError("container does not exist")
        if not guest.record.root:  # nothing of its record could be read: this is how it is called
            guest.record.id, guest.record.root = container_id, root
        return guest

    def by_name(self, name: str, root: str | None) -> Container:
        """Return the container a person means by its id alone, in whatever root it is.

        :raises NotFoundError: none has that id, or several (they are listed).
        """
        if root is not None:
            return self.find(name, root)
        found = [g for g in self.guests.values() if name in (g.record.id, g.record.name)]
        exact = [g for g in found if g.record.name == name and "@" in name]
        if len(found) == 1 or exact:
            return (exact or found)[0]
        if not found:
            raise NotFoundError("container does not exist", "runphi list shows what there is")
        where = ", ".join(f"{g.record.name} ({g.record.root})" for g in found)
        raise NotFoundError(f"container id {name!r} is ambiguous: {where}", "give --root, or the name with @")

    def reopen_logs(self) -> None:
        """Another program has renamed log files: go on in new ones."""
        for guest in self.guests.values():
            guest.reopen_logs()
        if self.hypervisor is not None:
            self.hypervisor.reopen()
