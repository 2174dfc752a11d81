# SPDX-License-Identifier: Apache-2.0
"""One QEMU guest: FIFOs, QMP, helper processes, and how it ended.

QEMU is a child of the init stub. Commands go over a QMP socket that a new supervisor may connect to again; events
come over a second monitor on a FIFO, which keeps them while no supervisor runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Final

from backends.base import Abilities, Evidence, Inheritance, Told, Verdict
from backends.ending import Ending
from backends.files import write_files
from backends.guest import handed
from backends.guest.initchannel import InitChannel
from backends.qemu import again, comm, exitcode, making, runstate, virtiofs, words
from backends.qemu.boot import HANDED
from backends.qemu.dev import EXIT_FILE
from backends.qemu.monitor import PATIENCE, Monitor
from backends.qemu.remains import Remains
from backends.qemu.runstate import Standing
from backends.qemu.second import SecondTry, unblamed
from backends.qemu.settings import Qemu
from backends.qemu.signals import Signals
from backends.qemu.taps import Taps
from backends.qemu.watch import LOOK_PATIENCE, RunWatch
from backends.qemu.wires import Wires
from consoles.sharedmem import shmfiles
from runphi_async import regular
from runphi_async.aio.owned import OwnedTasks
from runphi_async.errors import BackendError
from runphi_async.lifeline import stub
from runphi_async.lifeline.child import STATUS_PATIENCE, StubChild
from runphi_async.partition import channels
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from backends.qemu.heard import Heard
    from backends.qemu.machine import QemuPlan
    from backends.qemu.memory import Memory
    from consoles.sources.base import Source
    from runphi_async.host.processes import Process

log = logging.getLogger(__name__)

#: Descriptor number of the QMP listening socket in QEMU: the first of ours.
QMP_FD: Final = stub.FIRST_EXTRA
#: The parent was told to start QEMU once more: after this many seconds it must be dead, or the machine is.
AGAIN_PATIENCE: Final = 10.0


class QemuDriver:
    """Drives one QEMU process; see ``backends.base.Driver``.

    :param blame: told why KVM failed a guest which then ran in software.
    """

    def __init__(
        self,
        memory: Memory,
        directory: str,
        plan: QemuPlan | None = None,
        config: Qemu | None = None,
        blame: Callable[[str], Awaitable[None]] = unblamed,
    ) -> None:
        config = config or Qemu()
        self.memory = memory
        self._plan = plan
        self.directory = directory
        self.name = os.path.basename(directory)
        self._dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.command: tuple[str, ...] = plan.argv if plan is not None else ()
        self.again: tuple[str, ...] = plan.again if plan is not None else ()
        self.overhead_bytes = int(config.overhead_bytes)
        self._patience = config.stop_seconds
        self.share = virtiofs.Server(config.virtiofsd, directory) if memory.share or (plan and plan.virtiofs) else None
        self.nics = Taps(directory) if memory.net else None
        self._tasks = OwnedTasks(self._broke)
        self.monitor = Monitor(self._dir_fd, self._tasks)
        self._listener: socket.socket | None = None
        self.wires = Wires(self._dir_fd, lambda event: self.watching.heard(event), self._on_word)
        self.remains = Remains(directory)
        self._child = StubChild(directory, self._first_or_last, self.over)
        self._ending = Ending()
        self._init = InitChannel(self._ending, self._tell)
        #: the second VMM is up to the stub, or runs
        self.second = False
        self.watching: RunWatch = RunWatch(
            self,
            SecondTry(self, blame),
            kernel=memory.kind is GuestKind.LINUX,
            accel=memory.accel,
            seconds=config.init_seconds,
        )
        self._signals = Signals(self._init, lambda: self.heard, lambda: self.watching.clock.at(time.monotonic()))
        self._changed = asyncio.Event()

    @property
    def abilities(self) -> Abilities:
        """A Linux guest has our init, a kernel of the container's a power button; a virtio port has no breaks."""
        match self.memory.kind:
            case GuestKind.LINUX:
                able = Abilities(signals=self._signals, resizes=self._init, takes_eof=self._init, hears_bell=self)
            case GuestKind.KERNEL:
                able = Abilities(stops=self, breaks=self, hears_bell=self)
            case GuestKind.INMATE:
                able = Abilities(breaks=self, hears_bell=self)
        return able._replace(patience=self._patience)

    # Section: making it

    async def prepare(self) -> None:
        """Make FIFOs, files, the QMP socket and the file server."""
        assert self._plan is not None
        await asyncio.to_thread(write_files, self.directory, self._plan.files)
        await asyncio.to_thread(handed.hand_over, self._plan.handed, self.directory, self._plan.memory_bytes)
        self.wires.make()
        await asyncio.to_thread(making.make_channels, self.directory, self._plan.channels)
        self._listener = self.monitor.listen()
        if self.nics is not None:
            await asyncio.to_thread(self.nics.make, self._plan.netns or "", self._plan.macs)
        if self.share is not None and self._plan.virtiofs is not None:
            await asyncio.to_thread(self.share.start, self._plan.virtiofs, self._plan.binds)

    def inheritance(self) -> Inheritance:
        """Return the event and control FIFOs and the QMP socket."""
        assert self._listener is not None
        taps = self.nics.fds if self.nics is not None else ()
        return Inheritance(self.wires.kept, (self._listener.fileno(), *taps))

    @property
    def network(self) -> str:
        """Path of the namespace with the guest's taps."""
        return self.nics.network if self.nics is not None else ""

    def console(self) -> Source | None:
        """Return the channel that is the console; None: QEMU's chardev ``pipe`` is the FIFO pair."""
        channel = self.memory.console
        return channels.source(channel, self.directory) if channel is not None else None

    def helpers(self) -> list[int]:
        """Return the file server's pid."""
        return self.share.pids() if self.share is not None else []

    # Section: watching it

    async def watch(self, told: Told) -> None:
        """Listen on every channel; the QMP connection is made in the background."""
        self._ending.attend(told)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self.nics is not None:
            self.nics.handed_over()
        self.wires.listen()
        self.monitor.connect_soon()
        self.watching.start(self._tasks)

    def _broke(self, task: str, exc: BaseException) -> None:
        """A task of ours has failed: nobody looks after the guest any more, so it ends."""
        self.fail(self._ending.broke(task, exc))
        if self.vmm_ended:
            self.over()

    @property
    def told(self) -> Told | None:
        """Who hears of the guest; None when its end was told."""
        return self._ending.told

    @property
    def heard(self) -> Heard:
        """What was heard of this VMM."""
        return self.wires.heard

    def _on_word(self, word: str) -> None:
        if not word:
            self.remains.forget_clock()
            self._forget_handed()  # there is no second try from here on
            self.watching.look()
        else:
            self._init.act(word, self.heard)

    def rang(self) -> None:
        """The stub says that QEMU's pid or status is written down."""
        self._changed.set()
        self._child.rang()

    @property
    def vmm_ended(self) -> bool:
        """Whether QEMU has ended and its status is known."""
        return self._child.ended

    @property
    def destroyed(self) -> bool:
        """Whether the guest is to end."""
        return self._child.killed

    @property
    def is_over(self) -> bool:
        """Whether the end was told."""
        return self.told is None

    @property
    def is_monitored(self) -> bool:
        """Whether there is a QEMU that could answer."""
        return self._child.begun

    def _first_or_last(self) -> None:
        """QEMU has ended: the guest with it, unless it may be started once more."""
        self._changed.set()
        self.wires.poll()
        if self.memory.again and not self.second and not self.destroyed and self.told is not None:
            self.watching.look()
        else:
            self.over()

    def hold_vmm(self) -> Process | None:
        """Return QEMU's process, None where it is gone or not there yet."""
        return self._child.hold()

    def over(self) -> None:
        """The guest has ended."""
        self._child.over()
        self._ending.once()
        self._changed.set()
        self.watching.look()

    async def adopt(self, told: Told) -> bool | None:
        """Open everything again; ask QEMU whether the guest had been started."""
        self.wires.open()
        self._init.replaying = True  # what the record holds was acted on by our predecessor
        self._ending.attend(told)
        decided = again.load(self.directory)
        self.second = again.is_handed_over(self.directory)
        if self.second and decided is not None:
            self.watching.restart(again.ACCEL)
            self.wires.listen(decided.events_from, decided.control_from)
        else:
            self.wires.listen()
        self.wires.poll()
        self._init.replaying = False
        self.watching.recall(self.remains.clock(), self.heard.started)
        if self.second and decided is not None:
            told.again(decided.reason)
            if stub.read_pid(self.directory) is None:
                stub.say_again(self.directory)
            if not self.vmm_ended:
                self.watching.take_up(decided)
                self.watching.start(self._tasks)
                return decided.started
        if self.vmm_ended or self.hold_vmm() is None:
            asyncio.get_running_loop().call_soon(self._first_or_last)
            self.watching.start(self._tasks)
            return self.heard.started if self.memory.again and not self.second else None
        return await self._adopt_living()

    async def _adopt_living(self) -> bool:
        self.monitor.connect_soon()
        if self.nics is not None:
            await asyncio.to_thread(self.nics.take_up, stub.read_pid(self.directory))
        started = self.heard.started
        try:
            state = runstate.status_of(await self.monitor.execute("query-status", patience=LOOK_PATIENCE))
            started = runstate.standing(state) is not Standing.BEFORE
        except BackendError as exc:
            # A full console of an aarch64 guest stops its QEMU from answering: the guest is there all the same.
            log.warning("%s: adopted without an answer: %s", self.name, exc)
        self.watching.recall(self.remains.clock(), started)
        self.watching.look()
        self.watching.start(self._tasks)
        return started

    # Section: driving it

    async def start(self) -> None:
        """Pin the vCPUs, connect the guest to the container's interfaces and let it run."""
        first = not self.second
        try:
            async with self.watching.turn:
                await self.begin()
        except BackendError as exc:
            if not first or not await self.watching.rescued(exc.msg):
                raise
            async with self.watching.turn:
                if self.watching.wish is Standing.BEFORE:
                    await self.begin()

    async def begin(self) -> None:
        if self.memory.pins:
            await making.pin(self.monitor, self.memory.pins)
        if self.nics is not None and b"net-done" not in self.wires.told():
            lines = await asyncio.to_thread(self.nics.connect)
            if self.memory.kind is GuestKind.LINUX:
                for line in (*lines, "net-done"):
                    self._tell(line)
        await self._command("cont", Standing.RUNNING)
        self.hold_vmm()
        if not self.memory.again or self.second:
            await asyncio.to_thread(self._forget_handed)  # a QEMU that answers has loaded them

    def _forget_handed(self) -> None:
        handed.forget(self.directory, HANDED)

    async def _command(self, command: str, wish: Standing) -> None:
        before = self.watching.wish
        self.watching.asked(wish)  # first: a supervisor that is killed here must find the clock running
        try:
            # one that may be given up for another is not waited for longer than its guest is
            await self.monitor.execute(
                command, patience=min(PATIENCE, self.watching.limit if self.memory.again else PATIENCE)
            )
        except BackendError:
            if before is not None:
                self.watching.asked(before)
            raise

    async def suspend(self) -> None:
        """Stop all vCPUs."""
        async with self.watching.turn:
            await self._command("stop", Standing.PAUSED)

    async def resume(self) -> None:
        """Let all vCPUs go on."""
        async with self.watching.turn:
            await self._command("cont", Standing.RUNNING)

    async def stop(self) -> bool:
        """Press the power button."""
        await self.monitor.execute("system_powerdown", patience=LOOK_PATIENCE)
        return True

    def destroy(self) -> None:
        """Kill QEMU; one that the stub is just about to start is killed when the bell rings."""
        if not self.second:
            again.forget(self.directory)
        up_to_the_stub = self.second and not self.is_monitored  # which must not start what nobody would end
        self._child.kill(AGAIN_PATIENCE if up_to_the_stub else STATUS_PATIENCE)

    def fail(self, reason: str) -> None:
        """Destroy a guest that will never run (again), and remember why."""
        self.remains.fail(reason)
        self.destroy()

    async def send_break(self) -> None:
        """Let the guest's UART see a break."""
        await self.monitor.execute("chardev-send-break", id=comm.CONSOLE)

    def _tell(self, line: str) -> None:
        self.wires.tell(line, keep=self.memory.again and not self.second)

    # Section: what the second try asks for

    def renew(self) -> None:
        """A second VMM takes the place of the first: let go of that."""
        self._child.renew()
        self.watching.restart(again.ACCEL)
        self.second = True

    async def new_monitor(self) -> None:
        """Connect to the second VMM from now on."""
        await self.monitor.close()
        self.monitor = Monitor(self._dir_fd, self._tasks)

    async def ended_within(self, seconds: float) -> bool:
        """Wait a moment for the first VMM's end; False: it lives, or has been replaced already."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self.vmm_ended or self.second or self.told is None):
                    self._changed.clear()
                    await self._changed.wait()
        return self.vmm_ended and not self.second

    async def begun(self) -> bool:
        """Wait for the VMM that is up to the stub; False: the guest is over, or to be."""
        while stub.read_pid(self.directory) is None and self.told is not None:
            self._changed.clear()
            await self._changed.wait()
        return self.told is not None and not self.destroyed and self.hold_vmm() is not None

    def verdict(self, evidence: Evidence) -> Verdict:
        """Weigh what is known."""
        return exitcode.verdict(
            exitcode.Evidence(
                kind=self.memory.kind,
                arch=self.memory.arch,
                vmm_status=stub.read_status(self.directory),
                guest_exit=regular.tail(os.path.join(self.directory, EXIT_FILE), 1),
                control_exit=self.heard.exit,
                control_error=self.heard.error,
                failure=self.remains.failure(),
                qmp_events=self.heard.events,
                oom_kills=evidence.oom_kills,
                vmm_log_tail=stub.vmm_log(self.directory),
                killed_by=evidence.killed_by,
                started=evidence.booted,
            )
        )

    # Section: its end

    def settle(self, evidence: Evidence) -> Verdict:
        """Weigh QEMU's status, its events, the guest's own words and what the host knows."""
        self.wires.poll()
        verdict = self.verdict(evidence)
        reason = verdict.reason
        if self.heard.exit is None:
            reason += words.of_kernel(self.remains.kernel_lines())
        decided = again.load(self.directory) if self.second else None
        if decided is not None and not self.heard.reached:
            reason += f" (on the second try; on the first: {decided.reason})"
        return Verdict(verdict.code, reason)

    async def release(self) -> None:
        """Close everything; the file server ends with QEMU, or is killed. Channels' memory lives while it is mapped."""
        self._ending.forget()
        await self.watching.close()
        shmfiles.unlink(self.directory)
        await self.monitor.close()
        await self._tasks.close()
        self.wires.close()
        if self._listener is not None:
            self._listener.close()
        self._child.close()
        if self.share is not None:
            await asyncio.to_thread(self.share.stop)
        if self.nics is not None:
            await asyncio.to_thread(self._remove_nics, self.nics)
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
