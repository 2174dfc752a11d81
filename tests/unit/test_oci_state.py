# SPDX-License-Identifier: Apache-2.0
"""The state, list and features documents look as runc's."""

from __future__ import annotations

import json

import pytest

from runphi_async.oci.features import features
from runphi_async.oci.state import State, list_bytes, timestamp


def state(**changes: object) -> State:
    fields: dict[str, object] = {
        "id": "x",
        "pid": 7,
        "status": "running",
        "bundle": "/b",
        "rootfs": "/b/rootfs",
        "created": "2026-11-24T02:22:53.5Z",
    }
    return State(**{**fields, **changes})  # type: ignore[arg-type]


def test_state_is_laid_out_as_runc_does() -> None:
    assert state(annotations={"k": "v"}).to_bytes() == (
        b"""{
  "ociVersion": "1.0.2",
  "id": "x",
  "pid": 7,
  "status": "running",
  "bundle": "/b",
  "rootfs": "/b/rootfs",
  "created": "2026-11-24T02:22:53.5Z",
  "annotations": {
    "k": "v"
  },
  "owner": ""
}"""
    )


def test_stopped_has_pid_zero_and_no_empty_annotations() -> None:
    got = json.loads(state(pid=0, status="stopped", annotations={}).to_bytes())
    assert got["pid"] == 0
    assert "annotations" not in got


def test_hook_state() -> None:
    assert state(annotations={"k": "v"}).hook_bytes() == (
        b'{"ociVersion":"1.0.2","id":"x","status":"running","pid":7,"bundle":"/b","annotations":{"k":"v"}}'
    )
    assert state(pid=0, status="stopped").hook_bytes() == (
        b'{"ociVersion":"1.0.2","id":"x","status":"stopped","bundle":"/b"}'
    )


def test_list() -> None:
    assert list_bytes([]) == b"null\n"
    line = list_bytes([state(owner="root")])
    assert line.startswith(b'[{"ociVersion":"1.0.2","id":"x","pid":7,')
    assert line.endswith(b'"owner":"root"}]\n')


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_500_000_000, "1970-01-01T00:00:01.5Z"),
        (1_795_486_973_507_406_836, "2026-11-24T02:22:53.507406836Z"),
        (10_000_000_000, "1970-01-01T00:00:10Z"),
    ],
)
def test_timestamp(nanoseconds: int, text: str) -> None:
    assert timestamp(nanoseconds) == text


def test_features_alone() -> None:
    got = json.loads(features("1.2.3", backends=["qemu", "xen"]))
    assert got["ociVersionMin"] == "1.0.0"
    assert "createContainer" not in got["hooks"]
    assert got["linux"]["cgroup"]["v2"] is True
    assert got["annotations"]["org.runphi.version"] == "1.2.3"
    assert got["annotations"]["org.runphi.backends"] == "qemu,xen"


def test_features_over_those_of_runc() -> None:
    runc = b'{"ociVersionMax":"1.1.0","hooks":["startContainer"],"new":[1],"annotations":{"r":"1"}}'
    got = json.loads(features("1", runc=runc))
    assert (got["ociVersionMax"], got["hooks"], got["new"]) == ("1.1.0", ["startContainer"], [1])
    assert got["annotations"]["r"] == "1"
    assert got["annotations"]["org.runphi.hooks"] == "prestart,createRuntime,poststart,poststop"


@pytest.mark.parametrize("runc", [b"no json", b"[]", b"\xff", b'{"annotations": 1}'])
def test_features_with_a_runc_that_cannot_tell(runc: bytes) -> None:
    assert json.loads(features("1", runc=runc))["annotations"]["org.runphi.version"] == "1"
