# SPDX-License-Identifier: Apache-2.0
"""The hypervisor's console: recorded ones, torn lines, lost bytes, and any cutting of the stream."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.jailhouse.consolelines import DUMP_MAX, LINE_MAX, Splitter, repeated
from backends.lines import Kind, Line

DATA = Path(__file__).parent.parent / "data" / "jailhouse"
H, C, U = Kind.HYPERVISOR, Kind.INMATE, Kind.UNKNOWN


def split(*pieces: bytes, running: set[str] | None = None) -> list[Line]:
    splitter = Splitter()
    splitter.running = running
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return lines + splitter.flush()


def recorded(name: str) -> bytes:
    return (DATA / f"{name}.log").read_bytes()


# Section: recorded consoles


def test_a_boot_and_the_life_of_a_cell() -> None:
    lines = split(recorded("boot"))
    assert [line.kind for line in lines] == [U] + [H] * 32  # it begins with an empty line, which anybody can print
    assert lines[1].text == b"Initializing Jailhouse hypervisor v0.12 (324-ge57d1eff-dirty) on CPU 0"
    assert lines[20].text == b' "qemu-arm64"'
    about = [line.cell for line in lines if line.cell]
    assert about == ["qemu-arm64"] * 2 + ["inmate-demo"] * 11


def test_two_cells_side_by_side_cannot_be_told_apart() -> None:
    lines = split(recorded("boot"), recorded("two-cells"))
    begin = next(n for n, line in enumerate(lines) if line.text == b'Started cell "vcon2"')
    end = next(n for n, line in enumerate(lines) if n > begin and line.text == b'Cell "vcon1" can be loaded')
    alone, both, rest = lines[33:begin], lines[begin + 1 : end], lines[end + 1 :]
    assert [(line.kind, line.cell) for line in alone[3:]] == [(C, "vcon1")] * 2
    assert {(line.kind, line.cell) for line in both} == {(C, "")}
    assert [(line.text, line.cell) for line in rest] == [
        (b"jhtest[B] count 13", "vcon2"),
        (b'Cell "vcon2" can be loaded', "vcon2"),
    ]


def test_nobody_is_blamed_while_it_is_unknown_which_cells_run() -> None:
    assert {line.cell for line in split(recorded("two-cells")) if line.kind is C} == {""}


def test_what_a_backend_knows_is_used() -> None:
    assert split(b"hi\r\n", running={"a"}) == [Line(C, b"hi", "a")]
    assert split(b"hi\r\n", running={"a", "b"}) == [Line(C, b"hi")]
    assert split(b"hi\r\n", running=set()) == [Line(C, b"hi")]


def test_lost_bytes_within_a_line() -> None:
    splitter = Splitter()
    splitter.running = {"vcon1"}
    lines = splitter.feed(recorded("flood"))
    at = next(n for n, line in enumerate(lines) if line.kind is Kind.MISSED)
    assert lines[at - 1 : at + 3] == [
        Line(C, b"jhtest[A] fl", "vcon1", cut=True),
        Line(Kind.MISSED, b"", missed=8005),
        Line(C, b"test[A] flood line 322", "", cut=True),  # another cell may have been started in what was lost
        Line(C, b"jhtest[A] flood line 323"),
    ]
    assert (splitter.missed, splitter.gaps) == (8005, 1)


def test_a_register_dump_belongs_to_the_cell_that_its_last_line_names() -> None:
    lines = split(recorded("crash"), running=set())
    assert lines[2] == Line(C, b"jhtest[A] mode=crash comm: rev=2 flags=0x3 cell_state=0 con.type=0 con.addr=0x0 "
                               b"gic=3 vpci_irq=112", "vcon1")  # fmt: skip
    assert {(line.kind, line.cell, line.cut) for line in lines[3:]} == {(H, "vcon1", False)}
    assert len(lines) == 21


def test_a_linux_cell_is_known_by_the_times_of_its_kernel() -> None:
    lines = split(recorded("linux-cell"))
    assert lines[0] == Line(Kind.MISSED, b"", missed=182)
    assert lines[1].kind is U
    assert lines[1].cut
    assert {line.kind for line in lines[2:]} == {C}


# Section: the hard cases


def test_a_hypervisor_line_within_a_line_of_a_cell() -> None:
    lines = split(b'count 4\r\ncouStarted cell "b"\nnt 5\r\n', running={"a"})
    assert lines == [
        Line(C, b"count 4", "a"),
        Line(C, b"cou", "a", cut=True),
        Line(H, b'Started cell "b"', "b"),
        Line(C, b"nt 5"),
    ]


def test_lines_of_other_cells_within_a_dump_keep_their_place_and_owner() -> None:
    dump = b'FATAL: unhandled trap (exception class 0x24)\nhello\r\n pc: 0000000000001000\nParking CPU 1 (Cell: "a")\n'
    assert [(line.kind, line.cell) for line in split(dump, running={"b"})] == [(H, "a"), (C, "b"), (H, "a"), (H, "a")]


def test_a_dump_without_an_end_is_given_away_in_time() -> None:
    splitter = Splitter()
    assert splitter.feed(b"Unhandled data read at 0x10(4)\n pc: 0\n") == []
    assert splitter.holds
    assert [line.cell for line in splitter.flush()] == ["", ""]
    begin = splitter.feed(b"Unhandled data read at 0x10(4)\n")
    assert len(begin + splitter.feed(b" x1: 0\n" * (DUMP_MAX - 1))) == DUMP_MAX


def test_an_unfinished_line_is_given_when_nothing_more_comes() -> None:
    splitter = Splitter()
    assert splitter.feed(b"login: ") == []
    assert splitter.holds
    assert splitter.flush() == [Line(U, b"login: ", cut=True)]
    assert splitter.feed(b"root\r\n") == [Line(C, b"root", cut=True)]


def test_a_line_without_end_is_cut() -> None:
    lines = split(b"x" * (2 * LINE_MAX + 5) + b"\r\n")
    assert [len(line.text) for line in lines] == [LINE_MAX, LINE_MAX, 5]
    assert all(line.cut for line in lines)
    assert [len(line.text) for line in split(b"x" * LINE_MAX + b"\n")] == [LINE_MAX]


@pytest.mark.parametrize(
    "text",
    [
        b'Started cell ""', b'Started cell "' + b"n" * 32 + b'"', b'Started cell "a" now', b" CPU x... OK",
        b"<missed some bytes of console log>", b" pc: 0000000000001000", b' "qemu-arm64"', b"started cell \"a\"",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_hypervisor_line(text: bytes) -> None:
    assert split(text + b"\n", running={"a"}) == [Line(U, text)]


def test_a_cell_whose_line_ends_as_inmates_lines_do_cannot_pass_for_the_hypervisor() -> None:
    assert split(b'Started cell "b"\r\n', running={"a"}) == [Line(C, b'Started cell "b"', "a")]


# Section: any cutting gives the same


_PARTS = st.lists(
    st.sampled_from(
        [
            b'Started cell "a"\n', b'Cell "a" can be loaded\n', b'Started cell "b"\n', b'Closing cell "b"\n',
            b"Initializing Jailhouse hypervisor v1 on CPU 0\n", b"Shared memory connection established, peer cells:\n",
            b' "a"\n', b"Unhandled data write at 0x30000000(4)\n", b"\n",
            b"FATAL: unhandled trap (exception class 0x24)\n",
            b" x0: 0000000030000000   x1: 1\n", b'Parking CPU 1 (Cell: "a")\n', b"hello\r\n", b"\r\n", b"hello\n",
            b"hel",
            b"[    0.123456] Linux\n", b"<missed 12 bytes of console log>\n", b"\xff\x00\r", b"x" * LINE_MAX,
        ]
    ),
    max_size=30,
)  # fmt: skip


@settings(deadline=None)  # a busy machine
@given(_PARTS, st.data())
def test_any_cutting_of_the_stream_gives_the_same_lines(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    pieces = [stream[start:end] for start, end in itertools.pairwise([0, *cuts, len(stream)])]
    assert split(*pieces) == split(stream)


@settings(deadline=None)  # a busy machine
@given(_PARTS)
def test_no_byte_of_text_is_lost(parts: list[bytes]) -> None:
    stream = b"".join(parts)
    kept = b"".join(line.text for line in split(stream))
    gone = (b"\n", b"\r", b"<missed 12 bytes of console log>")
    for word in gone:
        stream, kept = stream.replace(word, b""), kept.replace(word, b"")
    assert kept == stream


@settings(deadline=None)  # a busy machine
@given(st.binary(max_size=300))
def test_any_bytes_at_all(stream: bytes) -> None:
    assert split(*(stream[n : n + 1] for n in range(len(stream)))) == split(stream)


# Section: a command that begins with the past


def texts(*words: str) -> list[Line]:
    return [Line(C, word.encode()) for word in words]


@pytest.mark.parametrize(
    ("seen", "fresh", "count"),
    [
        ([], ["a"], 0),
        (["a", "b"], ["a", "b", "c"], 2),
        (["a", "b"], ["a", "b"], 2),
        (["a", "b"], ["b", "c"], 1),
        (["a", "b"], ["c"], 0),
        (["a", "a"], ["a", "a", "a"], 2),
        (["x", "a", "b"], ["b", "a"], 1),
    ],
)
def test_repetition_is_recognised(seen: list[str], fresh: list[str], count: int) -> None:
    assert repeated(texts(*seen), texts(*fresh)) == count


def test_repetition_behind_lost_bytes_begins_within_a_line() -> None:
    fresh = [Line(Kind.MISSED, b"", missed=7), *texts("ne", "two", "three")]
    assert repeated(texts("one", "two"), fresh) == 3
    assert repeated(texts("one", "two"), fresh[1:]) == 0
    assert repeated(texts("nothing"), fresh) == 0


def test_cells_that_cannot_write_are_no_candidates() -> None:
    mute: set[str] = set()
    splitter = Splitter(lambda: mute)
    splitter.running = {"one", "two"}
    mute.add("two")  # only now somebody knows
    (line,) = splitter.feed(b"hello\r\n")
    assert line.cell == "one"
    mute.add("three")
    *_, last = splitter.feed(b'Started cell "three"\nhello\r\n')
    assert last.cell == "one"
