# SPDX-License-Identifier: Apache-2.0
"""One QEMU guest: FIFOs, QMP, helper processes, and how it ended.

QEMU is a child of the init stub. Commands go over a QMP socket that a new supervisor may connect to again; events
come over a second monitor on a FIFO, which keeps them while no supervisor runs.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

import msgspec

from backends.base import Evidence, Inheritance, Told, Verdict
from backends.qemu import comm, exitcode, virtiofs
from backends.qemu.monitor import Monitor
from backends.qemu.taps import Taps
from consoles import shmfiles
from consoles.sources.fifo import LineChannel, open_fifo
from runphi_async import stub
from runphi_async.errors import BackendError
from runphi_async.partition import channels
from runphi_async.partition.channels import Channel
from runphi_async.partition.spec import GuestKind
from runphi_async.processes import Process

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from consoles.sources.base import Source
    from runphi_async.partition.spec import PartitionPlan

#: Descriptor number of the QMP listening socket in QEMU: the first behind the stub's own.
QMP_FD: Final = len(stub.Fd)
#: QEMU has ended but its parent has not written the status down: after this many seconds the parent must be dead.
STATUS_PATIENCE: Final = 2.0
_CAPABILITIES: Final = b'{"execute":"qmp_capabilities"}\n'
_FIFOS: Final = ("ev.in", "ev.out", "ctl.in", "ctl.out")


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What a new supervisor must know of a guest to adopt it."""

    kind: GuestKind
    arch: str
    vcpus: int
    pins: tuple[int, ...]
    share: virtiofs.Share | None = None
    #: the channel that is the console
    console: Channel | None = None
    #: it has interfaces
    net: bool = False


class QemuDriver:
    """Drives one QEMU process; see ``backends.base.Driver``."""

    def __init__(self, memory: Memory, directory: str, plan: PartitionPlan | None = None, virtiofsd: str = "") -> None:
        self._memory = memory
        self._plan = plan
        self._directory = directory
        self._dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.command: tuple[str, ...] = plan.argv if plan is not None else ()
        self._share = virtiofs.Server(virtiofsd, directory) if memory.share or (plan and plan.virtiofs) else None
        self._nics = Taps(directory) if memory.net else None
        self._monitor = Monitor(self._dir_fd)
        self._listener: socket.socket | None = None
        self._fds: dict[str, int] = {}
        self._channels: list[LineChannel] = []
        self._vmm: Process | None = None
        self._told: Told | None = None
        self._written = 0
        self._late: asyncio.TimerHandle | None = None
        self._control_exit: int | None = None
        self._control_error: str | None = None
        self._events: list[tuple[str, dict[str, object]]] = []
        self._destroyed = False
        self._replaying = False

    # Section: making it

    async def prepare(self) -> None:
        """Make FIFOs, files, the QMP socket and the file server."""
        assert self._plan is not None
        for name, data in self._plan.files.items():
            path = os.path.join(self._directory, name)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        for name in _FIFOS:
            os.mkfifo(name, 0o600, dir_fd=self._dir_fd)
        self._open_fifos()
        os.write(self._fds["ev.in"], _CAPABILITIES)
        await asyncio.to_thread(self._make_channels, self._plan)
        self._listener = self._monitor.listen()
        if self._nics is not None:
            await asyncio.to_thread(self._nics.make, self._plan.netns or "", self._plan.macs)
        if self._share is not None and self._plan.virtiofs is not None:
            await asyncio.to_thread(self._share.start, self._plan.virtiofs, self._plan.binds)

    def _make_channels(self, plan: PartitionPlan) -> None:
        for channel in plan.channels:
            if channel.made:
                try:
                    shmfiles.make(self._directory, channel.name, channel.size)
                except OSError as exc:
                    raise BackendError(
                        f"cannot make the memory of channel '{channel.name}' in {shmfiles.SHM}: {exc.strerror}",
                        "make the channel smaller or /dev/shm larger",
                    ) from exc

    def _open_fifos(self) -> None:
        for name in _FIFOS:
            self._fds[name] = open_fifo(name, self._dir_fd)

    def inheritance(self) -> Inheritance:
        """Return the event and control FIFOs and the QMP socket."""
        assert self._listener is not None
        taps, network = (self._nics.fds, self._nics.network) if self._nics is not None else ((), "")
        extra = (self._listener.fileno(), *taps)
        return Inheritance(self._fds["ev.out"], self._fds["ctl.out"], extra, network)

    def console(self) -> Source | None:
        """Return the channel that is the console; None: QEMU's chardev ``pipe`` is the FIFO pair."""
        channel = self._memory.console
        return channels.source(channel, self._directory) if channel is not None else None

    def helpers(self) -> list[int]:
        """Return the file server's pid."""
        return self._share.pids() if self._share is not None else []

    # Section: watching it

    async def watch(self, told: Told) -> None:
        """Listen on every channel; the QMP connection is made in the background."""
        self._told = told
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._nics is not None:
            self._nics.handed_over()
        self._listen("ev", self._on_event)
        self._listen("ctl", self._on_control)
        self._monitor.connect_soon()

    def _listen(self, channel: str, on_line: Callable[[bytes], None]) -> None:
        record = os.open(f"{channel}.log", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._dir_fd)
        self._channels.append(LineChannel(os.dup(self._fds[f"{channel}.out"]), record, on_line))

    def _on_event(self, line: bytes) -> None:
        try:
            message = msgspec.json.decode(line, type=dict[str, object])
        except msgspec.MsgspecError:
            return  # a line cut short by QEMU's death
        name, data = message.get("event"), message.get("data")
        if isinstance(name, str):
            self._events.append((name, data if isinstance(data, dict) else {}))

    def _on_control(self, line: bytes) -> None:
        word, _, rest = line.decode("ascii", "replace").partition(" ")
        if word == "written" and rest.isdigit():
            self._written = int(rest)
        elif word == "exit" and rest.isdigit() and self._control_exit is None:
            self._control_exit = int(rest) & 0xFF
            if self._told is not None:
                self._told.done(self._written)
        elif word == "error" and self._control_error is None:
            self._control_error = rest[:400]
            if self._told is not None and not self._replaying:
                self._told.say(self._control_error)

    def rang(self) -> None:
        """The stub says that QEMU's pid or status is written down."""
        if stub.read_status(self._directory) is not None:
            self._ended()
        elif self._destroyed:
            self.destroy()

    def _hold_vmm(self) -> Process | None:
        if self._vmm is None:
            pid = stub.read_pid(self._directory)
            if pid is not None:
                try:
                    self._vmm = Process(pid)
                except ProcessLookupError:
                    return None
                self._vmm.watch(self._vmm_gone)
        return self._vmm

    def _vmm_gone(self) -> None:
        if not self._ending_seen():
            self._late = asyncio.get_running_loop().call_later(STATUS_PATIENCE, self._ended)

    def _ending_seen(self) -> bool:
        self.rang()
        return self._told is None

    def _ended(self) -> None:
        told, self._told = self._told, None
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if told is not None:
            told.ended()

    async def adopt(self, told: Told) -> bool | None:
        """Open everything again; ask QEMU whether the guest had been started."""
        self._open_fifos()
        self._replaying = True  # what the record holds was acted on by our predecessor
        await self.watch(told)
        for channel in self._channels:
            channel.poll()
        self._replaying = False
        if stub.read_status(self._directory) is not None or self._hold_vmm() is None:
            asyncio.get_running_loop().call_soon(self._ended)
            return None
        if self._nics is not None:
            await asyncio.to_thread(self._nics.take_up, stub.read_pid(self._directory))
        state = await self._monitor.execute("query-status")
        return isinstance(state, dict) and state.get("status") not in ("prelaunch", "inmigrate")

    # Section: driving it

    async def start(self) -> None:
        """Pin the vCPUs, connect the guest to the container's interfaces and let it run."""
        if self._memory.pins:
            await self._pin()
        if self._nics is not None:
            lines = await asyncio.to_thread(self._nics.connect)
            if self._memory.kind is GuestKind.LINUX:
                for line in (*lines, "net-done"):
                    self._tell(line)
        await self._monitor.execute("cont")
        self._hold_vmm()

    async def _pin(self) -> None:
        cpus = await self._monitor.execute("query-cpus-fast")
        if not isinstance(cpus, list):
            raise BackendError("cannot pin the vCPUs: QEMU does not list them")
        for cpu, host in zip(cpus, self._memory.pins, strict=False):
            try:
                os.sched_setaffinity(int(cpu["thread-id"]), {host})
            except OSError as exc:
                raise BackendError(
                    f"cannot pin a vCPU to host CPU {host}: {exc.strerror}",
                    "give a cpuset of online CPUs",
                ) from exc

    async def suspend(self) -> None:
        """Stop all vCPUs."""
        await self._monitor.execute("stop")

    async def resume(self) -> None:
        """Let all vCPUs go on."""
        await self._monitor.execute("cont")

    async def deliver(self, signal: int) -> bool:
        """Linux guests: our init passes it to the container's process."""
        if self._memory.kind is not GuestKind.LINUX:
            return False
        self._tell(f"signal {signal}")
        return True

    async def stop(self) -> bool:
        """Press the power button, where there is one."""
        if self._memory.kind is not GuestKind.KERNEL:
            return False
        await self._monitor.execute("system_powerdown")
        return True

    def destroy(self) -> None:
        """Kill QEMU; one that the stub is just about to start is killed when the bell rings."""
        self._destroyed = True
        vmm = self._hold_vmm()
        if (vmm is None or not vmm.send(9)) and self._late is None:
            self._late = asyncio.get_running_loop().call_later(STATUS_PATIENCE, self._ended)

    def resize(self, rows: int, cols: int) -> None:
        """Tell a Linux guest's init."""
        if self._memory.kind is GuestKind.LINUX:
            self._tell(f"winsize {rows} {cols}")

    async def send_break(self) -> bool:
        """Let the guest's UART see a break. A Linux guest's console is a virtio port, which has no such thing."""
        if self._memory.kind is GuestKind.LINUX:
            return False
        await self._monitor.execute("chardev-send-break", id=comm.CONSOLE)
        return True

    def end_of_input(self, total: int) -> None:
        """Tell a Linux guest's init; the number keeps the word from overtaking the bytes."""
        if self._memory.kind is GuestKind.LINUX:
            self._tell(f"eof {total}")

    def _tell(self, line: str) -> None:
        fd = self._fds.get("ctl.in", -1)
        if fd >= 0:
            try:
                os.write(fd, line.encode() + b"\n")
            except BlockingIOError as exc:
                raise BackendError(f"cannot tell the guest {line!r}: its init does not listen") from exc

    # Section: its end

    def settle(self, evidence: Evidence) -> Verdict:
        """Weigh QEMU's status, its events, the guest's own words and what the host knows."""
        for channel in self._channels:
            channel.poll()
        return exitcode.verdict(
            exitcode.Evidence(
                kind=self._memory.kind,
                arch=self._memory.arch,
                vmm_status=stub.read_status(self._directory),
                guest_exit=self._read("guest.exit"),
                control_exit=self._control_exit,
                control_error=self._control_error,
                qmp_events=self._events,
                oom_kills=evidence.oom_kills,
                vmm_log_tail=self._read(stub.VMM_LOG)[-2000:].decode("utf-8", "replace"),
                killed_by=evidence.killed_by,
                started=evidence.booted,
            )
        )

    def _read(self, name: str) -> bytes:
        try:
            with open(os.path.join(self._directory, name), "rb") as file:
                return file.read(1 << 20)
        except OSError:
            return b""

    async def release(self) -> None:
        """Close everything; the file server ends with QEMU, or is killed. Channels' memory lives while it is mapped."""
        self._told = None
        shmfiles.unlink(self._directory)
        if self._late is not None:
            self._late.cancel()
        await self._monitor.close()
        for channel in self._channels:
            channel.close()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        if self._listener is not None:
            self._listener.close()
        if self._vmm is not None:
            self._vmm.close()
        if self._share is not None:
            await asyncio.to_thread(self._share.stop)
        if self._nics is not None:
            await asyncio.to_thread(self._remove_nics, self._nics)
        if self._dir_fd >= 0:
            os.close(self._dir_fd)
            self._dir_fd = -1

    @staticmethod
    def _remove_nics(nics: Taps) -> None:
        nics.take_up(None)
        nics.remove()

    async def bury(self) -> None:
        """QEMU and its file server were in the container's cgroup."""
        await self.release()
