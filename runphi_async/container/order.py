# SPDX-License-Identifier: Apache-2.0
"""What ``create`` is asked for, and who it needs for it: a register of containers, and somebody who forks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from runphi_async.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backends.base import Backend
    from runphi_async.container.assembly import Assembly
    from runphi_async.container.container import Container
    from runphi_async.container.recorded import Shared
    from runphi_async.container.running import Running
    from runphi_async.host.processes import Process
    from runphi_async.oci import spec as oci
    from runphi_async.partition.logplan import LogPlan
    from runphi_async.record.store import Record


class Order(NamedTuple):
    """What the command line asked for; paths absolute.

    :ivar attached: no engine: the terminal, if any, is shown by the client itself (``run``).
    """

    id: str
    root: str
    bundle: str
    pid_file: str | None
    console_socket: str | None
    systemd_cgroup: bool
    attached: bool = False

    def check(self, spec: oci.Spec) -> None:
        """Refuse what cannot be had, whatever the guest is.

        :raises SpecError: with the rule.
        """
        self._check_paths()
        self._check_terminal(spec)

    def _check_paths(self) -> None:
        """Refuse what the record, which is JSON, cannot hold: file names may be any bytes."""
        for path in (self.root, self.bundle):
            try:
                path.encode()
            except UnicodeEncodeError:
                shown = os.fsencode(path).decode("utf-8", "backslashreplace")
                raise SpecError(f"cannot use {shown}: the path is not UTF-8", "rename the directory") from None

    def _check_terminal(self, spec: oci.Spec) -> None:
        wanted = spec.process is not None and spec.process.terminal
        if wanted and not self.console_socket and not self.attached:
            raise SpecError(
                "cannot allocate tty if runphi will detach without setting console socket",
                "give --console-socket, or set process.terminal to false",
            )
        if not wanted and self.console_socket:
            raise SpecError(
                "cannot use console socket if runphi will not detach or allocate tty",
                "drop --console-socket, or set process.terminal to true",
            )


class Register(Protocol):
    """All containers, as far as the making of one goes."""

    @property
    def shared(self) -> Shared:
        """What all of them have in common."""
        ...

    async def backend(self, name: str) -> Backend:
        """Return a backend of which something may be claimed; "": that of the configuration.

        :raises PlanError: there is none of that name.
        """
        ...

    def logged(self) -> Iterable[LogPlan]:
        """Return the logs of all containers."""
        ...

    def adopt(self, record: Record) -> Container:
        """Keep a container; from now on verbs find it."""
        ...

    def drop(self, container: Container) -> None:
        """Forget a container."""
        ...

    async def enliven(self, container: Container, assembly: Assembly, process: Process) -> Running:
        """Start the container's own task, which owns assembly and process from here on."""
        ...


class Spawner(Protocol):
    """Who forks the init process, so that the engine's shim inherits it.

    :ivar cwd: what relative paths of the command line start from.
    """

    cwd: str

    @property
    def fds(self) -> Sequence[int]:
        """The engine's stdin, stdout and stderr; they stay its own."""
        ...

    async def spawn(self, cwd: str, argv: Sequence[str], fds: Sequence[int]) -> int:
        """Fork a process with exactly ``fds`` as 0, 1, …; return its pid. It waits for ``go``."""
        ...

    async def go(self) -> None:
        """Let the process that ``spawn`` made begin."""
        ...
