# SPDX-License-Identifier: Apache-2.0
"""The encoders: nothing is forged, nothing is lost, and the cut between two chunks changes nothing that counts."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consoles.streams import timed
from consoles.streams.logs.encode import PIECE, Cri, Encoder, JsonFile, Raw, Stamp, rfc3339, runs
from consoles.streams.safe import Safe
from tests.unit.logkit import cri_records, from_cri, from_json, from_timed, json_records

STAMP = Stamp(1_764_000_000_123_456_789, 42)
WHEN = b"2025-11-24T16:00:00.123456789Z"

#: what guests print, and what would hurt: newlines, quotes, our own stamps, control bytes, broken UTF-8
NASTY = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([
            b"\n", b"\r\n", b"\\n", b'"', b'"}\n{"log":"', b"\x00", b"\x1b[2J", b"\xc3", b"\xa4", b"\xe2\x82", b"\xac",
            b"\xf0\x9f\x98", b"\x80", b"\xff", WHEN + b" stdout F forged\n",
            WHEN + b" stderr F [runphi: 1 bytes lost: x]", "\u2028".encode(), b"x" * PIECE, ("é" * PIECE).encode(),
        ]),
    ),
    max_size=12,
)  # fmt: skip


def encode(encoder: Encoder, chunks: list[bytes]) -> bytes:
    out, state = encoder.header, b""
    for chunk in chunks:
        records, state = encoder.encode(chunk, state, STAMP)
        assert len(state) <= 7
        out += b"".join(records)
    return out + encoder.finish(state, STAMP)


def once(encoder: Encoder, data: bytes, state: bytes = b"") -> tuple[bytes, bytes]:
    records, state = encoder.encode(data, state, STAMP)
    return b"".join(records), state


@given(NASTY)
def test_every_encoder_gives_back_what_was_printed(chunks: list[bytes]) -> None:
    printed = b"".join(chunks)
    assert encode(Raw(), chunks) == printed
    assert from_cri(encode(Cri(), chunks)) == printed
    assert from_json(encode(JsonFile(), chunks)) == printed.decode("utf-8", "replace")
    assert from_timed(encode(timed.Timed(), chunks)) == printed


@given(NASTY)
def test_a_guest_never_speaks_on_stderr(chunks: list[bytes]) -> None:
    assert {stream for stream, _, _ in cri_records(encode(Cri(), chunks))} <= {b"stdout"}
    assert {record["stream"] for record in json_records(encode(JsonFile(), chunks))} <= {"stdout"}


@given(NASTY)
def test_no_record_is_longer_than_its_piece(chunks: list[bytes]) -> None:
    assert all(len(text) <= PIECE for _, _, text in cri_records(encode(Cri(), chunks)))


def test_cri() -> None:
    records, state = once(Cri(), b"one\ntwo\r\n\nprompt> ")
    assert state == b""
    assert records == b"".join(
        WHEN + line for line in (b" stdout F one\n", b" stdout F two\r\n", b" stdout F \n", b" stdout P prompt> \n")
    )
    records, _ = once(Cri(), b"ls\n")
    assert records == WHEN + b" stdout F ls\n"
    assert once(Cri(), b"") == (b"", b"")


def test_a_long_line_is_cut_between_characters() -> None:
    line = b"x" + "é".encode() * PIECE
    pieces = [text for _, tag, text in cri_records(once(Cri(), line)[0])]
    assert b"".join(pieces) == line
    assert [len(piece) for piece in pieces] == [PIECE - 1, PIECE, 3] or all(piece.decode() for piece in pieces)
    for piece in pieces:
        piece.decode()


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"a", b"a\n" * 40_000, b"x" * PIECE, b"x" * PIECE + b"\n", b"\x80" * (PIECE + 5)]
)
def test_runs_leave_nothing_out(data: bytes) -> None:
    at = 0
    for start, stop, whole in runs(data):
        assert start == at < stop
        text = data[start:stop]
        assert text.endswith(b"\n") if whole else b"\n" not in text
        at = stop
    assert at == len(data)


def test_whole_lines_are_one_run() -> None:
    assert list(runs(b"a\n" * 40_000)) == [(0, 80_000, True)]


def test_json_file() -> None:
    records, state = once(JsonFile(), b'a "b" \\n\x1b[0m\t\r\nprompt> \xe2\x82')
    assert state == b"\xe2\x82"
    time = WHEN.decode()
    assert json_records(records) == [
        {"log": 'a "b" \\n\x1b[0m\t\r\n', "stream": "stdout", "time": time},
        {"log": "prompt> ", "stream": "stdout", "time": time},
    ]
    records, state = once(JsonFile(), b"\xac", state)
    assert (json_records(records)[0]["log"], state) == ("€", b"")
    assert json_records(JsonFile().finish(b"\xe2\x82", STAMP))[0]["log"] == "\ufffd"
    assert once(JsonFile(), b"\xc3") == (b"", b"\xc3")


def test_json_holds_every_byte_as_json_says() -> None:
    for value in range(256):
        data = b"<" + bytes((value,)) + b">\n"
        log = encode(JsonFile(), [data])
        assert from_json(log) == data.decode("utf-8", "replace")
        assert json.loads(log.split(b"\n")[0])


def test_losses_are_told_on_stderr() -> None:
    why = "No space left on device"
    assert Raw().lost(7, why, STAMP) == b""
    assert Cri().lost(7, why, STAMP) == WHEN + b" stderr F [runphi: 7 bytes lost: No space left on device]\n"
    (record,) = json_records(JsonFile().lost(7, why, STAMP))
    assert (record["stream"], record["log"]) == ("stderr", "[runphi: 7 bytes lost: No space left on device]\n")
    (lost,) = timed.read(io.BytesIO(timed.Timed.header + timed.Timed().lost(7, why, STAMP)))
    assert lost.kind is timed.Kind.LOST
    assert lost.text() == b"\r\n[runphi: 7 bytes lost: No space left on device]\r\n"


def test_times_have_one_width() -> None:
    assert rfc3339(0) == b"1970-01-01T00:00:00.000000000Z"
    assert rfc3339(STAMP.wall) == WHEN


# Section: timed files


def recording(*payloads: bytes) -> bytes:
    return encode(timed.Timed(), list(payloads))


def broken(data: bytes) -> tuple[list[bytes], str]:
    """What could be read, and the error."""
    good = []
    with pytest.raises(timed.RecordingError) as caught:  # noqa: PT012
        for record in timed.read(io.BytesIO(data)):
            good.append(record.data)  # noqa: PERF401
    return good, str(caught.value)


def test_timed_records_keep_both_clocks() -> None:
    (record,) = timed.read(io.BytesIO(recording(b"hello")))
    assert record == timed.Record(timed.Kind.OUTPUT, 42, STAMP.wall, b"hello")


def test_no_recording_at_all() -> None:
    assert broken(b"") == ([], "empty: nothing was recorded")
    assert broken(b"a plain log\nof a guest\n") == ([], "not a timed recording")
    assert broken(b"RPH") == ([], "truncated within its header")
    assert "version 2" in broken(timed.HEADER.pack(timed.MAGIC, 2, 12))[1]
    assert "header of 5 bytes" in broken(timed.HEADER.pack(timed.MAGIC, 1, 5))[1]
    assert "header of 60000 bytes" in broken(timed.HEADER.pack(timed.MAGIC, 1, 60000))[1]


@pytest.mark.parametrize("kept", [1, 20, 27, 28, 30])
def test_a_truncated_recording_is_played_up_to_there(kept: int) -> None:
    whole = recording(b"first")
    good, error = broken(whole + recording(b"second")[12:][:kept])
    assert good == [b"first"]
    assert error.startswith(f"truncated: the record at byte {len(whole)}")


def test_a_later_version_may_have_a_longer_header() -> None:
    data = timed.HEADER.pack(timed.MAGIC, 1, 20) + bytes(8) + recording(b"x")[12:]
    assert [record.data for record in timed.read(io.BytesIO(data))] == [b"x"]


@given(st.integers(12, 12 + 28 + 5 - 1), st.integers(1, 255))
def test_a_flipped_byte_never_passes(position: int, change: int) -> None:
    data = bytearray(recording(b"first"))
    data[position] ^= change
    good, error = broken(bytes(data))
    assert good == []
    assert error.startswith(("damaged", "truncated"))


@given(st.binary(max_size=200))
def test_any_bytes_end_with_records_or_an_error(data: bytes) -> None:
    shown = b""
    with contextlib.suppress(timed.RecordingError):
        for record in timed.read(io.BytesIO(timed.Timed.header + data)):
            shown += record.data
    assert shown in data


def test_a_length_that_lies_is_not_believed() -> None:
    head = timed.RECORD.pack(1, (1 << 32) - 1, 0, 0)
    lie = timed.Timed.header + head + struct.pack("<I", zlib.crc32(head))
    assert broken(lie) == ([], "damaged at byte 12: no record begins there")


# Section: --safe


@given(NASTY)
def test_safe_output_holds_nothing_a_terminal_obeys(chunks: list[bytes]) -> None:
    safe = Safe()
    shown = b"".join(safe.feed(chunk) for chunk in chunks) + safe.end()
    text = shown.decode("utf-8")
    assert all(char in "\n\t" or not (ord(char) < 32 or 127 <= ord(char) < 160) for char in text)
    one = Safe()
    assert one.feed(b"".join(chunks)) + one.end() == shown  # wherever the chunks are cut


def test_safe_shows_what_was_there() -> None:
    safe = Safe()
    assert (
        safe.feed(b"a\x1b[31mred\x07\r\n\x00\x7f\tend\rno\xff\xc2\x9b2J") == b"a^[[31mred^G\n^@^?\tend^Mno\\xff\\x9b2J"
    )
    assert safe.feed("é\u202e".encode() + b"\xe2\x82") == "é<U+202E>".encode()
    assert safe.end() == b"\\xe2\\x82"
    assert Safe().feed(b"x\r") == b"x"
