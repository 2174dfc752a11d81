# SPDX-License-Identifier: Apache-2.0
"""Patterns on a console: a line that matches one is counted and reported, such as "ready" or a kernel's panic.

A guest prints what it likes, as fast as it likes, so the work is bounded three times over: RE2 matches in time linear
to the text whatever the pattern, a line longer than ``LINE_MAX`` is seen from its end only, and matching takes no more
than a third of the loop's time (``Watch``). Without rules nothing of this exists.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from runphi_async.errors import RunphiError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from consoles.streams.journal import Journal

#: Longest part of an unfinished line that is kept to be matched again when it goes on: the longest match there can be.
LINE_MAX: Final = 1 << 12
#: Longest pattern, and the memory its automaton may take: beyond it matching gets slower, not larger. Source: re2.h.
PATTERN_MAX: Final = 512
MEMORY_MAX: Final = 1 << 20
#: Rules of one guest.
RULES_MAX: Final = 32
#: A turn of the loop matches this much, and counts so many matches of one rule in it; the count is "at least" then.
BATCH: Final = 1 << 14
MATCHES_MAX: Final = 200
#: Seconds that output is gathered before it is matched, and how many times longer than a turn the loop is left alone.
GATHER: Final = 0.01
REST: Final = 2
#: The first line is looked for in so much at once.
TURN: Final = 1 << 20
#: Longest part of a matching line that is reported.
SHOWN: Final = 200
#: A rule that matches again and again is reported once in so many seconds.
PERIOD: Final = 10.0

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class RuleError(RunphiError, ValueError):
    """Raised when a rule cannot be used; the text says why. A ValueError, as msgspec wants it of a configuration."""


class Rule(NamedTuple):
    """A pattern with a name, which is the name of its event."""

    name: str
    pattern: bytes


class Match(NamedTuple):
    """A line that matched; ``number``: how many there were with this one."""

    name: str
    number: int
    line: bytes


def compiled(rule: Rule, taken: Collection[str] = ()) -> Any:
    """Return the rule's automaton.

    :param taken: names that a rule may not have.
    :raises RuleError: the name or the pattern is of no use.
    """
    import re2

    if not _NAME.fullmatch(rule.name):
        raise RuleError(f"rule name {rule.name!r}: use 1 to 32 lower-case letters, digits and -")
    if rule.name in taken:
        raise RuleError(f"rule name {rule.name!r}: the runtime has an event of that name")
    if not 0 < len(rule.pattern) <= PATTERN_MAX:
        raise RuleError(f"rule {rule.name}: a pattern has 1 to {PATTERN_MAX} bytes")
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # every byte is a letter: consoles need not print UTF-8
    options.never_nl = True
    options.max_mem = MEMORY_MAX
    options.log_errors = False
    try:
        re2.compile(rule.pattern, options=options)  # on its own first: parentheses must not pair with ours
        automaton = re2.compile(b"(?m:" + rule.pattern + b")", options=options)
    except re2.error as exc:
        raise RuleError(f"rule {rule.name}: cannot use the pattern: {_reason(exc)}") from None
    if automaton.search(b"") is not None:
        raise RuleError(f"rule {rule.name}: the pattern matches any line, even an empty one")
    return automaton


def _reason(exc: Exception) -> str:
    text = exc.args[0] if exc.args else ""
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


@dataclass(frozen=True)
class State:
    """What a next matcher must know to count on: where it stood, and which rules the unfinished line had matched."""

    offset: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    matched: tuple[str, ...] = ()


class Matcher:
    """Counts matching lines in a stream that comes in pieces; a rule matches a line once."""

    def __init__(self, rules: Iterable[Rule], state: State | None = None) -> None:
        state = state or State()
        self.rules = tuple(rules)[:RULES_MAX]
        self._automata = {rule.name: compiled(rule) for rule in self.rules}
        self.counts = {rule.name: state.counts.get(rule.name, 0) for rule in self.rules}
        #: rules of which more lines matched than were counted
        self.at_least: set[str] = set()
        self._matched = set(state.matched)
        self._line = b""
        self._offset = state.offset

    def state(self) -> State:
        """Return what is to be kept."""
        return State(self._offset - len(self._line), dict(self.counts), tuple(sorted(self._matched)))

    def feed(self, data: bytes) -> list[Match]:
        """Take the next piece; return the matches in it, those of one rule in order."""
        text = self._line + data
        found: list[Match] = []
        matched = self._matched
        self._matched = set()
        for name, automaton in self._automata.items():
            found += self._search(name, automaton, text, skip=name in matched)
        self._line = text[text.rfind(b"\n") + 1 :][-LINE_MAX:]
        self._offset += len(data)
        return found

    def _search(self, name: str, automaton: Any, text: bytes, *, skip: bool) -> list[Match]:
        found: list[Match] = []
        at = text.find(b"\n") + 1 if skip else 0
        if skip and at == 0:
            self._matched.add(name)
            return found
        while (match := automaton.search(text, at)) is not None:
            if len(found) == MATCHES_MAX:
                self.at_least.add(name)
                break
            start, end = text.rfind(b"\n", 0, match.start()) + 1, text.find(b"\n", match.end())
            self.counts[name] += 1
            line = text[start : end if end >= 0 else None]
            found.append(Match(name, self.counts[name], line[-SHOWN:] if end < 0 else line[:SHOWN]))
            if end < 0:
                self._matched.add(name)
                break
            at = end + 1
        return found

    def jump(self, offset: int) -> None:
        """What lies before ``offset`` was missed."""
        self._offset, self._line, self._matched = offset, b"", set()


class Watch:
    """Lets a matcher follow a journal, as a ``consoles.streams.hub.Follower``.

    :param report: called with the matches worth an event of one piece of output: the first of a rule, and later ones
        now and then.
    """

    def __init__(
        self, journal: Journal, rules: Iterable[Rule], report: Callable[[list[Match]], None], state: State
    ) -> None:
        self.matcher = Matcher(rules, state)
        #: bytes that were given back before they could be matched
        self.missed = 0
        self._journal = journal
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._offset = state.offset
        self._due: asyncio.TimerHandle | None = None
        self._told: dict[str, float] = {}

    def pump(self) -> None:
        """Match soon."""
        if self._due is None:
            self._due = self._loop.call_later(GATHER, self._turn)

    def _turn(self) -> None:
        self._due = None
        begun = time.perf_counter()
        if self._step():
            self._due = self._loop.call_later(REST * (time.perf_counter() - begun), self._turn)

    def _step(self) -> bool:
        """Match one batch; return whether there is more."""
        if self._offset < self._journal.base:
            self.missed += self._journal.base - self._offset
            self._offset = self._journal.base
            self.matcher.jump(self._offset)
        data = self._journal.read(self._offset, BATCH) if self._journal.tail > self._offset else b""
        self._offset += len(data)
        now, due = self._loop.time(), list[Match]()
        for match in self.matcher.feed(data) if data else ():
            if match.name not in self._told or now - self._told[match.name] >= PERIOD:
                self._told[match.name] = now
                due.append(match)
        if due:
            self._report(due)
        return self._offset < self._journal.tail

    async def finish(self) -> None:
        """Match all there is: the guest has ended. The others keep their share of the loop meanwhile."""
        self._cancel()
        begun = time.perf_counter()
        while self._step():
            await asyncio.sleep(REST * (time.perf_counter() - begun))
            begun = time.perf_counter()
        self._cancel()

    def _cancel(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def close(self) -> None:
        """Stop; ``finish`` comes first where the rest counts."""
        self._cancel()


class Milestones:
    """Says when the first byte and the first whole line of a console are there; a ``consoles.streams.hub.Follower``.

    :param reached: called with "first-byte" and "first-line", in this order.
    :param done: called when there is nothing more to wait for.
    """

    def __init__(self, journal: Journal, reached: Callable[[str], None], done: Callable[[Milestones], None]) -> None:
        self._journal = journal
        self._reached = reached
        self._done = done
        self._offset = 0
        self._spoke = False

    def pump(self) -> None:
        """Look at what is new."""
        journal = self._journal
        if journal.tail > 0 and not self._spoke:
            self._spoke = True
            self._reached("first-byte")
        self._offset = max(self._offset, journal.base)
        if self._offset < journal.tail:
            data = journal.read(self._offset, TURN)
            self._offset += len(data)
            if b"\n" in data:
                self._reached("first-line")
                self._done(self)

    def close(self) -> None:
        """Nothing is held."""
