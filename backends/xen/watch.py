# SPDX-License-Identifier: Apache-2.0
"""Watches one domain through XenStore to its end, takes down how it came, and destroys it.

A domain that has shut down stays until its reason, its last words and its console are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from backends.xen.exitcode import End
from backends.xen.tty import open_console
from backends.xen.words import TO_HOST, Words, exit_code
from backends.xen.xenstore import XenStore, XenStoreError
from runphi_async.aio.owned import OwnedTasks
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from backends.ending import Ending
    from backends.guest.initchannel import InitChannel
    from backends.xen.console import Bridge
    from backends.xen.known import KnownDomain
    from backends.xen.states import Domain
    from backends.xen.tools import Tools
    from backends.xen.xenstore import Watch

log = logging.getLogger(__name__)

#: Seconds between two looks at a domain when xenstored cannot tell of its end any more.
RESCAN: Final = 1.0
#: Seconds that a full FIFO may stand still while a domain's console is drained.
DRAIN_LIMIT: Final = 2.0


class DomainWatch:
    """The watch over one domain.

    :ivar tasks: what goes on for this domain; if one of them fails, the domain ends.
    :ivar lines: what is to be told to the guest's init.
    :ivar store: the connection to xenstored, once there is one.
    """

    def __init__(self, tools: Tools, directory: str, known: KnownDomain, ending: Ending) -> None:
        self.tasks = OwnedTasks(self._broke)
        self.lines: asyncio.Queue[str] = asyncio.Queue()
        self.store: XenStore | None = None
        self._tools = tools
        self._directory = directory
        self._known = known
        self._ending = ending
        self._init: InitChannel | None = None
        self._bridge: Bridge | None = None
        self._words: Words | None = None
        self._life: asyncio.Task[None] | None = None
        self._kill = asyncio.Event()

    async def connect(self) -> XenStore:
        """Connect to xenstored.

        :raises BackendError: it cannot be reached.
        """
        self.store = await self._tools.connect()
        return self.store

    async def attend(self, init: InitChannel | None) -> None:
        """Open the console, hear the guest's init if it has ours, and begin to watch.

        :raises BackendError: there is no console.
        """
        assert self.store is not None
        if init is not None:
            self._init = init
            self._words = Words(self.store, self._known.home, init.hear)
            await self._words.prepare()
            self.tasks.start(self._tell_on(self._words), "telling of the guest's init")
        self._bridge = await open_console(self.store, self._known.home, self._directory)
        self.live()

    async def hear(self) -> None:
        """Hear what the guest's init has said so far."""
        if self._words is not None:
            await self._words.hear()

    def live(self) -> None:
        """Follow the domain from now on."""
        if self._life is None:
            self._life = self.tasks.start(self._live_on(), "watch over the domain")

    def destroy(self) -> None:
        """Destroy the domain; the watch does it and says when it is gone."""
        self._kill.set()
        if self._ending.told is not None:
            self.live()

    async def close(self) -> None:
        """Let go of xenstored and the console; the domain goes on."""
        await self.tasks.close()
        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None

    def disconnect(self) -> None:
        """Let go of xenstored."""
        if self.store is not None:
            self.store.close()
            self.store = None

    # Section: the task

    def _broke(self, task: str, exc: BaseException) -> None:
        """A task of ours has failed: nobody looks after the guest any more, so it ends."""
        self._ending.broke(task, exc)
        if self._life is not None and self._life.done():
            self._life = None  # it was this one: another one takes the domain down, and does no more
        self.destroy()

    async def _tell_on(self, words: Words) -> None:
        while True:
            line = await self.lines.get()
            try:
                await words.tell(line)
            except XenStoreError as exc:
                log.warning("%s: %s", self._directory, exc)

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
        assert self.store is not None
        hear = [f"{self._known.home}/{TO_HOST}"] if self._words is not None else []
        watch = await self.store.watch("@releaseDomain", *hear)
        while not self._kill.is_set():
            domain = await self._look()
            if domain is None or domain.shutdown or domain.dying:
                return
            path = await self._news(watch)
            if self._words is not None and path not in ("", "@releaseDomain"):
                await self._words.hear()

    async def _news(self, watch: Watch) -> str:
        """Wait for what xenstored tells or for ``destroy``; "" when there is nothing to tell."""
        news = self.tasks.start(_next(watch), "wait for xenstored")
        kill = self.tasks.start(_set(self._kill), "wait for somebody's word")
        try:
            await asyncio.wait((news, kill), return_when=asyncio.FIRST_COMPLETED)
            if not news.done():
                return ""
            path = news.result()
            if path is None:  # xenstored is gone: look ourselves, at intervals
                await asyncio.wait((kill,), timeout=RESCAN)
            return path or ""
        finally:
            for task in (news, kill):
                task.cancel()
            await asyncio.wait((news, kill))

    async def _look(self) -> Domain | None:
        return await self._tools.hypervisor.look(self._known.domid, self._known.uuid)

    # Section: the end

    async def _take_down(self, failure: str | None) -> None:
        """Read how the domain ended, drain its console, write both down, destroy it.

        A supervisor that ends on the way leaves the domain where it is: with it would go what only the domain can tell.
        """
        try:
            await self._take_evidence(failure or self._ending.failure or None)
        except Exception:
            await self._tools.hypervisor.destroy(self._known.uuid)
            raise
        await self._tools.hypervisor.destroy(self._known.uuid)

    async def _take_evidence(self, failure: str | None) -> None:
        hypervisor, known = self._tools.hypervisor, self._known
        domain = await self._look()
        if domain is not None and not domain.shutdown and not domain.dying and not domain.paused:
            with contextlib.suppress(BackendError):  # it ends just now
                await hypervisor.pause(domain.domid, domain.uuid)
                domain = await self._look()
        if known.end is None:
            known.end = await self._last_words(domain, failure)
            known.save(self._directory)
        if self._bridge is not None and domain is not None and known.started:
            await self._bridge.drain(self._tools.quiet, DRAIN_LIMIT)

    async def _last_words(self, domain: Domain | None, failure: str | None) -> End:
        end = End(reason=domain.reason if domain is not None else None, failure=failure)
        if domain is None or self.store is None:
            return self._with_words(end)
        try:
            if self._words is not None:
                await self._words.hear()
            said = await exit_code(self.store, self._known.home) if end.reason == 0 else None
        except XenStoreError as exc:
            log.warning("%s: %s", self._directory, exc)
            return self._with_words(end)
        return self._with_words(msgspec.structs.replace(end, said=said))

    def _with_words(self, end: End) -> End:
        if self._init is None:
            return end
        said = self._init.said  # taken down as it came
        return msgspec.structs.replace(end, control_exit=said.exit, control_error=said.error)


async def _next(watch: Watch) -> str | None:
    """Return what is told next, None when xenstored is gone."""
    async for path in watch:
        return path
    return None


async def _set(event: asyncio.Event) -> None:
    await event.wait()
