# SPDX-License-Identifier: Apache-2.0
"""config.json is decoded as leniently as by runc, and complains with the place."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runphi_async.errors import SpecError
from runphi_async.oci import spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def decode(document: Any) -> spec.Spec:
    return spec.from_bytes(json.dumps(document).encode())


def test_reads_what_docker_writes() -> None:
    got = decode(
        {
            "ociVersion": "1.0.2-dev",
            "process": {
                "terminal": True,
                "consoleSize": {"height": 31, "width": 99},
                "user": {"uid": 1, "gid": 2, "additionalGids": [3, 4], "umask": 18},
                "args": ["/x", "y"],
                "env": ["A=1", "B=", "A=2"],
                "cwd": "/home",
                "capabilities": {"bounding": ["CAP_CHOWN"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
                "noNewPrivileges": True,
                "oomScoreAdj": 100,
            },
            "root": {"path": "/r", "readonly": True},
            "hostname": "h",
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
            "annotations": {"k": "v"},
            "hooks": {
                "prestart": [{"path": "/p", "args": ["a"], "env": ["E=1"], "timeout": 5}],
                "createRuntime": [],
            },
            "linux": {
                "cgroupsPath": "/docker/x",
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/proc/1/ns/net"}],
                "resources": {
                    "memory": {"limit": 1 << 26, "swap": -1},
                    "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1"},
                    "pids": {"limit": 9},
                    "devices": [{"allow": False, "access": "rwm"}],
                },
                "seccomp": {"syscalls": []},
            },
        }
    )
    assert got.oci_version == "1.0.2-dev"
    assert got.process is not None
    assert got.process.console_size == spec.ConsoleSize(height=31, width=99)
    assert got.process.user == spec.User(uid=1, gid=2, additional_gids=[3, 4], umask=18)
    assert got.process.rlimits == [spec.Rlimit(type="RLIMIT_NOFILE", hard=1024, soft=512)]
    assert (got.process.getenv("A"), got.process.getenv("B"), got.process.getenv("C")) == ("2", "", None)
    assert (got.process.no_new_privileges, got.process.oom_score_adj) == (True, 100)
    assert got.root == spec.Root(path="/r", readonly=True)
    assert got.hooks.prestart == [spec.Hook(path="/p", args=["a"], env=["E=1"], timeout=5)]
    assert got.linux is not None
    assert got.linux.cgroups_path == "/docker/x"
    assert got.linux.namespaces[1].path == "/proc/1/ns/net"
    assert got.linux.resources is not None
    assert got.linux.resources.memory == spec.Memory(limit=1 << 26, swap=-1)
    assert got.linux.resources.cpu == spec.Cpu(shares=1024, quota=50000, period=100000, cpus="0-1")
    assert got.linux.resources.pids == spec.Pids(limit=9)


def test_null_is_not_given() -> None:
    got = decode(
        {
            "root": {"path": "r"},
            "process": {"args": None, "env": ["A=1"], "user": None},
            "hooks": None,
            "annotations": None,
            "linux": {"cgroupsPath": None, "resources": {"cpu": {"cpus": None, "shares": None}}},
        }
    )
    assert got.process == spec.Process(env=["A=1"])
    assert got.hooks == spec.Hooks()
    assert got.linux is not None
    assert got.linux.resources is not None
    assert got.linux.resources.cpu == spec.Cpu()


def test_empty_object_is_a_spec() -> None:
    assert decode({}) == spec.Spec()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"process": {"args": [1]}}, "config.json: $.process.args[0]: expected str, got int"),
        ({"process": {"args": [None, 1]}}, "config.json: $.process.args[0]: expected str, got null"),
        ({"root": 3}, "config.json: $.root: expected object, got int"),
        (
            {"linux": {"resources": {"memory": {"limit": "1G"}}}},
            "$.linux.resources.memory.limit: expected int",
        ),
        ([], "config.json: $: expected object, got array"),
        ({"annotations": {"a": 1}}, "config.json: $.annotations[...]: expected str, got int"),
        (
            {"process": {"args": ["a\0b"]}},
            "config.json: $.process.args[0]: expected text, got a NUL character",
        ),
        ({"process": {"env": ["a", "A=\0"]}}, "config.json: $.process.env[1]: expected text"),
        ({"hostname": "\0"}, "config.json: $.hostname: expected text"),
        (
            {"annotations": {"org.runphi.cmdline": "x\0-chardev\0file"}},
            "$.annotations.org.runphi.cmdline: expected text",
        ),
        ({"annotations": {"a\0b": "x"}}, "$.annotations.a\\u0000b: expected text"),
        (
            {"linux": {"namespaces": [{"type": "network", "path": "/x\0--"}]}},
            "$.linux.namespaces[0].path: expected text",
        ),
        ({"mounts": [{"destination": "/a", "options": ["a\0"]}]}, "$.mounts[0].options[0]: expected text"),
        ({"linux": {"resources": {"memory": {"limit": 10**30}}}}, "$.linux.resources.memory.limit: expected a number"),
        ({"process": {"rlimits": [{"hard": -(10**30)}]}}, "$.process.rlimits[0].hard: expected a number, got one of"),
        ({"linux": {"cgroupsPath": "\0"}}, "$.linux.cgroupsPath: expected text"),
        ({"hooks": {"poststop": [{"path": "/x", "env": ["\0"]}]}}, "$.hooks.poststop[0].env[0]: expected text"),
    ],
)
def test_wrong_types_are_located(document: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        decode(document)
    assert message in caught.value.msg
    assert caught.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"root":}', b"\xff\xfe", b'{"hostname": "\xff"}', b'{"x":' + b"[" * 100_000]
)
def test_no_json(data: bytes) -> None:
    with pytest.raises(SpecError, match=r"^config\.json: cannot decode: "):
        spec.from_bytes(data)


def test_resources_of_update() -> None:
    got = spec.resources_from_bytes(b'{"memory":{"limit":5},"cpu":{"quota":-1},"blockIO":{"weight":0}}')
    assert got == spec.Resources(memory=spec.Memory(limit=5), cpu=spec.Cpu(quota=-1))
    with pytest.raises(SpecError, match=r"^stdin: \$\.memory: expected object"):
        spec.resources_from_bytes(b'{"memory":5}', "stdin")


def test_load_and_rootfs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"root":{"path":"rootfs"}}')
    got = spec.load(str(tmp_path))
    with pytest.raises(SpecError, match="not a directory"):
        got.rootfs(str(tmp_path))
    (tmp_path / "rootfs").mkdir()
    assert got.rootfs(str(tmp_path)) == str(tmp_path / "rootfs")
    absolute = spec.Spec(root=spec.Root(path=str(tmp_path)))
    assert absolute.rootfs("/elsewhere") == str(tmp_path)
    with pytest.raises(SpecError, match="got nothing"):
        spec.Spec().rootfs("/b")
    with pytest.raises(SpecError, match="not found"):
        spec.load(str(tmp_path / "none"))
    with pytest.raises(SpecError, match="cannot read"):
        spec.load(str(tmp_path / "config.json"))


#: a busy machine is not an error
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["root", "process", "args", "env", "user", "linux", "resources", "memory", "limit", "hooks"]
            ),
            inner,
        )
    ),
)


@relaxed
@given(VALUES)
def test_any_json_is_a_spec_or_a_spec_error(value: Any) -> None:
    with contextlib.suppress(SpecError):
        decode(value)


@relaxed
@given(st.binary())
def test_any_bytes_are_a_spec_or_a_spec_error(data: bytes) -> None:
    with contextlib.suppress(SpecError):
        spec.from_bytes(data)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "hostname": TEXTS,
        "annotations": st.dictionaries(TEXTS, TEXTS, max_size=3),
        "root": st.fixed_dictionaries({"path": TEXTS}),
        "process": st.fixed_dictionaries({"args": st.lists(TEXTS, max_size=3), "env": st.lists(TEXTS, max_size=3)}),
        "mounts": st.lists(st.fixed_dictionaries({"destination": TEXTS, "options": st.lists(TEXTS, max_size=2)})),
        "linux": st.fixed_dictionaries({"namespaces": st.lists(st.fixed_dictionaries({"type": TEXTS, "path": TEXTS}))}),
    },
)


@given(DOCUMENTS)
def test_no_text_of_a_spec_holds_a_nul(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    if "\\u0000" in text.replace("\\\\", ""):
        with pytest.raises(SpecError, match="NUL character"):
            decode(document)
    else:
        assert "\0" not in "".join(texts(msgspec.to_builtins(decode(document))))


def texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in (
        (*value.keys(), *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from texts(item)
