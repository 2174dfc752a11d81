# SPDX-License-Identifier: Apache-2.0
"""Readers of the encoded logs, written from their documentation and not from the encoders."""

from __future__ import annotations

import io
import json
import re

from consoles.streams import timed

CRI = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) ([^\n]*)\n")


def cri_records(log: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Take a cri log apart into (stream, tag, text); it must hold nothing else."""
    records, at = [], 0
    while at < len(log):
        match = CRI.match(log, at)
        assert match is not None, log[at : at + 100]
        records.append((match[1], match[2], match[3]))
        at = match.end()
    return records


def from_cri(log: bytes) -> bytes:
    """What the guest printed, as a cri log tells it."""
    return b"".join(
        text + (b"\n" if tag == b"F" else b"") for stream, tag, text in cri_records(log) if stream == b"stdout"
    )


def json_records(log: bytes) -> list[dict[str, str]]:
    """The objects of a json-file log; one a line, with exactly docker's keys."""
    assert log == b"" or log.endswith(b"\n")
    records = [json.loads(line.decode("utf-8")) for line in log.split(b"\n")[:-1]]
    for record in records:
        assert list(record) == ["log", "stream", "time"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", record["time"])
    return records


def from_json(log: bytes) -> str:
    """What the guest printed, as a json-file log tells it."""
    return "".join(record["log"] for record in json_records(log) if record["stream"] == "stdout")


def from_timed(log: bytes) -> bytes:
    """What the guest printed, as a timed log tells it."""
    records = timed.read(io.BytesIO(log))
    return b"".join(record.data for record in records if record.kind is timed.Kind.OUTPUT)
