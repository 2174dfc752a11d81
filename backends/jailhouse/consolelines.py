# SPDX-License-Identifier: Apache-2.0
"""Takes apart the one console that a hypervisor and all its cells write into, as Jailhouse's.

The stream has no tags. What can be told: hypervisor lines have known forms and end in ``\\n``; the inmate library ends
its lines in ``\\r\\n``; Linux's kernel messages begin with their time. A line belongs to a cell when it names one, or
when only one cell can have written it; else the cell is ``""`` and people are shown ``?``. A cell can print whatever
the hypervisor would: all of this is for people to read, never for decisions.

Pure: any cutting of the stream into pieces gives the same lines.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Final

from backends.lines import Kind, Line

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

#: A line longer than this is cut.
LINE_MAX: Final = 4096
#: No hypervisor line is longer: behind half a line of a cell it is looked for in so many bytes.
FORM_MAX: Final = 200
#: A register dump is held back up to this many lines, to learn whose it is from its last one.
DUMP_MAX: Final = 64


class _Effect(Enum):
    NONE = 0
    #: no cell exists
    CLEAR = 1
    #: the cell named may write
    RUN = 2
    #: the cell named is stopped
    STOP = 3
    #: a dump of a CPU's state begins
    DUMP = 4
    #: it ends, and says whose CPU it was
    DUMPED = 5
    #: names of cells follow
    PEERS = 6


def _form(text: str, effect: _Effect = _Effect.NONE) -> tuple[re.Pattern[bytes], _Effect]:
    return re.compile(text.replace("CELL", r'"(?P<cell>[^\r\n]{1,31})"').encode()), effect


#: Every line that Jailhouse prints. Source: recorded consoles (tests/data/jailhouse), v0.12-324.
FORMS: Final = (
    _form(r"Initializing Jailhouse hypervisor .+ on CPU \d+", _Effect.CLEAR),
    _form(r"Code location: 0x[0-9a-f]+"),
    _form(r"Page pool usage after .+: mem \d+/\d+, remap \d+/\d+"),
    _form(r"Initializing processors:"),
    _form(r" CPU \d+\.\.\. (OK|FAILED)"),
    _form(r"Initializing unit: .+"),
    _form(r"Adding virtual PCI device [0-9a-f]+:[0-9a-f]+\.\d+ to cell CELL"),
    _form(r"Activating hypervisor"),
    _form(r"Shared memory connection established, peer cells:", _Effect.PEERS),
    _form(r"Created cell CELL"),
    _form(r"Cell CELL can be loaded", _Effect.STOP),
    _form(r"Started cell CELL", _Effect.RUN),
    _form(r"Closing cell CELL", _Effect.STOP),
    _form(r"Timeout expired while waiting for reply from target cell"),
    _form(r"Shutting down hypervisor", _Effect.CLEAR),
    _form(r" Releasing CPU \d+"),
    _form(r"Unhandled data (read|write) at 0x[0-9a-f]+\(\d+\)", _Effect.DUMP),
    _form(r"Unhandled SMC arch trap -?[0-9a-fx]+", _Effect.DUMP),
    _form(r"FATAL: [^\r]+", _Effect.DUMP),
    _form(r"(Parking|Stopping) CPU \d+ \(Cell: CELL\)", _Effect.DUMPED),
)
#: The beginnings of forms that cannot be taken for anything else, to find one behind half a line of a cell.
_TELLING: Final = re.compile(
    rb"Initializing Jailhouse hypervisor|Page pool usage after|Adding virtual PCI device|Activating hypervisor"
    rb"|Created cell \"|Cell \"|Started cell \"|Closing cell \"|Shutting down hypervisor|Unhandled data |FATAL: "
    rb"|Parking CPU |Stopping CPU |Timeout expired while waiting for reply"
)
_PEER: Final = re.compile(rb' "[^\r\n]{1,31}"')
_DUMP_LINE: Final = re.compile(
    rb"Cell state before exception:|(?: *[A-Za-z][A-Za-z0-9]{1,5}: +(?:0x)?[0-9a-fA-F][^\r]*)|"
)
_MISSED: Final = re.compile(rb"<missed (\d{1,20}) bytes of console log>\Z")
_PRINTK: Final = re.compile(rb"\[ *\d+\.\d{6}\] ")


class Splitter:
    """Fed with the stream, gives its lines.

    :ivar mute: returns the cells that cannot write, whether they run or not.
    """

    def __init__(self, mute: Callable[[], Collection[str]] = tuple) -> None:
        self.mute = mute
        self._rest = b""
        self._cut = False
        self._peers = False
        self._held: list[Line] | None = None
        self._dumped: list[int] = []
        self._out: list[Line] = []
        #: cells that may write, None: it cannot be known
        self.running: set[str] | None = None
        #: bytes that the driver lost, and how often
        self.missed = 0
        self.gaps = 0

    def feed(self, data: bytes) -> list[Line]:
        """Take a piece of the stream; return the lines that are complete with it."""
        if self.running is not None:
            self.running.difference_update(self.mute())  # it may not have been known of one that it cannot write
        data = self._rest + data
        start = 0
        while True:
            end = data.find(b"\n", start, start + LINE_MAX + 1)
            if end >= 0:
                self._line(data[start:end])
                start = end + 1
            elif len(data) - start > LINE_MAX:
                self._piece(data[start : start + LINE_MAX])
                start += LINE_MAX
            else:
                break
        self._rest = data[start:]
        return self._given()

    def flush(self) -> list[Line]:
        """Nothing more came for a while: return what was held back, an unfinished line included."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self._piece(rest)
        self._end_dump("")
        return self._given()

    @property
    def holds(self) -> bool:
        """Whether ``flush`` would return something."""
        return bool(self._rest) or self._held is not None

    def restart(self) -> None:
        """The stream begins anew, somewhere: nothing is known of the cells any more."""
        self._rest = b""
        self._cut = True
        self._peers = False
        self.running = None

    def _given(self) -> list[Line]:
        out, self._out = self._out, []
        return out

    def _emit(self, line: Line) -> None:
        if self._held is None:
            self._out.append(line)
            return
        self._held.append(line)
        if len(self._held) >= DUMP_MAX:
            self._end_dump("")

    def _only(self) -> str:
        """The one cell that can have written a line, if there is just one."""
        return next(iter(self.running)) if self.running is not None and len(self.running) == 1 else ""

    def _piece(self, text: bytes) -> None:
        """Part of a line, whoever wrote it."""
        self._emit(Line(Kind.UNKNOWN, text, "", True))
        self._cut = True

    def _line(self, raw: bytes) -> None:
        if (lost := _MISSED.search(raw)) is not None:
            if lost.start() > 0:
                self._text(raw[: lost.start()], torn=True)
            self._miss(int(lost[1]))
            return
        form = self._form(raw)
        if form is None and not raw.endswith(b"\r"):
            for found in _TELLING.finditer(raw, max(0, len(raw) - FORM_MAX)):
                behind = raw[found.start() :]
                if found.start() > 0 and (form := self._form(behind)) is not None:
                    self._text(raw[: found.start()], torn=True)
                    raw = behind
                    break
        if form is None:
            self._text(raw, torn=False)
        else:
            self._hypervisor(raw, *form)

    def _form(self, raw: bytes) -> tuple[str, _Effect] | None:
        for pattern, effect in FORMS:
            if (found := pattern.fullmatch(raw)) is not None:
                cell = found.groupdict().get("cell") or b""
                return cell.decode("utf-8", "backslashreplace"), effect
        if self._peers and _PEER.fullmatch(raw):
            return "", _Effect.PEERS
        if self._held is not None and _DUMP_LINE.fullmatch(raw):
            return "", _Effect.DUMP
        return None

    def _hypervisor(self, raw: bytes, cell: str, effect: _Effect) -> None:
        self._peers = effect is _Effect.PEERS
        if effect is _Effect.DUMP:
            if self._held is None:
                self._held = []
            self._dumped.append(len(self._held))
        elif effect is not _Effect.DUMPED:
            self._end_dump("")
        self._emit(Line(Kind.HYPERVISOR, raw, cell))
        self._cut = False
        if effect is _Effect.DUMPED:
            self._end_dump(cell)
        elif effect is _Effect.CLEAR:
            self.running = set()
        elif effect is _Effect.RUN and self.running is not None and cell not in self.mute():
            self.running.add(cell)
        elif effect is _Effect.STOP and self.running is not None:
            self.running.discard(cell)

    def _text(self, raw: bytes, *, torn: bool) -> None:
        """A line, or what came of one, that is not the hypervisor's."""
        text = raw.rstrip(b"\r")
        by_cell = len(text) < len(raw) or torn or _PRINTK.match(text) is not None
        cell = self._only() if by_cell else ""
        self._emit(Line(Kind.INMATE if by_cell else Kind.UNKNOWN, text, cell, torn or self._cut))
        self._cut = torn

    def _miss(self, count: int) -> None:
        self.missed += count
        self.gaps += 1
        self.running = None  # a start or an end may be among what was lost
        self._end_dump("")
        self._emit(Line(Kind.MISSED, b"", "", False, count))
        self._cut = True

    def _end_dump(self, cell: str) -> None:
        held, self._held = self._held, None
        dumped, self._dumped = self._dumped, []
        for number, line in enumerate(held or ()):
            self._out.append(line._replace(cell=cell) if number in dumped else line)


def repeated(seen: Iterable[Line], fresh: Iterable[Line]) -> int:
    """How many lines at the beginning of ``fresh`` are the end of ``seen`` once more.

    A follow command that is started again begins with the past. The driver's word about lost bytes and the half line
    behind it count as part of the repetition.
    """
    old = [line.text for line in seen if line.kind is not Kind.MISSED]
    new = list(fresh)
    skipped = 1 if new and new[0].kind is Kind.MISSED else 0
    texts = [line.text for line in new[skipped:]]
    for count in range(min(len(old), len(texts)), 0, -1):
        tail = old[-count:]
        if tail[1:] == texts[1:count] and (tail[0] == texts[0] or (skipped and tail[0].endswith(texts[0]))):
            return skipped + count
    return 0
