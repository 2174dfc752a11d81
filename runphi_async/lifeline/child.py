# SPDX-License-Identifier: Apache-2.0
"""The VMM as a driver sees it: not its own child but the init process's, which writes down its pid and its status.

So an end is seen twice, by the kernel's word on the process and by the status that the parent writes a moment later;
and a parent that was killed writes nothing any more.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

from runphi_async.host.processes import Process
from runphi_async.lifeline import stub

if TYPE_CHECKING:
    from collections.abc import Callable

#: The VMM has ended, or never was, and its parent has not written that down: after this many seconds the parent must
#: be dead.
STATUS_PATIENCE: Final = 2.0


class StubChild:
    """The child of the init process whose record lies in ``directory``.

    :param ended: called when its status is known; that may be said again.
    :param lost: called when it is gone and nobody will write its status any more.
    :ivar killed: somebody wants it dead, even if it is only about to be started.
    """

    def __init__(self, directory: str, ended: Callable[[], None], lost: Callable[[], None]) -> None:
        self._directory = directory
        self._on_end = ended
        self._on_loss = lost
        self._process: Process | None = None
        self._late: asyncio.TimerHandle | None = None
        self._over = False
        self.killed = False

    @property
    def ended(self) -> bool:
        """Whether it has ended and its status is known."""
        return stub.read_status(self._directory) is not None

    @property
    def begun(self) -> bool:
        """Whether it was started."""
        return self._process is not None or stub.read_pid(self._directory) is not None

    def hold(self) -> Process | None:
        """Return its process and watch it, None where it is gone or not there yet."""
        pid = stub.read_pid(self._directory) if self._process is None else None
        if pid is not None:
            try:
                self._process = Process(pid)
            except ProcessLookupError:
                return None
            self._process.watch(self._gone)
        return self._process

    def rang(self) -> None:
        """The init process says that something is written down: its pid or its status."""
        if self.ended:
            self._be_patient()
            self._on_end()
        elif self.killed:
            self.kill()
        else:
            self.hold()

    def _gone(self) -> None:
        self.rang()
        if not self.ended:
            self._expect(STATUS_PATIENCE)

    def kill(self, patience: float = STATUS_PATIENCE) -> None:
        """End it; one that is just about to be started is ended when the bell rings.

        :param patience: seconds after which it is lost if it cannot be found.
        """
        self.killed = True
        process = self.hold()
        if process is None or not process.send(signal.SIGKILL):
            self._expect(patience)

    def _expect(self, patience: float) -> None:
        if self._late is None and not self._over:
            self._late = asyncio.get_running_loop().call_later(patience, self._on_loss)

    def _be_patient(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def renew(self) -> None:
        """Another child takes its place: let go of this one."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def over(self) -> None:
        """Nobody waits for its end any more."""
        self._over = True
        self._be_patient()

    def close(self) -> None:
        """Let go of it, wherever it stands."""
        self.over()
        self.renew()
