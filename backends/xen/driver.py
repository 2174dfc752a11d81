# SPDX-License-Identifier: Apache-2.0
"""One Xen domain: made paused, watched through XenStore, and how it ended.

A domain is nobody's child: it outlives every supervisor, and what a supervisor must know of it is written down in the
record (``xen.json``) before it is needed. Its uuid, chosen by us, finds it even where its making was cut short. A
domain that has shut down stays until we have read its reason, its last words and its console; then it is destroyed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from backends.base import Abilities, Evidence, Inheritance, Told, Verdict
from backends.ending import Ending
from backends.guest.initchannel import InitChannel
from backends.xen import plan as planning
from backends.xen.exitcode import End, verdict
from backends.xen.files import Files
from backends.xen.tty import open_console
from backends.xen.vifs import Vifs, status_path
from backends.xen.words import TO_HOST, Words, exit_code
from backends.xen.xenstore import XenStore, XenStoreError
from backends.xen.xl import LONG
from consoles.streams.fifo import open_fifo
from runphi_async import regular
from runphi_async.aio.owned import OwnedTasks
from runphi_async.errors import BackendError
from runphi_async.host.files import write_atomically
from runphi_async.lifeline.stub import Fd
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.xen.console import Bridge
    from backends.xen.hypervisor import Hypervisor
    from backends.xen.plan import XenPlan
    from backends.xen.states import Domain

log = logging.getLogger(__name__)

STATE: Final = "xen.json"
#: Most bytes of that file.
STATE_MAX: Final = 1 << 20
#: Seconds between two looks at a domain when xenstored cannot tell of its end any more.
RESCAN: Final = 1.0
#: Seconds that a full FIFO may stand still while a domain's console is drained.
DRAIN_LIMIT: Final = 2.0


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What a new supervisor must know of a guest to adopt it."""

    kind: GuestKind
    #: where the disk with its root filesystem is made
    disk_dir: str | None = None
    #: it has the container's interfaces
    net: bool = False


class State(msgspec.Struct, omit_defaults=True):
    """What becomes known as the guest lives; ``xen.json`` in the record.

    :ivar uuid: of the domain; written down before it is made.
    """

    uuid: str = ""
    domid: int = -1
    started: bool = False
    end: End | None = None


_states = msgspec.json.Decoder(State)


class Tools(NamedTuple):
    """What all drivers share.

    :ivar connect: makes a connection to xenstored.
    :ivar quiet: seconds of silence after which a console of an ended domain counts as drained.
    :ivar patience: seconds that a domain may take to end when it is asked to.
    """

    hypervisor: Hypervisor
    connect: Callable[[], Awaitable[XenStore]]
    quiet: float
    patience: float


class XenDriver:
    """Drives one domain; see ``backends.base.Driver``."""

    def __init__(self, memory: Memory, directory: str, tools: Tools, plan: XenPlan | None = None) -> None:
        self.command: tuple[str, ...] = ()
        self.again: tuple[str, ...] = ()
        self.overhead_bytes = 0
        self._memory = memory
        self._directory = directory
        self._tools = tools
        self._plan = plan
        self._state = self._load() if plan is None else State()
        self._files = Files(directory, memory.disk_dir)
        self._vifs = Vifs(directory) if memory.net else None
        self._store: XenStore | None = None
        self._bridge: Bridge | None = None
        self._words: Words | None = None
        self._tasks = OwnedTasks(self._broke)
        self._life: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._kill = asyncio.Event()
        self._ending = Ending()
        self._init = InitChannel(self._ending, self._lines.put_nowait)
        self._kept = -1

    @property
    def abilities(self) -> Abilities:
        """A Linux guest has our init, and any may listen in XenStore; a PV console has no breaks."""
        if self._memory.kind is GuestKind.LINUX:
            able = Abilities(signals=self._init, stops=self, resizes=self._init, takes_eof=self._init)
        else:
            able = Abilities(stops=self)
        return able._replace(patience=self._tools.patience)

    # Section: making it

    async def prepare(self) -> None:
        """Make the domain, paused; when that fails or is cancelled, `bury` leaves nothing of it."""
        assert self._plan is not None
        hypervisor = self._tools.hypervisor
        self._store = await self._tools.connect()
        self._state.uuid = str(uuid.uuid4())
        self._save()
        if self._vifs is not None:
            await asyncio.to_thread(self._vifs.join, self._plan.netns or "")
        await self._files.write(self._plan, self._state.uuid)
        await hypervisor.xl.create(planning.CONFIG, self._directory)
        domain = await hypervisor.find(self._state.uuid)
        if domain is None or domain.dying or not domain.paused:
            raise BackendError("cannot create the domain: xl says it is made, and Xen knows of none that waits")
        self._state.domid = domain.domid
        self._save()
        self._files.link_channels(self._plan.channels, self._state.domid)
        self._files.forget(self._state.uuid)
        if self._vifs is not None:
            await self._connect_cards(self._vifs, self._plan.macs)

    async def _connect_cards(self, vifs: Vifs, macs: tuple[str, ...]) -> None:
        """Do what xl expects of a hotplug script."""
        assert self._store is not None
        await asyncio.to_thread(vifs.take, self._state.domid, macs)
        for number in range(len(macs)):
            await self._store.write(status_path(self._state.domid, number), b"connected")

    def inheritance(self) -> Inheritance:
        """Return the console's input FIFO, which keeps what was typed while no supervisor runs."""
        dir_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._kept = open_fifo("con.in", dir_fd)
        finally:
            os.close(dir_fd)
        return Inheritance({Fd.EVENTS: self._kept})

    @property
    def network(self) -> str:
        """Path of the namespace that the domain's cards are in."""
        return self._vifs.network if self._vifs is not None else ""

    def console(self) -> None:
        """Return nothing: the bridge makes the console the FIFO pair, which loses nothing with a supervisor."""

    def helpers(self) -> list[int]:
        """Return nothing: a domain's memory and time are Xen's."""
        return []

    # Section: watching it

    async def watch(self, told: Told) -> None:
        """Open the console before the guest runs, and begin to watch."""
        self._close_kept()
        await self._attend(told)

    async def _attend(self, told: Told) -> None:
        self._ending.attend(told)
        assert self._store is not None
        if self._memory.kind is GuestKind.LINUX:
            self._words = Words(self._store, self._home, self._init.hear)
            await self._words.prepare()
            self._tasks.start(self._tell_on(self._words), "telling of the guest's init")
        self._bridge = await open_console(self._store, self._home, self._directory)
        self._live()

    @property
    def _home(self) -> str:
        return f"/local/domain/{self._state.domid}"

    def _live(self) -> None:
        if self._life is None:
            self._life = self._tasks.start(self._live_on(), "watch over the domain")

    def _broke(self, task: str, exc: BaseException) -> None:
        """A task of ours has failed: nobody looks after the guest any more, so it ends."""
        self._ending.broke(task, exc)
        if self._life is not None and self._life.done():
            self._life = None  # it was this one: another one takes the domain down, and does no more
        self.destroy()

    async def _live_on(self) -> None:
        """Follow the domain to its end, take everything down that tells how it came, destroy it."""
        failure = None
        try:
            if not self._kill.is_set():
                await self._until_end()
        except (BackendError, OSError) as exc:
            log.error("%s: %s", self._directory, exc)
            failure = f"domain was given up: {exc}"
        try:
            await self._take_down(failure)
        except Exception as exc:  # whatever it is: the guest has an end, and it is told
            log.error("%s: %s", self._directory, exc, exc_info=not isinstance(exc, BackendError | OSError))
        self._ending.once()

    async def _until_end(self) -> None:
        """Return when the domain has shut down, is gone, or is to be destroyed."""
        assert self._store is not None
        hear = [f"{self._home}/{TO_HOST}"] if self._words is not None else []
        watch = await self._store.watch("@releaseDomain", *hear)
        while not self._kill.is_set():
            domain = await self._look()
            if domain is None or domain.shutdown or domain.dying:
                return
            path = await self._news(watch.__anext__)
            if self._words is not None and path not in ("", "@releaseDomain"):
                await self._words.hear()

    async def _news(self, following: Callable[[], Awaitable[str]]) -> str:
        """Wait for what xenstored tells or for ``destroy``; "" when there is nothing to tell."""
        news = asyncio.ensure_future(following())
        kill = asyncio.ensure_future(self._kill.wait())
        try:
            await asyncio.wait((news, kill), return_when=asyncio.FIRST_COMPLETED)
            if not news.done():
                return ""
            try:
                return news.result()
            except StopAsyncIteration:  # xenstored is gone: look ourselves, at intervals
                await asyncio.wait((kill,), timeout=RESCAN)
                return ""
        finally:
            for task in (news, kill):
                task.cancel()
            await asyncio.wait((news, kill))

    async def _look(self) -> Domain | None:
        return await self._tools.hypervisor.look(self._state.domid, self._state.uuid)

    async def _take_down(self, failure: str | None) -> None:
        """Read how the domain ended, drain its console, write both down, destroy it."""
        try:
            await self._take_evidence(failure or self._ending.failure or None)
        finally:
            await self._tools.hypervisor.destroy(self._state.uuid)

    async def _take_evidence(self, failure: str | None) -> None:
        hypervisor = self._tools.hypervisor
        domain = await self._look()
        if domain is not None and not domain.shutdown and not domain.dying and not domain.paused:
            with contextlib.suppress(BackendError):  # it ends just now
                await hypervisor.pause(domain.domid, domain.uuid)
                domain = await self._look()
        if self._state.end is None:
            self._state.end = await self._last_words(domain, failure)
            self._save()
        if self._bridge is not None and domain is not None and self._state.started:
            await self._bridge.drain(self._tools.quiet, DRAIN_LIMIT)

    async def _last_words(self, domain: Domain | None, failure: str | None) -> End:
        end = End(reason=domain.reason if domain is not None else None, failure=failure)
        if domain is None or self._store is None:
            return self._with_words(end)
        try:
            if self._words is not None:
                await self._words.hear()
            said = await exit_code(self._store, self._home) if end.reason == 0 else None
        except XenStoreError as exc:
            log.warning("%s: %s", self._directory, exc)
            return self._with_words(end)
        return self._with_words(msgspec.structs.replace(end, said=said))

    def _with_words(self, end: End) -> End:
        said = self._init.said  # taken down as it came
        return msgspec.structs.replace(end, control_exit=said.exit, control_error=said.error)

    async def adopt(self, told: Told) -> bool | None:
        """Find the domain again and go on where the last supervisor was."""
        self._ending.attend(told)  # first: whatever fails from here on, `destroy` has somebody to tell
        self._store = await self._tools.connect()
        domain = await self._tools.hypervisor.find(self._state.uuid)
        if self._state.end is not None or domain is None or domain.dying:
            self._live()
            return None
        self._state.domid = domain.domid
        if self._vifs is not None:
            # where the namespace was made for the container, the init process is in it
            await asyncio.to_thread(self._vifs.take_up, told.init or None)
        if domain.ran:
            self._state.started = True
        self._init.replaying = True  # what the init said so far was acted on by our predecessor
        await self._attend(told)
        if self._words is not None:
            await self._words.hear()
        self._init.replaying = False
        return None if domain.shutdown else self._state.started

    # Section: driving it

    async def start(self) -> None:
        """Connect the guest to the container's interfaces and let it run."""
        if self._vifs is not None:
            lines = await asyncio.to_thread(self._vifs.connect)
            if self._words is not None:
                for line in (*lines, "net-done"):
                    self._lines.put_nowait(line)
        self._state.started = True  # before it can end
        await self._tools.hypervisor.unpause(self._state.domid, self._state.uuid)
        self._save()

    async def suspend(self) -> None:
        """Pause the domain."""
        await self._tools.hypervisor.pause(self._state.domid, self._state.uuid)

    async def resume(self) -> None:
        """Let the domain go on."""
        await self._tools.hypervisor.unpause(self._state.domid, self._state.uuid)

    async def stop(self) -> bool:
        """Ask the guest to power off, if it has said that it can be asked."""
        if self._store is None or await self._store.find(f"{self._home}/control/feature-poweroff") != b"1":
            return False
        if self._asking is None:
            self._asking = self._tasks.start(self._ask(), "request to power off")
        return True

    async def _ask(self) -> None:
        """``xl shutdown`` waits a minute for the guest's answer; the runtime's own deadline is another one."""
        try:
            await self._tools.hypervisor.xl.must("stop the guest", "shutdown", str(self._state.domid), seconds=LONG)
        except BackendError as exc:
            log.info("%s: %s", self._directory, exc)

    def destroy(self) -> None:
        """Destroy the domain; its own task does it and says when it is gone."""
        self._kill.set()
        if self._ending.told is not None:
            self._live()

    async def _tell_on(self, words: Words) -> None:
        while True:
            line = await self._lines.get()
            try:
                await words.tell(line)
            except XenStoreError as exc:
                log.warning("%s: %s", self._directory, exc)

    # Section: its end

    def settle(self, evidence: Evidence) -> Verdict:
        """Weigh the domain's end, its own words and what was done to it."""
        return verdict(self._state.end or End(failure=self._ending.failure or None), evidence)

    async def release(self) -> None:
        """Let go of xenstored and the console."""
        self._ending.forget()
        await self._tasks.close()
        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None
        self._close_kept()
        if self._vifs is not None:
            await asyncio.to_thread(self._remove, self._vifs)
        if self._store is not None:
            self._store.close()
            self._store = None

    @staticmethod
    def _remove(vifs: Vifs) -> None:
        vifs.take_up(None)
        vifs.remove()

    async def bury(self) -> None:
        """Destroy the domain, and forget the files of its making."""
        await self._tasks.close()
        await self._clean_up()
        await self.release()

    async def _clean_up(self) -> None:
        if not self._state.uuid:  # its making had not begun
            return
        try:
            await self._tools.hypervisor.destroy(self._state.uuid)
        except BackendError as exc:
            log.error("%s: %s", self._directory, exc)
        self._files.forget(self._state.uuid)

    def _close_kept(self) -> None:
        if self._kept >= 0:
            os.close(self._kept)
        self._kept = -1

    def _save(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # `delete` has given the domain up meanwhile
            write_atomically(os.path.join(self._directory, STATE), msgspec.json.encode(self._state))

    def _load(self) -> State:
        try:
            return _states.decode(regular.read(os.path.join(self._directory, STATE), STATE_MAX, links=False))
        except (OSError, msgspec.MsgspecError):
            return State()
