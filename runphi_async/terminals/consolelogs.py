# SPDX-License-Identifier: Apache-2.0
"""The logs of one console: made from the record's plan, run as tasks of the guest, followed by ``runphi logs``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import anyio

from consoles.streams.sinks.logfile import Place, open_log
from runphi_async.events import LogError, LogResumed
from runphi_async.partition.logplan import LogPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consoles.streams.hub import Hub
    from consoles.streams.journal import Journal
    from consoles.streams.sinks.logfile import LogSink, LogStatistics
    from runphi_async.aio.tasks import Tasks
    from runphi_async.events import AnyEvent
    from runphi_async.record.store import Record


#: Seconds that the end of a container waits for a log whose disk hangs.
CLOSE_PATIENCE: Final = 10.0
#: Seconds that ``runphi logs`` waits for what was printed just now.
CATCH_UP: Final = 1.0


def plans(record: Record) -> tuple[LogPlan, ...]:
    """Return what a container logs; the record of an earlier version knows one raw log at most."""
    if record.logs is not None:
        return record.logs
    return (LogPlan("raw", record.log_dir, "console.log", 64 << 20, 2),) if record.log_dir else ()


def raw_directory(logs: Sequence[LogPlan]) -> str | None:
    """Return where the raw log lies, which `logs` and `timeline` read; None: there is none."""
    return next((log.directory for log in logs if log.kind == "raw"), None)


class ConsoleLogs:
    """All logs of a journal.

    :param hub: of the journal; it is told to wait for them.
    :param directory: where positions are kept: the record directory.
    :param cursor: description on the journal that keeps the raw log's position; owned. -1: there is none.
    :param hold: bytes that may wait for a disk that refuses; less than the hub's window.
    :param note: writes an event.
    """

    def __init__(
        self,
        hub: Hub,
        logs: Sequence[LogPlan],
        directory: str,
        *,
        cursor: int,
        hold: int,
        note: Callable[[AnyEvent], None],
    ) -> None:
        self._hub = hub
        self._note = note
        self._logs = tuple(logs)
        self._watchers: set[Callable[[], None]] = set()
        self.sinks: list[LogSink] = []
        for log in logs:
            own = cursor if log.kind == "raw" else -1
            self.sinks.append(self._open(hub.journal, log, directory, own, hold))
            hub.add_sink(self.sinks[-1])
        if cursor >= 0 and not any(log.kind == "raw" for log in logs):
            os.close(cursor)

    def _open(self, journal: Journal, log: LogPlan, directory: str, cursor: int, hold: int) -> LogSink:
        return open_log(
            journal,
            log.kind,
            Place(log.directory, log.name, log.max_bytes, log.max_files, log.beneath),
            cursor=cursor,
            sidecar=os.path.join(directory, f"{log.kind}.log-position"),
            progress=self._logged,
            on_error=lambda exc: self._failed(log, exc.strerror or str(exc)),
            on_resume=lambda lost: self._note(LogResumed(log=log.kind, path=log.path, lost=lost)),
            hold=hold,
        )

    def _failed(self, log: LogPlan, error: str) -> None:
        self._note(LogError(log=log.kind, path=log.path, error=error))

    def start(self, tasks: Tasks) -> None:
        """Begin to write."""
        for sink in self.sinks:
            tasks.start_soon(sink.run, name=f"log {sink.kind}")

    def watch(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever a log has grown, until ``unwatch``."""
        self._watchers.add(wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        """Stop calling ``wake``."""
        self._watchers.discard(wake)

    async def caught_up(self) -> None:
        """Wait until what has been printed so far is in the raw log: a log is written a moment behind its guest.

        Within bounds, and not for a disk that refuses.
        """
        raw = next((sink for sink in self.sinks if sink.kind == "raw"), None)
        if raw is None:
            return
        goal = raw.offset + raw.lag
        with anyio.move_on_after(CATCH_UP):
            while raw.offset < goal and not raw.statistics().failing:
                news = anyio.Event()
                self.watch(news.set)
                try:
                    await news.wait()
                finally:
                    self.unwatch(news.set)

    def _logged(self) -> None:
        self._hub.progress()
        for wake in tuple(self._watchers):
            wake()

    def reopen(self) -> None:
        """Another program has renamed the files: go on in new ones."""
        for sink in self.sinks:
            sink.reopen()

    def statistics(self) -> list[LogStatistics]:
        """Return the logs' numbers."""
        return [sink.statistics() for sink in self.sinks]

    async def close(self) -> None:
        """Complete every log; a disk that neither takes nor refuses holds up nobody's end."""
        for sink in self.sinks:
            sink.hurry()
        for sink, log in zip(self.sinks, self._logs, strict=True):
            with anyio.move_on_after(CLOSE_PATIENCE) as scope:
                await sink.close()
            if scope.cancelled_caught:
                self._failed(log, "the disk does not answer")
        for wake in tuple(self._watchers):
            wake()
