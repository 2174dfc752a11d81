# SPDX-License-Identifier: Apache-2.0
"""The ledger: no part of a board is given away twice, whatever is killed, and what is given back can be had again."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from runphi_async.board import claims, ranges
from runphi_async.board import ledger as ledgers
from runphi_async.board.claims import Claim, Held, Kind, Owner, Seen
from runphi_async.board.ledger import Decision, Ledger
from runphi_async.board.ranges import Range
from runphi_async.errors import BackendError, PlanError

PAGE = 4096
MEMORY = Claim(Kind.MEMORY, 0x1000, 0x3000)


def owner(name: str) -> Owner:
    return Owner(name, "boot", f"cell-{name}")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / ledgers.FILE), "boot")


# Section: rules


@pytest.mark.parametrize(
    ("one", "two", "excluded"),
    [
        (MEMORY, Claim(Kind.MEMORY, 0x2FFF, 0x4000), True),
        (MEMORY, Claim(Kind.MEMORY, 0x3000, 0x4000), False),
        (MEMORY, Claim(Kind.IRQ, 0x1000, 0x3000), False),
        (Claim(Kind.IVSHMEM, 1, 2, "net0"), Claim(Kind.IVSHMEM, 1, 2, "net1"), False),
        (Claim(Kind.IVSHMEM, 1, 2, "net0"), Claim(Kind.IVSHMEM, 1, 2, "net0"), True),
        (Claim(Kind.DEVICE, 0, 9, shared=True), Claim(Kind.DEVICE, 0, 9, shared=True), False),
        (Claim(Kind.DEVICE, 0, 9, shared=True), Claim(Kind.DEVICE, 0, 9), True),
        (Claim(Kind.MEMORY, 0, 9, colors=0b0011), Claim(Kind.MEMORY, 0, 9, colors=0b1100), False),
        (Claim(Kind.MEMORY, 0, 9, colors=0b0011), Claim(Kind.MEMORY, 0, 9, colors=0b0110), True),
        (Claim(Kind.MEMORY, 0, 9, colors=0b0011), Claim(Kind.MEMORY, 0, 9), True),
    ],
)
def test_what_excludes_what(one: Claim, two: Claim, *, excluded: bool) -> None:
    assert one.excludes(two) is two.excludes(one) is excluded


def test_an_overlap_names_both_owners(ledger: Ledger) -> None:
    ledger.claim(owner("a"), [MEMORY, Claim(Kind.CPU, 1, 3)])
    with pytest.raises(PlanError) as caught:
        ledger.claim(owner("b"), [Claim(Kind.CPU, 2, 3)])
    assert str(caught.value) == "cannot give CPU 2 to 'b': 'a' has CPU 1-2; delete 'a' first"
    with pytest.raises(PlanError, match=r"memory 0x2000-0x2fff to 'b': 'a' has memory 0x1000-0x2fff"):
        ledger.claim(owner("b"), [Claim(Kind.MEMORY, 0x2000, 0x3000)])
    with pytest.raises(PlanError, match="'b' would have it twice, as RAM"):
        ledger.claim(owner("b"), [Claim(Kind.MEMORY, 0x5000, 0x6000, what="RAM"), Claim(Kind.MEMORY, 0x5000, 0x7000)])
    assert {held.owner.name for held in ledger.held()} == {"a"}


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (Claim(Kind.MEMORY, 0, 0x1000, colors=0b1110), "memory 0x0-0xfff of colours 1-3"),
        (Claim(Kind.DEVICE, 0x900_0000, 0x900_1000, what="uart0"), "device uart0 at 0x9000000"),
        (Claim(Kind.IVSHMEM, 1, 2, "net0"), "peer 1 of net0"),
        (Claim(Kind.IRQ, 140, 144), "interrupt 140-143"),
        (Claim(Kind.RPU, 0, 1), "RPU 0"),
    ],
)
def test_claims_in_words(claim: Claim, words: str) -> None:
    assert claim.text() == words


def test_a_shortage_names_the_holders() -> None:
    held = [Held(owner("b"), Claim(Kind.MEMORY, 0, 3 * PAGE)), Held(owner("a"), Claim(Kind.CPU, 1, 3))]
    assert claims.holders(held, Kind.MEMORY) == "'b' has 12 KiB"
    assert claims.holders(held, Kind.CPU) == "'a' has 1-2"
    assert claims.holders(held, Kind.RPU) == "nobody has any"


# Section: the file


def test_claims_survive_and_come_back_in_order(ledger: Ledger) -> None:
    wanted = [
        Claim(Kind.MEMORY, 0x7000_0000, 0x7FFF_F000, colors=(1 << 64) - 1, what="RAM"),
        Claim(Kind.IVSHMEM, 1, 2, "net0"),
        Claim(Kind.DEVICE, 1, 2, shared=True),
    ]
    ledger.claim(owner("a"), wanted)
    ledger.claim(owner("b"), [MEMORY])
    again = Ledger(ledger.path, "boot")
    assert [held.claim for held in again.held()] == [*wanted, MEMORY]
    assert again.held()[0].owner == owner("a")
    assert again.free("a") == tuple(wanted)
    assert again.free("a") == ()
    assert [held.owner.name for held in ledger.held()] == ["b"]


def test_claims_of_another_boot_are_void(ledger: Ledger) -> None:
    ledger.claim(owner("a"), [MEMORY])
    after = Ledger(ledger.path, "next")
    assert after.held() == ()
    after.claim(Owner("b", "next", "b"), [MEMORY])
    assert [held.owner.name for held in after.held()] == ["b"]
    assert ledger.held() == ()


def test_a_failed_decision_leaves_nothing(ledger: Ledger) -> None:
    def decide(held: tuple[Held, ...]) -> Decision[None]:
        raise PlanError("no")

    with pytest.raises(PlanError, match="no"):
        ledger.reserve("a", decide)
    assert ledger.held() == ()
    ledger.claim(owner("a"), [MEMORY])


def test_a_file_that_is_no_ledger_is_said(ledger: Ledger) -> None:
    Path(ledger.path).write_bytes(b"not a database, but long enough to look at" * 40)
    with pytest.raises(BackendError, match=r"cannot use the ledger .*ledger\.db: .*; it may be removed while no cell"):
        ledger.held()


def test_a_lock_held_too_long_is_said(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.claim(owner("first"), [Claim(Kind.CPU, 1, 2)])
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(ledgers, "PATIENCE", 0.01)
    with pytest.raises(BackendError, match="locked"):
        ledger.claim(owner("a"), [MEMORY])
    other.close()
    ledger.claim(owner("a"), [MEMORY])


def test_of_many_threads_one_gets_it(ledger: Ledger) -> None:
    won: list[str] = []

    def claim(name: str) -> None:
        try:
            Ledger(ledger.path, "boot").claim(owner(name), [MEMORY])
        except PlanError:
            return
        won.append(name)

    threads = [threading.Thread(target=claim, args=(f"c{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [held.owner.name for held in ledger.held()] == won


#: claims one pair after the other, each twice as wide as a page, for ever
BUSY = """
import sys
from runphi_async.board.claims import Claim, Kind, Owner
from runphi_async.board.ledger import Decision, Ledger
ledger = Ledger(sys.argv[1], "boot")
n = 0
while True:
    place = n % 8 * 4096
    owner = f"c{n % 8}"
    ledger.free(owner)
    memory, cpu = Claim(Kind.MEMORY, place, place + 4096), Claim(Kind.CPU, n % 8, n % 8 + 1)
    ledger.claim(Owner(owner, "boot", owner), [memory, cpu])
    n += 1
    if n == 4:
        print("busy", flush=True)
"""


def test_killed_at_any_moment_it_stays_whole(ledger: Ledger) -> None:
    for _ in range(3):
        busy = subprocess.Popen([sys.executable, "-c", BUSY, ledger.path], stdout=subprocess.PIPE)
        assert busy.stdout is not None
        with busy.stdout:
            assert busy.stdout.readline() == b"busy\n"
            busy.send_signal(signal.SIGKILL)
        busy.wait()
        by_owner: dict[str, set[Kind]] = {}
        for held in ledger.held():
            by_owner.setdefault(held.owner.name, set()).add(held.claim.kind)
        # every owner has both of its claims
        assert by_owner
        assert all(kinds == {Kind.MEMORY, Kind.CPU} for kinds in by_owner.values())
        for name in by_owner:
            ledger.free(name)
        assert ledger.held() == ()


# Section: compared with the hypervisor


def test_the_self_check_tells_what_is_stale_foreign_or_different() -> None:
    held = [
        *(Held(owner("gone"), claim) for claim in claims.units(Kind.CPU, [1])),
        *(Held(owner("ok"), claim) for claim in claims.units(Kind.CPU, [2, 3])),
        *(Held(owner("odd"), claim) for claim in claims.units(Kind.CPU, [4])),
    ]
    seen = [Seen("cell-ok", (2, 3)), Seen("cell-odd", (5,)), Seen("linux-demo", (6, 7))]
    found = claims.check(held, seen)
    assert [(d.owner, d.problem, d.stale) for d in found] == [
        ("gone", "its cell 'cell-gone' does not exist any more", True),
        ("odd", "its cell 'cell-odd' has CPUs 5, it claimed 4", False),
        ("", "cell 'linux-demo' on CPUs 6-7 was made by somebody else", False),
    ]
    assert claims.check(held[1:2], seen[:1]) == []
    (stranger,) = claims.strangers(held, seen)
    assert (stranger.owner.name, stranger.claim) == ("cell linux-demo", Claim(Kind.CPU, 6, 8))


def test_the_self_check_tells_overlaps() -> None:
    held = [Held(owner("a"), MEMORY), Held(owner("b"), MEMORY)]
    seen = [Seen("cell-a", ()), Seen("cell-b", ())]
    (found,) = claims.check(held, seen)
    assert found.problem == "memory 0x1000-0x2fff overlaps memory 0x1000-0x2fff of 'a'"


# Section: any order of claiming, freeing and crashing

POOL = Range(0, 32 * PAGE)


class Crash(BaseException):
    """The process dies here."""


class Dying(sqlite3.Connection):
    """A connection that dies before its n-th statement, leaving the file as a killed process would."""

    left = -1

    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
        if Dying.left == 0:
            raise Crash
        Dying.left -= 1
        return super().execute(sql, *args)  # type: ignore[arg-type]


class DyingLedger(Ledger):
    """A ledger on such connections."""

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, factory=Dying)
        left, Dying.left = Dying.left, -1
        db.execute("PRAGMA foreign_keys = ON")
        Dying.left = left
        return db


class Machine(RuleBasedStateMachine):
    """Memory and CPUs claimed and freed in any order, with crashes, against a plain model."""

    names = Bundle("names")

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.mkdtemp(dir="/dev/shm")  # as a run directory: no disk to wait for
        self.ledger = Ledger(os.path.join(self.directory, "ledger.db"), "boot")
        self.ledger.free("nobody")  # makes the file
        self.model: dict[str, Range] = {}
        self.count = 0

    def place(self, held: tuple[Held, ...], pages: int, align: int) -> Range | None:
        wanted = Claim(Kind.MEMORY, 0, 1)
        return ranges.first_fit(ranges.without([POOL], claims.taken(held, wanted)), pages * PAGE, align * PAGE)

    def reserve(self, ledger: Ledger, name: str, pages: int, align: int) -> Range:
        def decide(held: tuple[Held, ...]) -> Decision[Range]:
            place = self.place(held, pages, align)
            if place is None:
                raise PlanError("full")
            return Decision(place, name, [Claim(Kind.MEMORY, place.start, place.end)])

        return ledger.reserve(name, decide)

    @rule(target=names, pages=st.integers(1, 12), align=st.sampled_from([1, 2, 4]))
    def claim(self, pages: int, align: int) -> str:
        self.count += 1
        name = f"c{self.count}"
        try:
            place = self.reserve(self.ledger, name, pages, align)
        except PlanError:
            # refused only when no aligned gap is large enough
            free = ranges.without([POOL], self.model.values())
            assert all(ranges.first_fit([gap], pages * PAGE, align * PAGE) is None for gap in free)
            return name
        assert place.start % (align * PAGE) == 0
        self.model[name] = place
        return name

    @rule(name=consumes(names))
    def free(self, name: str) -> None:
        had = self.model.pop(name, None)
        assert [claim.range for claim in self.ledger.free(name)] == ([had] if had else [])

    @rule(pages=st.integers(1, 6), step=st.integers(0, 6))
    def crash_while_claiming(self, pages: int, step: int) -> None:
        self.count += 1
        name = f"c{self.count}"
        Dying.left = step
        try:
            self.model[name] = self.reserve(DyingLedger(self.ledger.path, "boot"), name, pages, 1)
        except (Crash, PlanError):
            pass  # nothing of it may be left
        finally:
            Dying.left = -1

    @rule(name=names, step=st.integers(0, 4))
    def crash_while_freeing(self, name: str, step: int) -> None:
        Dying.left = step
        try:
            DyingLedger(self.ledger.path, "boot").free(name)
            self.model.pop(name, None)
        except Crash:
            pass
        finally:
            Dying.left = -1

    @rule()
    def everything_back_is_one_range(self) -> None:
        for name in list(self.model):
            self.ledger.free(name)
        self.model.clear()
        assert self.ledger.held() == ()
        assert self.place((), 32, 1) == POOL

    @invariant()
    def the_file_is_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        held = self.ledger.held()
        assert {h.owner.name: h.claim.range for h in held} == self.model
        assert not any(one.overlaps(two) for one, two in combinations(self.model.values(), 2))

    def teardown(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_any_order_of_claims_and_crashes = Machine.TestCase
