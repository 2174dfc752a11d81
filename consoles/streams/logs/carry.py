# SPDX-License-Identifier: Apache-2.0
"""Carriers: they move a journal into the files of a log, every byte once, whenever their process is killed.

``Spliced`` (raw logs) lets the kernel keep the position: ``sendfile`` moves bytes and cursor in one system call.
``Encoded`` says in a sidecar what it is about to write before it writes (``consoles.streams.logs.sidecar``).

All their functions but the properties block, and may raise OSError: then nothing is lost yet and they may be called
again. What to give up, and when, is the sink's decision (``skip``).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, Protocol

from consoles.streams.logs import encode
from consoles.streams.logs.sidecar import Batch, Kind, Standing

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.streams.journal import Journal
    from consoles.streams.logs.encode import Encoder, Parts, Stamp
    from consoles.streams.logs.files import Files
    from consoles.streams.logs.sidecar import Sidecar

#: Bytes of the guest in one batch: it bounds what one step of the encoder holds in memory and in the spill. Needs an
#: allocator that keeps blocks of this size (``runphi_async.aio.allocator``), else each batch costs a hundred page
#: faults.
BATCH: Final = 1 << 18
#: After so many bytes moved whoever waits for room is told, also in the middle of a long step.
RELIEF: Final = 1 << 19
#: Of a log that is rotated early, a batch is at most this part of a file.
SHARE: Final = 4


class Carrier(Protocol):
    """Moves a journal into files."""

    @property
    def offset(self) -> int:
        """The journal's first byte that is still needed."""
        ...

    @property
    def lost(self) -> int:
        """Bytes that were given up."""
        ...

    @property
    def unfinished(self) -> bool:
        """Whether there is something to write even though the journal has nothing new."""
        ...

    def move(self, limit: int, relief: Callable[[], None]) -> None:
        """Write about ``limit`` bytes of the journal, or what there is; call ``relief`` now and then."""
        ...

    def skip(self, upto: int, why: int) -> None:
        """Give up what lies before the journal's offset ``upto``: the disk refused it with errno ``why``."""
        ...

    def reopen(self) -> None:
        """Open the file by its name: another program has renamed it."""
        ...

    def let_go(self) -> None:
        """The disk refused something: hold nothing open that may be gone."""
        ...

    def finish(self) -> None:
        """The console has ended: write what was held back."""
        ...

    def close(self) -> None:
        """Close everything; another carrier can go on."""
        ...


class Spliced:
    """Raw bytes by ``sendfile`` from a kernel-held cursor.

    :param cursor: description on the journal whose offset is the position; shared with the init stub; owned.
    """

    unfinished = False

    def __init__(self, journal: Journal, cursor: int, files: Files) -> None:
        self._journal = journal
        self._cursor = cursor
        self._files = files
        self.offset = os.lseek(cursor, 0, os.SEEK_CUR)
        self.lost = 0

    def move(self, limit: int, relief: Callable[[], None]) -> None:
        """Write about ``limit`` bytes of the journal, or what there is."""
        while (want := min(limit, RELIEF, self._journal.tail - self.offset)) > 0:
            self._files.ready(self.offset - self.lost)
            self._files.stamp()
            sent = self._files.send(self._cursor, min(want, self._files.room))
            self.offset += sent
            limit -= sent
            if sent == RELIEF:
                relief()

    def skip(self, upto: int, why: int) -> None:
        """Move the cursor."""
        self.lost += upto - self.offset
        self.offset = os.lseek(self._cursor, upto, os.SEEK_SET)

    def reopen(self) -> None:
        """Open the file by its name."""
        self._files.close()
        self._files.ready(self.offset - self.lost)

    def let_go(self) -> None:
        """Close the file."""
        self._files.close()

    def finish(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close everything; the position stays with whoever else holds the cursor."""
        self._files.close()
        if self._cursor >= 0:
            os.close(self._cursor)
            self._cursor = -1


class Encoded:
    """Records of any kind, by a statement of intent before each batch."""

    def __init__(
        self,
        journal: Journal,
        encoder: Encoder,
        files: Files,
        sidecar: Sidecar,
        *,
        indexed: bool = False,
        batch: int = BATCH,
        now: Callable[[], Stamp] = encode.now,
    ) -> None:
        self._journal = journal
        self._encoder = encoder
        self._files = files
        self._sidecar = sidecar
        self._indexed = indexed
        self._batch = batch
        self._now = now
        at = sidecar.load()
        self._at = at if at is not None else Standing(journal.base)
        #: the torn batch's records, when this process has made them
        self._records: Parts = []
        sidecar.save(self._at)

    @property
    def offset(self) -> int:
        """The journal's first byte that is still needed: a torn batch must be made again after a crash."""
        at = self._at
        torn = at.torn
        return at.offset if torn is None or at.spilled or torn.kind is not Kind.OUTPUT else torn.start

    @property
    def lost(self) -> int:
        """Bytes that were given up."""
        return self._at.lost

    @property
    def unfinished(self) -> bool:
        """Whether a batch is torn, or a loss is not told of yet."""
        return self._at.torn is not None or self._at.unsaid > 0

    def move(self, limit: int, relief: Callable[[], None]) -> None:
        """Write about ``limit`` bytes of the journal, or what there is."""
        if self._at.torn is not None:
            self._complete(self._at.torn)
        if self._at.unsaid:
            self._put(Kind.LOST, 0)
        moved = 0
        while (want := min(limit, self._batch, self._journal.tail - self._at.offset)) > 0:
            self._put(Kind.OUTPUT, want)
            limit -= want
            moved += want
            if moved >= RELIEF:
                moved = 0
                relief()

    def finish(self) -> None:
        """Write what the encoder held back."""
        if self._at.state and self._at.torn is None:
            self._put(Kind.FINISH, 0)

    def skip(self, upto: int, why: int) -> None:
        """Give up what is not in a batch yet; the torn one is kept, so that no file ends within a record."""
        at = self._at
        torn, spilled = at.torn, at.spilled
        if torn is not None and torn.kind is Kind.OUTPUT and not spilled:
            # With no memory left for it, this process still has the records; only a crash would lose them.
            with contextlib.suppress(OSError):
                self._sidecar.spill(self._journal.read(torn.start, torn.length))
            spilled = True
        count = max(0, upto - at.offset)
        self._save(
            at._replace(
                offset=at.offset + count, lost=at.lost + count, unsaid=at.unsaid + count, why=why, spilled=spilled
            )
        )

    def reopen(self) -> None:
        """Open the file by its name, once a torn batch is complete where it began."""
        if self._at.torn is not None:
            self._complete(self._at.torn)
        self._files.close()
        self._files.ready(self._logged)

    def let_go(self) -> None:
        """Close the file; a torn batch's is looked for again."""
        self._files.close()

    def close(self) -> None:
        """Close everything; the standing stays in the sidecar."""
        self._files.close()
        self._sidecar.close()

    # Section: one batch

    @property
    def _logged(self) -> int:
        return self._at.offset - self._at.lost

    def _save(self, at: Standing) -> None:
        self._sidecar.save(at)
        self._at = at

    def _render(self, batch: Batch, data: bytes) -> tuple[Parts, bytes]:
        """Return the records of a batch and the encoder's state behind it."""
        encoder, stamp = self._encoder, batch.stamp
        if batch.kind is Kind.OUTPUT:
            return encoder.encode(data, batch.state, stamp)
        held = encoder.finish(batch.state, stamp)
        lost = encoder.lost(batch.lost, os.strerror(batch.why), stamp) if batch.kind is Kind.LOST else b""
        return [held, lost], b""

    def _put(self, kind: Kind, length: int) -> None:
        at = self._at
        lost = at.unsaid if kind is Kind.LOST else 0
        batch = Batch(kind, at.offset, length, self._now(), lost, at.why if lost else 0, at.state)
        records, state = self._render(batch, self._journal.read(at.offset, length))
        after = at._replace(offset=at.offset + length, state=state, unsaid=at.unsaid - lost)
        size = _size(records)
        if not size:  # less than a character
            self._save(after)
            return
        self._files.ready(self._logged)
        self._intend(after, batch._replace(size=size), records)
        self._write(0)

    def _intend(self, after: Standing, batch: Batch, records: Parts) -> None:
        """Say what is about to be written, and where; from here on it must be."""
        files = self._files
        torn = batch._replace(file=files.identity, position=files.position)
        self._save(after._replace(torn=torn))
        self._records = records

    def _write(self, written: int) -> None:
        if self._indexed and not written:
            self._files.stamp()
        size = _size(self._records)
        if not written:
            written = self._files.write(self._records)
        if written < size:  # rare: the disk or a crash cut the batch in two
            whole = memoryview(b"".join(self._records))
            while written < size:
                written += self._files.write((whole[written:],))
        self._done()

    def _done(self) -> None:
        if self._at.spilled:
            self._sidecar.unspill()
        self._records = []
        self._save(self._at._replace(torn=None, spilled=False))

    def _complete(self, torn: Batch) -> None:
        """Go on with a batch that is in its file in part: a crash or the disk cut it in two."""
        written = self._files.find(torn.file, torn.position)
        if written is not None and written >= torn.size:
            self._done()
        else:
            records = self._records or self._again(torn)
            if _size(records) != torn.size:
                self._give_up(torn)
                return
            if written is None:  # the file is gone, and with it the part it held
                self._files.ready(self._logged)
                self._intend(self._at, torn, records)
                written = 0
            self._records = records
            self._write(written)
        self._files.close()  # it may have another name by now

    def _again(self, torn: Batch) -> Parts:
        """Make the records once more; none when their bytes are gone."""
        data: bytes | None = b""
        if self._at.spilled:
            data = self._sidecar.spilled()
        elif torn.kind is Kind.OUTPUT:
            data = self._journal.read(torn.start, torn.length) if torn.start >= self._journal.base else None
        return self._render(torn, data)[0] if data is not None else []

    def _give_up(self, torn: Batch) -> None:
        """Neither disk nor memory kept it: the file that ends within a record is put aside for a new one."""
        at = self._at
        self._files.rotate(self._logged)
        gone = torn.length if torn.kind is Kind.OUTPUT else 0
        unsaid = at.unsaid + gone + torn.lost
        self._save(at._replace(lost=at.lost + gone, unsaid=unsaid, torn=None, spilled=False))
        self._records = []


def _size(parts: Parts) -> int:
    return sum(map(len, parts))
