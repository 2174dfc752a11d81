# SPDX-License-Identifier: Apache-2.0
"""Watches one QEMU's run state, and the time a Linux guest takes to reach our init.

One task for each guest. It looks when something points to a change (an event, the end of QEMU, a supervisor that is
new) and when the deadline is due; ``runstate`` decides what is to be done. A QEMU that does not answer is left alone
for what cannot be known of it, but the deadline holds for it as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from backends.qemu import comm, runstate
from backends.qemu.runstate import Clock, Standing
from runphi_async.errors import BackendError
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from backends.qemu.again import Again
    from backends.qemu.second import SecondTry
    from backends.qemu.settings import InitSeconds
    from backends.qemu.vmm import Vmm
    from runphi_async.aio.owned import OwnedTasks

log = logging.getLogger(__name__)

#: Seconds for a look at a QEMU: one that stands in the way of nobody but its own guest's news.
LOOK_PATIENCE: Final = 5.0
#: QEMU has said that it is about to end: after this many seconds it is helped.
ENDING_PATIENCE: Final = 5.0
#: The connection to QEMU was lost: after this many seconds it has not ended.
CLOSING_PATIENCE: Final = 1.0
#: Seconds for the last lines of a guest's kernel: what comes too late is not worth a container that ends later.
WORDS_PATIENCE: Final = 2.0
#: The event of a QEMU that is about to end.
ENDS: Final = "SHUTDOWN"
#: Events behind which the run state may be another one. Source: qapi/run-state.json.
TELLING: Final = frozenset(
    (
        "STOP",
        "RESUME",
        ENDS,
        "GUEST_PANICKED",
        "GUEST_CRASHLOADED",
        "BLOCK_IO_ERROR",
        "WATCHDOG",
        "MEMORY_FAILURE",
    )
)
ANOTHER: Final = "another monitor"


class RunWatch:
    """The watch over one guest.

    :param second: the steps of a second try.
    :param seconds: how long the guest's kernel may take to reach our init, where it has one.
    :ivar wish: what we asked QEMU for last; None: an earlier supervisor did.
    :ivar turn: held by whoever asks QEMU to run or to stand, and during a look, so that a look sees no halves.
    """

    def __init__(self, vmm: Vmm, second: SecondTry, seconds: InitSeconds) -> None:
        self.wish: Standing | None = Standing.BEFORE
        self.turn = asyncio.Lock()
        self.clock = Clock()
        self.accel = vmm.plan.accel
        self._kernel = vmm.plan.kind is GuestKind.LINUX
        self._seconds = seconds
        self._vmm = vmm
        self._second = second
        self._news = asyncio.Event()
        self._tried = asyncio.Event()
        self._ending: float | None = None
        self._blamed = False
        self._given_up = False
        self._left: Again | None = None
        self._task: asyncio.Task[None] | None = None

    # Section: from outside

    def start(self, tasks: OwnedTasks) -> None:
        """Begin to watch; if that fails, the owner of the tasks hears of it, and ends the guest."""
        self._task = tasks.start(self._run(), "watch over the VMM")

    def heard(self, event: str) -> None:
        """QEMU has sent an event. One that ends may answer nothing any more, and hang on its way out."""
        if event == ENDS:
            self._expect_end()
        if event in TELLING:
            self._news.set()

    def look(self) -> None:
        """Something is new: QEMU has ended, or the guest's init has spoken."""
        self._news.set()

    def asked(self, wish: Standing) -> None:
        """We are about to ask for a state, or somebody else has brought it about."""
        self.wish = wish
        now = time.monotonic()
        self.clock = self.clock.go(now) if wish is Standing.RUNNING else self.clock.stand(now)
        if self._pending:
            self._vmm.remains.keep_clock(self.clock)

    def restart(self, accel: str) -> None:
        """Another VMM takes the place of the first."""
        self.accel = accel
        self.clock, self.wish, self._ending, self._given_up = Clock(), Standing.BEFORE, None, False

    def recall(self, clock: Clock, started: bool) -> None:
        """Go on where an earlier supervisor stood. What it asked for last nobody knows."""
        if not started:
            self.wish = Standing.BEFORE
            return
        self.wish = None
        self.clock = clock if clock != Clock() else clock.go(time.monotonic())

    def take_up(self, decided: Again) -> None:
        """An earlier supervisor has left the second VMM to the stub."""
        self._left = decided
        self._news.set()

    async def rescued(self, reason: str) -> bool:
        """The first VMM cannot be started: whether a second one is there in its place."""
        vmm = self._vmm
        if await vmm.ended_within(CLOSING_PATIENCE):  # it has an own reason, or somebody had one to end it
            reason = self._second.reason()
        if not vmm.second and self._second.decided() is None and not self._try_again(reason):
            return False
        await self._tried.wait()
        return vmm.second and not vmm.is_over

    async def close(self) -> None:
        """Stop watching."""
        self._tried.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    # Section: the task

    @property
    def _pending(self) -> bool:
        return self._kernel and not self._vmm.heard.reached

    @property
    def limit(self) -> float:
        """For how many seconds the guest's kernel may run before it reaches our init."""
        return runstate.deadline(self.accel, self._seconds)

    def _patience(self) -> float | None:
        now = time.monotonic()
        if self._given_up:
            return None
        if self._ending is not None:
            return max(0.0, self._ending - now)
        return self.clock.left(now, self.limit) if self._pending else None

    async def _run(self) -> None:
        try:
            while not self._vmm.is_over:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._patience()):
                        await self._news.wait()
                self._news.clear()
                await self._look()
        finally:
            self._tried.set()

    async def _look(self) -> None:
        vmm = self._vmm
        if self._left is not None:
            left, self._left = self._left, None
            await self._bring_up(left)
        elif vmm.ended:
            await self._after_the_first()
        elif not self._given_up:
            await self._look_at_living()

    async def _look_at_living(self) -> None:
        vmm = self._vmm
        if self._kernel and vmm.heard.reached and not self._blamed:
            self._blamed = True
            await self._second.blame()
        if self._ending is not None and time.monotonic() >= self._ending:
            log.warning("%s: QEMU said that it ends, and did not: destroying it", vmm.name)
            self._given_up = True
            vmm.destroy()
            return
        status = ""
        async with self.turn:
            if vmm.is_monitored:
                status = await self._status()
            found = runstate.standing(status)
            self._take(found)
        if found is Standing.FAILED:
            await self._fail(runstate.failure(status, vmm.remains.vmm_log()))
        elif found is Standing.ENDING and self._kernel:
            await self._end()
        elif self._pending and self.clock.left(time.monotonic(), self.limit) == 0.0:
            await self._fail(runstate.late(self.limit, self.accel))

    async def _status(self) -> str:
        try:
            return runstate.status_of(await self._vmm.monitor.execute("query-status", patience=LOOK_PATIENCE))
        except BackendError:
            return ""  # it is gone, which we are told by others, or it hangs

    def _take(self, found: Standing) -> None:
        told = self._vmm.told
        if found is Standing.ENDING:
            self._expect_end()
        if told is None or self.wish is Standing.BEFORE or not runstate.is_news(self.wish, found):
            return
        by = ANOTHER if self.wish is not None else "somebody while no supervisor watched"
        self.asked(found)
        (told.paused if found is Standing.PAUSED else told.resumed)(by)

    def _expect_end(self) -> None:
        if self._ending is None:
            self._ending = time.monotonic() + ENDING_PATIENCE

    async def _fail(self, reason: str) -> None:
        """The guest will never run (again): end its VMM, and try once more where that is safe."""
        await self._keep_kernel_log()
        if not self._try_again(reason):
            log.warning("%s: %s", self._vmm.name, reason)
            self._given_up = True
            self._vmm.fail(reason)

    async def _end(self) -> None:
        """The guest's kernel has ended the machine. QEMU waits, so that it can be asked for the kernel's last words."""
        await self._keep_kernel_log()
        if not self._try_again(self._second.reason()):
            self._given_up = True
            self._vmm.destroy()

    async def _keep_kernel_log(self) -> None:
        if not self._kernel:
            return
        try:
            text = await self._vmm.monitor.execute(
                "ringbuf-read", patience=WORDS_PATIENCE, device=comm.KERNEL_LOG, size=comm.KERNEL_LOG_BYTES
            )
        except BackendError:
            return
        self._vmm.remains.keep_kernel_log(text if isinstance(text, str) else "")

    # Section: the second try

    def _try_again(self, reason: str) -> bool:
        if not self._second.decide(reason, self.wish is not Standing.BEFORE):
            return False
        self._given_up = True
        self._news.set()
        return True

    async def _after_the_first(self) -> None:
        """The VMM has ended. It may have been the first of two."""
        vmm = self._vmm
        decided = self._second.decided()
        if decided is None and self._try_again(self._second.reason()):
            decided = self._second.decided()
        if decided is not None and not self._second.is_safe and not vmm.second:
            vmm.fail(decided.reason)  # init spoke its first word just then
        if decided is None or not self._second.is_safe:
            vmm.over()
            return
        try:
            async with self.turn:
                await self._second.hand_over(decided)
        except BackendError as exc:
            vmm.fail(f"{decided.reason}; there can be no second try: {exc.msg}")
            vmm.over()
            return
        await self._bring_up(decided)

    async def _bring_up(self, decided: Again) -> None:
        vmm = self._vmm
        try:
            async with self.turn:
                await self._second.take_up(decided)
        except BackendError as exc:
            if not vmm.ended:  # else it says itself how
                vmm.fail(f"cannot start the guest on TCG either: {exc.msg}")
        finally:
            self._tried.set()
