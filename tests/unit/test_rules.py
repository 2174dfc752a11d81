# SPDX-License-Identifier: Apache-2.0
"""Rules: what they count whatever the pieces, that no guest and no pattern can stall, what a next matcher needs."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consoles.streams.rules import (
    BATCH,
    LINE_MAX,
    MATCHES_MAX,
    Match,
    Matcher,
    Milestones,
    Rule,
    RuleError,
    State,
    Watch,
    compiled,
)
from runphi_async.config.loading import from_table
from runphi_async.config.schema import Config
from runphi_async.errors import ConfigError, SpecError
from runphi_async.events import NAMES
from runphi_async.partition.rules import check_annotation, rules_of
from tests.unit.consolekit import journals, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consoles.streams.journal import Journal

READY = Rule("ready", rb"login: $|^ready")


@pytest.fixture
def journal() -> Iterator[Journal]:
    yield from journals()


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (Rule("Ready", b"x"), "lower-case"),
        (Rule("", b"x"), "lower-case"),
        (Rule("exit", b"x"), "has an event of that name"),
        (Rule("x", b""), "1 to 512 bytes"),
        (Rule("x", b"x" * 513), "1 to 512 bytes"),
        (Rule("x", b"("), "missing \\)"),
        (Rule("x", b"(?=a)b"), "invalid perl operator"),
        (Rule("x", rb"(a)\1"), "invalid escape sequence"),
        (Rule("x", b"a)(b"), "unexpected"),
        (Rule("x", b"a*"), "matches any line"),
        (Rule("x", b"a{1000}{1000}"), "invalid repetition|bad repetition"),
    ],
)
def test_what_is_no_rule(rule: Rule, why: str) -> None:
    with pytest.raises(RuleError, match=why):
        compiled(rule, NAMES)


def test_a_line_matches_once() -> None:
    matcher = Matcher([Rule("a", b"a"), Rule("b", b"b$")])
    found = matcher.feed(b"aaa b\nxab")
    assert found == [Match(name, n, line) for name in "ab" for n, line in ((1, b"aaa b"), (2, b"xab"))]
    assert matcher.feed(b"a b\n") == []
    assert matcher.feed(b"a") == [Match("a", 3, b"a")]


def test_a_prompt_matches_before_its_line_ends() -> None:
    matcher = Matcher([READY])
    assert matcher.feed(b"\r\ndebian log") == []
    assert [match.name for match in matcher.feed(b"in: ")] == ["ready"]


def test_bytes_that_are_no_text() -> None:
    matcher = Matcher([Rule("x", rb"\xff\x00.")])
    assert matcher.feed(b"\xfe\xff\x00\x80\n") == [Match("x", 1, b"\xfe\xff\x00\x80")]


@given(
    lines=st.lists(st.text("abn\r", max_size=12).map(str.encode), max_size=30),
    cuts=st.lists(st.integers(1, 20), max_size=60),
    stop=st.integers(0, 30),
)
def test_counts_do_not_depend_on_the_pieces_nor_on_a_restart(lines: list[bytes], cuts: list[int], stop: int) -> None:
    rules = [Rule("ab", b"ab"), Rule("begin", b"^b+a"), Rule("n", b"n.*n")]
    data = b"\n".join(lines) + b"\n"
    matcher, at = Matcher(rules), 0
    for number, cut in enumerate([*cuts, len(data)]):
        if number == stop:
            state = matcher.state()
            matcher = Matcher(rules, state)
            at = state.offset
        matcher.feed(data[at : at + cut])
        at += cut
    expected = {rule.name: sum(re.search(rule.pattern, line) is not None for line in lines) for rule in rules}
    assert matcher.counts == expected


@pytest.mark.parametrize("pattern", [rb"(a+)+b", rb"(a|a)*b", rb"(.*)(.*)(.*)(.*)[b]", rb"(a?){50}a{50}b"])
def test_no_pattern_and_no_guest_can_stall(pattern: bytes) -> None:
    """Each would take a backtracking matcher hours."""
    matcher = Matcher([Rule("x", pattern)])
    begun = time.process_time()
    for _ in range(20):
        matcher.feed(b"a" * 16384)
    assert time.process_time() - begun < 2
    assert matcher.counts == {"x": 0}


def test_a_long_line_is_seen_from_its_end() -> None:
    matcher = Matcher([Rule("x", b"begin.*end")])
    matcher.feed(b"begin")
    matcher.feed(b"." * LINE_MAX)
    assert matcher.feed(b"end\n") == []
    assert matcher.state().offset == 5 + LINE_MAX + 4


def test_more_matches_than_are_counted_are_said() -> None:
    matcher = Matcher([Rule("x", b"x")])
    assert len(matcher.feed(b"x\n" * 1000)) == MATCHES_MAX
    assert matcher.at_least == {"x"}


async def test_a_journal_is_followed(journal: Journal) -> None:
    told: list[Match] = []
    watch = Watch(journal, [Rule("x", b"x"), Rule("last", b"last")], told.extend, State())
    journal.append(b"x\n" * 5 + b"la")
    watch.pump()
    await until(lambda: watch.matcher.counts["x"] == 5)
    assert told == [Match("x", 1, b"x")]  # once in a while is enough
    journal.append(b"st")
    await watch.finish()
    assert told[1:] == [Match("last", 1, b"last")]
    watch.close()


async def test_matches_of_one_piece_are_reported_together(journal: Journal) -> None:
    told: list[list[Match]] = []
    watch = Watch(journal, [Rule("a", b"a"), Rule("b", b"b")], told.append, State())
    journal.append(b"a\nb\na\n")
    await watch.finish()
    assert [[(match.name, match.number) for match in matches] for matches in told] == [[("a", 1), ("b", 1)]]
    watch.close()


async def test_the_end_of_a_flood_leaves_the_loop_to_others(journal: Journal) -> None:
    watch = Watch(journal, [Rule("n", b"n$")], list[Match]().extend, State())
    journal.append(b"line\n" * 100_000)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    await watch.finish()
    task.cancel()
    assert watch.matcher.state().offset == 500_000
    assert turns >= 500_000 // BATCH  # at least one for each piece
    watch.close()


async def test_a_flood_leaves_the_loop_alone_and_its_end_is_seen(journal: Journal) -> None:
    told: list[Match] = []
    watch = Watch(journal, [Rule("panic", b"panic"), Rule("n", b"n")], told.extend, State())
    journal.append(b"line\n" * 1_000_000)
    watch.pump()
    await until(lambda: watch.matcher.counts["n"])
    journal.release(4_500_000)
    journal.append(b"panic\n")
    await until(lambda: watch.matcher.counts["panic"])
    assert [match.name for match in told] == ["n", "panic"]
    assert watch.missed > 0
    watch.close()


async def test_first_byte_and_first_line(journal: Journal) -> None:
    reached: list[str] = []
    done: list[Milestones] = []
    milestones = Milestones(journal, reached.append, done.append)
    milestones.pump()
    assert reached == []
    journal.append(b"boot")
    milestones.pump()
    milestones.pump()
    assert reached == ["first-byte"]
    journal.append(b"ing\n")
    milestones.pump()
    assert reached == ["first-byte", "first-line"]
    assert done == [milestones]


def test_configuration_and_annotations() -> None:
    config = from_table({"console": {"rules": [{"name": "ready", "pattern": "a"}, {"name": "x", "pattern": "b"}]}})
    assert rules_of(config, {}) == (Rule("ready", b"a"), Rule("x", b"b"))
    annotations = {"org.runphi.rule.ready": "", "org.runphi.rule.x": "c", "org.runphi.rule.y": "d", "other": "e"}
    assert rules_of(config, annotations) == (Rule("x", b"c"), Rule("y", b"d"))
    assert rules_of(Config(), {}) == ()
    for rules in ([{"name": "x"}], [{"name": "x", "pattern": "("}], [{"name": "x", "pattern": "y", "z": 1}], "x"):
        with pytest.raises(ConfigError, match="console"):
            from_table({"console": {"rules": rules}})
    check_annotation("org.runphi.rule.x", "")
    with pytest.raises(SpecError, match=r"org\.runphi\.rule\.x: rule x: cannot use the pattern: missing"):
        check_annotation("org.runphi.rule.x", "(")
