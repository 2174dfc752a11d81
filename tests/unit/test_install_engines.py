# SPDX-License-Identifier: Apache-2.0
"""`configure --engine`: the runtime is added and nothing else, and `--undo` brings every byte back."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runphi_async.errors import RunphiError
from runphi_async.install import change, cli, record
from runphi_async.install.engines import ENGINES, containerd, docker
from runphi_async.install.root import STATE, Root

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = """version = 2

# where plugins are
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"   # Debian's
"""
VERSION_3 = """version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'runc'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
"""
DOCKERS_OWN = '#   Copyright\ndisabled_plugins = ["cri"]\n'
DAEMON = '{\n    "log-driver": "json-file",\n    "runtimes": {\n        "kata": {"path": "/usr/bin/kata"}\n    }\n}\n'


# Section: containerd


@pytest.mark.parametrize(
    ("text", "plugin"),
    [
        ("", "io.containerd.grpc.v1.cri"),
        ("# nothing\n", "io.containerd.grpc.v1.cri"),
        (DEBIAN, "io.containerd.grpc.v1.cri"),
        (DEBIAN.rstrip(), "io.containerd.grpc.v1.cri"),
        (VERSION_3, "io.containerd.cri.v1.runtime"),
        (DOCKERS_OWN, "cri"),
        (DEBIAN.replace("\n", "\r\n"), "io.containerd.grpc.v1.cri"),
    ],
)
def test_containerd(text: str, plugin: str) -> None:
    new = containerd.edit(text)
    assert text in new
    table = tomllib.loads(new)
    ours = table["plugins"][plugin]["containerd"]["runtimes"]["runphi"]
    assert ours == containerd.TABLE
    assert ours["options"]["BinaryName"] == "/usr/sbin/runphi"
    assert containerd.edit(new) == new


def test_containerd_whose_cgroups_systemd_makes() -> None:
    options = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\nSystemdCgroup = true\n'
    new = containerd.edit("version = 2\n" + options)
    runtimes = tomllib.loads(new)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert runtimes["runphi"]["options"] == {"BinaryName": "/usr/sbin/runphi", "SystemdCgroup": True}
    assert runtimes["runc"] == {"options": {"SystemdCgroup": True}}
    assert containerd.edit(new) == new


def test_containerd_gets_what_the_example_for_kubernetes_has() -> None:
    example = tomllib.loads((ROOT / "examples" / "kubernetes" / "containerd.toml").read_text())
    runtimes = example["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert runtimes == {"runphi": containerd.TABLE}


def test_containerd_of_an_unknown_version_is_left_alone() -> None:
    with pytest.raises(RunphiError, match="its version is 4"):
        containerd.edit("version = 4\n")


def test_tables_that_cannot_be_added_to_are_refused_with_what_to_add() -> None:
    with pytest.raises(RunphiError, match=r"written inline; add by hand: \[plugins"):
        containerd.edit('version = 2\nplugins = { "io.containerd.grpc.v1.cri" = { containerd = {} } }\n')
    taken = DEBIAN + '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runphi]\nruntime_type = "x"\n'
    with pytest.raises(RunphiError, match="already"):
        containerd.edit(taken)
    with pytest.raises(RunphiError, match="not TOML"):
        containerd.edit("[")


def test_a_cri_plugin_that_is_off_is_said() -> None:
    assert "switched off" in containerd.remark(DOCKERS_OWN)
    assert containerd.remark(DEBIAN) == ""


# Section: docker


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{}", '{"runtimes": {"runphi": {"path": "/usr/sbin/runphi"}}}'),
        (
            '{"debug": true}\n',
            '{"debug": true, "runtimes": {"runphi": {"path": "/usr/sbin/runphi"}}}\n',
        ),
        (
            '{\n\t"debug": true\n}\n',
            '{\n\t"debug": true,\n\t"runtimes": {\n\t\t"runphi": {\n\t\t\t"path": "/usr/sbin/runphi"\n\t\t}\n\t}\n}\n',
        ),
        (
            DAEMON,
            DAEMON.replace(
                'kata"}\n    }',
                'kata"},\n        "runphi": {\n            "path": "/usr/sbin/runphi"\n        }\n    }',
            ),
        ),
        (
            '{\n  "runtimes": {},\n  "debug": true\n}',
            '{\n  "runtimes": {\n    "runphi": {\n      "path": "/usr/sbin/runphi"\n    }\n  },\n  "debug": true\n}',
        ),
    ],
)
def test_docker_keeps_the_form(text: str, wanted: str) -> None:
    assert docker.edit(text) == wanted
    assert docker.edit(wanted) == wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    document=st.dictionaries(st.text() | st.just("runtimes"), JSON, max_size=4),
    runtimes=st.none() | st.dictionaries(st.text(), JSON, max_size=3),
    indent=st.sampled_from([None, 0, 1, 2, 4, "\t"]),
)
def test_docker_says_what_it_said_and_ours(
    document: dict[str, Any], runtimes: dict[str, Any] | None, indent: int | str | None
) -> None:
    document.pop("runtimes", None)
    if runtimes is not None:
        runtimes.pop("runphi", None)
        document["runtimes"] = runtimes
    new = docker.edit(json.dumps(document, indent=indent))
    assert json.loads(new) == {**document, "runtimes": {**(runtimes or {}), "runphi": docker.ENTRY}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "not an object"),
        ("{", "not JSON"),
        ('{"runtimes": 1}', "no object"),
        ('{"runtimes": {"runphi": {"path": "/other"}}}', "already"),
        ('{"debug": true, "debug": false}', "twice"),
    ],
)
def test_docker_refuses(text: str, words: str) -> None:
    with pytest.raises(RunphiError, match=words):
        docker.edit(text)


# Section: the change and its undoing


BEFORE = {"containerd": DEBIAN, "docker": DAEMON, "podman": None, "cri-o": None}


def snapshot(top: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(top)): path.read_bytes() if path.is_file() else None for path in top.rglob("*")}


def prepared(tmp_path: Path, name: str) -> tuple[list[str], Path]:
    path = Path(f"{tmp_path}{ENGINES[name].path}")
    launcher = tmp_path / "usr/sbin/runphi"
    launcher.parent.mkdir(parents=True, exist_ok=True)
    launcher.touch()
    text = BEFORE[name]
    if text is not None:
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o640)
    return ["--destdir", str(tmp_path), "--engine", name], path


@pytest.mark.parametrize("name", ENGINES)
def test_undo_brings_every_byte_back(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, path = prepared(tmp_path, name)
    before = snapshot(tmp_path)
    assert cli.main([*words, "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"+++ {path} (then)" in said
    assert re.search(r"^\+.*runphi", said, re.M)
    assert not re.search(r"^-[^-]", said.replace('-        "kata": {"path": "/usr/bin/kata"}\n', ""), re.M)
    assert path.stat().st_mode & 0o777 == (0o640 if BEFORE[name] else 0o644)
    assert cli.main(words) == 0  # nothing to do, so nothing to ask
    assert "already" in capsys.readouterr().out
    assert cli.main([*words, "--undo"]) == 0
    assert snapshot(tmp_path) == before
    assert cli.main([*words, "--undo"]) == 0
    assert "was not changed" in capsys.readouterr().out


def test_nothing_is_changed_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, _ = prepared(tmp_path, "docker")
    before = snapshot(tmp_path)
    assert cli.main(words) == 1
    assert "say --yes" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ENGINES)
def test_what_somebody_changed_since_is_shown_and_kept(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, path = prepared(tmp_path, name)
    assert cli.main([*words, "--yes"]) == 0
    written = path.read_text()
    mine = written[:-2] + ', "debug": true}\n' if name == "docker" else written + "# mine\n"
    path.write_text(mine)
    assert cli.main([*words, "--undo"]) == 1
    error = capsys.readouterr().err
    assert "+# mine" in error or '"debug"' in error
    assert "take the runtime runphi out by hand" in error
    assert path.read_text() == mine
    kept = Path(f"{tmp_path}{STATE}/engine-{name}.before").read_text()
    assert kept == (BEFORE[name] or "")
    # taken out by hand: what else was changed stays, and nothing of ours is left
    cleaned = DAEMON.replace("json-file", "local") if name == "docker" else "# mine\n"
    path.write_text(cleaned)
    assert cli.main([*words, "--undo"]) == 0
    assert path.read_text() == cleaned
    assert not Path(f"{tmp_path}{STATE}").exists()


def test_a_file_taken_away_by_hand_is_no_trouble(tmp_path: Path) -> None:
    words, path = prepared(tmp_path, "podman")
    before = snapshot(tmp_path)
    assert cli.main([*words, "--yes"]) == 0
    path.unlink()
    assert cli.main([*words, "--undo"]) == 0
    assert snapshot(tmp_path) == before


def test_a_runtime_that_is_not_installed_is_not_made_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--destdir", str(tmp_path), "--engine", "docker", "--yes"]) == 1
    assert "it is not installed; configure -a installs it" in capsys.readouterr().err
    assert snapshot(tmp_path) == {}


def test_a_copy_that_is_gone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, path = prepared(tmp_path, "docker")
    assert cli.main([*words, "--yes"]) == 0
    written = path.read_bytes()
    Path(f"{tmp_path}{STATE}/engine-docker.before").unlink()
    assert cli.main([*words, "--undo"]) == 1
    assert "engine-docker.before is gone" in capsys.readouterr().err
    assert path.read_bytes() == written


def test_an_entry_taken_out_by_hand_may_be_added_again(tmp_path: Path) -> None:
    words, path = prepared(tmp_path, "containerd")
    assert cli.main([*words, "--yes"]) == 0
    path.write_text(DEBIAN + "# mine\n")
    before = path.read_bytes()
    assert cli.main([*words, "--yes"]) == 0
    assert cli.main([*words, "--undo"]) == 0
    assert path.read_bytes() == before
    assert record.names(Root(str(tmp_path))) == []


def test_several_engines_at_once(tmp_path: Path) -> None:
    for name in ENGINES:
        prepared(tmp_path, name)
    before = snapshot(tmp_path)
    words = ["--destdir", str(tmp_path)]
    assert cli.main([*words, *(word for name in ENGINES for word in ("--engine", name)), "--yes"]) == 0
    assert change.changed(Root(str(tmp_path))) == list(ENGINES)
    assert cli.main([*words, "--undo"]) == 0
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["containerd", "podman"])
@pytest.mark.parametrize("at", ["engine: written down", "engine: backup", "engine: changed", "undo: put back"])
def test_killed_at_every_step(tmp_path: Path, name: str, at: str) -> None:
    (tmp_path / "root").mkdir()
    words, path = prepared(tmp_path / "root", name)
    before = snapshot(tmp_path / "root")

    def call(*more: str, kill: str = "") -> None:
        argv = [sys.executable, "-IB", str(ROOT / "bin" / "configure"), *words, *more]
        done = subprocess.run(argv, env={"RUNPHI_KILL_AT": kill}, capture_output=True, text=True, check=False)
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr

    def begun() -> None:
        if at.startswith("undo"):
            call("--yes")
        call("--undo" if at.startswith("undo") else "--yes", kill=at)

    begun()
    call("--undo")
    assert snapshot(tmp_path / "root") == before
    begun()
    call("--yes")
    assert "runphi" in path.read_text()
    call("--undo")
    assert snapshot(tmp_path / "root") == before
