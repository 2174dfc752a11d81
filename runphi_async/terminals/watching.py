# SPDX-License-Identifier: Apache-2.0
"""What the runtime reads on a guest's console: when it first spoke, and the rules of configuration and annotations.

Everything is recorded, so that a next supervisor goes on counting where this one stood.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec

from consoles.streams.rules import Match, Milestones, State, Watch
from runphi_async import regular
from runphi_async.events import RuleMatch
from runphi_async.host.files import write_atomically
from runphi_async.partition.rules import rules_of

if TYPE_CHECKING:
    from consoles.streams.hub import Hub
    from runphi_async.config.schema import Config
    from runphi_async.events import AnyEvent
    from runphi_async.record.store import Record

log = logging.getLogger(__name__)

#: the rule that says that a guest is ready for work
READY: Final = "ready"
#: file in the record
NAME: Final = "rules.json"
#: most bytes of it: each rule has a name and a number
_STATE_MAX: Final = 4 << 20
_decoder = msgspec.json.Decoder(State)


class Line(NamedTuple):
    """A rule in the list of `console rules`; ``at_least``: there were more matches than could be counted."""

    name: str
    pattern: str
    matches: int
    at_least: bool


class Watched(Protocol):
    """The container whose console it is."""

    record: Record

    @property
    def directory(self) -> str:
        """Its record's directory."""
        ...

    def since_start(self) -> float | None:
        """Return the seconds since its guest was started, None before."""
        ...

    def note(self, event: AnyEvent) -> None:
        """Write an event."""
        ...

    def keep(self) -> None:
        """Write the record, as far as that is possible."""
        ...


class Watching:
    """All that follows one guest's console for the runtime.

    :param hub: of its console.
    :param config: rules for every guest.
    """

    def __init__(self, guest: Watched, hub: Hub, config: Config) -> None:
        self._guest = guest
        rules = rules_of(config, guest.record.annotations)
        self._watch: Watch | None = None
        if rules:
            self._watch = Watch(hub.journal, rules, self._matched, self._recorded())
            hub.follow(self._watch)
        if "first-line" not in guest.record.boot:
            hub.follow(Milestones(hub.journal, self._reached, hub.unfollow))

    def lines(self) -> list[Line]:
        """Return the rules and how often each has matched."""
        if self._watch is None:
            return []
        matcher = self._watch.matcher
        return [
            Line(rule.name, rule.pattern.decode("utf-8", "replace"), matcher.counts[rule.name], rule.name in inexact)
            for rule in matcher.rules
            for inexact in (matcher.at_least,)
        ]

    @property
    def missed(self) -> int:
        """Bytes that came too fast to be matched."""
        return self._watch.missed if self._watch is not None else 0

    async def finish(self) -> None:
        """Match what is left: the guest has ended and all it printed is here."""
        if self._watch is not None:
            await self._watch.finish()
            self._record()

    def _reached(self, what: str) -> None:
        record = self._guest.record
        seconds = self._guest.since_start()
        if seconds is not None and what not in record.boot:
            record.boot[what] = max(0, round(seconds * 1000))
            self._guest.keep()

    def _matched(self, matches: list[Match]) -> None:
        for match in matches:
            if match.name == READY:
                self._reached(READY)
            line = match.line.strip().decode("utf-8", "replace")
            self._guest.note(RuleMatch(match.name, match.name, match.number, line))
            log.info("%s: %s: %s", self._guest.record.name, match.name, line)
        self._record()  # once for all of them: it writes a file

    def _path(self) -> str:
        return os.path.join(self._guest.directory, NAME)

    def _recorded(self) -> State:
        try:
            return _decoder.decode(regular.read(self._path(), _STATE_MAX, links=False))
        except (OSError, msgspec.MsgspecError):
            return State()

    def _record(self) -> None:
        assert self._watch is not None
        try:
            write_atomically(self._path(), msgspec.json.encode(self._watch.matcher.state()))
        except OSError as exc:
            log.warning("%s: cannot record the console's rules: %s", self._guest.record.name, exc.strerror)
