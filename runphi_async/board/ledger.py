# SPDX-License-Identifier: Apache-2.0
"""The ledger: who has which part of the board, kept so that no crash and no second process can give it away twice.

A partitioning hypervisor makes two cells in the same memory without a word, so the claims must be right. They lie in
an SQLite file in the run directory. Its transactions make a claim whole or not at all when the process is killed
between any two steps, and its lock holds against other processes; a connection lives for one transaction only, so a
method may be called from any thread. Claims belong to a boot: after the next one the cells are gone, and so are they.

Methods block for less than a millisecond, and up to :data:`PATIENCE` when another process holds the lock: call them
off the loop. The rules are in ``claims.py``.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from runphi_async.board.claims import Claim, Held, Kind, Owner, refuse
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

#: name of the file in the run directory
FILE: Final = "ledger.db"
#: seconds to wait for another process that holds the lock
PATIENCE: Final = 10.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS owner (
    name TEXT PRIMARY KEY, boot_id TEXT NOT NULL, cell TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claim (
    owner TEXT NOT NULL REFERENCES owner (name) ON DELETE CASCADE,
    kind TEXT NOT NULL, pool TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
    colors TEXT NOT NULL, shared INTEGER NOT NULL, what TEXT NOT NULL
);
PRAGMA user_version = 1;
"""
_READ: Final = """
SELECT name, boot_id, cell, kind, start, end, pool, colors, shared, what
FROM claim JOIN owner ON claim.owner = owner.name WHERE boot_id = ? ORDER BY claim.rowid
"""
_WRITE: Final = "INSERT INTO claim VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


def _row(owner: str, claim: Claim) -> tuple[str | int, ...]:
    """Return a claim as the table has it; a mask of 64 colours is too large for SQLite's integers."""
    numbers = (claim.start, claim.end, str(claim.colors), int(claim.shared))
    return (owner, claim.kind, claim.pool, *numbers, claim.what)


class Decision(NamedTuple, Generic[T]):
    """What somebody decided to claim.

    :ivar result: what it was decided for.
    :ivar cell: what the hypervisor will call the owner's partition.
    """

    result: T
    cell: str
    claims: Sequence[Claim]


class Ledger:
    """The claims of this boot; every method is one transaction."""

    def __init__(self, path: str, boot_id: str) -> None:
        self.path = path
        self._boot_id = boot_id

    def held(self) -> tuple[Held, ...]:
        """Return every claim, in the order they were made; asking makes no file."""
        if not os.path.exists(self.path):
            return ()
        with self._transaction("BEGIN") as db:
            return self._held(db)

    def claim(self, owner: Owner, claims: Sequence[Claim]) -> None:
        """Claim all or nothing.

        :raises PlanError: somebody has a part of it already; names both owners.
        """
        self.reserve(owner.name, lambda held: Decision(None, owner.cell, claims))

    def reserve(self, name: str, decide: Callable[[tuple[Held, ...]], Decision[T]]) -> T:
        """Decide what to claim, and claim it, while nobody else can.

        :param name: the owner's.
        :param decide: gets what is held; must be quick and pure.
        :returns: the result of ``decide``.
        :raises PlanError: from ``decide``, or because a claim is somebody's.
        """
        with self._transaction("BEGIN IMMEDIATE") as db:
            self._bury(db)
            held = self._held(db)
            decision = decide(held)
            owner = Owner(name, self._boot_id, decision.cell)
            refuse(owner, decision.claims, held)
            db.execute(
                "INSERT INTO owner VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET cell = excluded.cell",
                (owner.name, self._boot_id, owner.cell),
            )
            for claim in decision.claims:
                db.execute(_WRITE, _row(owner.name, claim))
            return decision.result

    def free(self, name: str) -> tuple[Claim, ...]:
        """Give back everything an owner has; return what it was. Who has nothing gives nothing back."""
        with self._transaction("BEGIN IMMEDIATE") as db:
            self._bury(db)
            had = tuple(held.claim for held in self._held(db) if held.owner.name == name)
            db.execute("DELETE FROM owner WHERE name = ?", (name,))
            return had

    def _held(self, db: sqlite3.Connection) -> tuple[Held, ...]:
        return tuple(
            Held(Owner(name, boot, cell), Claim(Kind(kind), start, end, pool, int(colors), bool(shared), what))
            for name, boot, cell, kind, start, end, pool, colors, shared, what in db.execute(_READ, (self._boot_id,))
        )

    def _bury(self, db: sqlite3.Connection) -> None:
        """Claims of an earlier boot are void: its cells are gone."""
        db.execute("DELETE FROM owner WHERE boot_id != ?", (self._boot_id,))

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect()) as db:
                db.execute(begin)
                try:
                    yield db
                except BaseException:
                    db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
        except sqlite3.Error as exc:
            hint = "it may be removed while no cell of a container exists"
            raise BackendError(f"cannot use the ledger {self.path}: {exc}", hint) from exc

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        try:
            db.execute("PRAGMA foreign_keys = ON")
            if db.execute("PRAGMA user_version").fetchone() == (0,):
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        except BaseException:
            db.close()
            raise
        return db
