# SPDX-License-Identifier: Apache-2.0
"""cgroup v2 with controllers, on a tree of plain files: the machines that run the tests may have v1 only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from runphi_async.errors import CgroupError
from runphi_async.host import cgroup
from runphi_async.host.cgroup import Cgroup, Hierarchy, Limits, Stats

FILES = {
    "cgroup.procs": "",
    "cgroup.subtree_control": "",
    "cpu.max": "max 100000",
    "cpu.stat": "usage_usec 30\nuser_usec 20\nsystem_usec 10\n",
    "cpu.weight": "100",
    "cpuset.cpus": "",
    "cpuset.mems": "",
    "memory.current": "4096\n",
    "memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n",
    "memory.max": "max\n",
    "memory.swap.max": "max\n",
    "pids.current": "5\n",
    "pids.max": "max\n",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose mkdir and rmdir behave like cgroup2."""
    mkdir = os.mkdir

    def fill(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        for name, text in FILES.items():
            Path(path, name).write_text(text)

    root = tmp_path / "v2"
    fill(str(root))
    monkeypatch.setattr(cgroup, "os", SimpleNamespace(**{**vars(os), "mkdir": fill, "rmdir": shutil.rmtree}))
    return root


@pytest.fixture
def v2(tree: Path) -> Cgroup:
    group = Cgroup("/a/leaf", [Hierarchy(str(tree), frozenset({"cpu", "cpuset", "memory", "pids"}), v2=True)])
    group.create()
    return group


def test_v2_enables_controllers_down_to_the_parent(v2: Cgroup, tree: Path) -> None:
    assert (tree / "cgroup.subtree_control").read_text().startswith("+")
    assert (tree / "a" / "cgroup.subtree_control").read_text().startswith("+")
    assert (tree / "a/leaf/cgroup.subtree_control").read_text() == ""


def test_v2_limits(v2: Cgroup, tree: Path) -> None:
    leaf = tree / "a/leaf"
    v2.apply(Limits(100, 150, 1024, 50_000, None, "0-1", "0", 9))
    got = {name: (leaf / name).read_text() for name in FILES if not name.startswith(("cgroup", "cpu.stat"))}
    assert got == {
        "cpu.max": "50000 100000",
        "cpu.weight": "39",
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
        "memory.current": "4096\n",
        "memory.events": FILES["memory.events"],
        "memory.max": "100",
        "memory.swap.max": "50",
        "pids.current": "5\n",
        "pids.max": "9",
    }
    v2.apply(Limits(-1, -1, 2, -1, 20_000, pids=-1))
    assert (leaf / "memory.max").read_text() == (leaf / "memory.swap.max").read_text() == "max"
    assert (leaf / "cpu.weight").read_text() == "1"
    assert (leaf / "cpu.max").read_text() == "max 20000"
    v2.apply(Limits(cpu_shares=262144))
    assert (leaf / "cpu.weight").read_text() == "10000"
    for wrong in (Limits(memory_swap_bytes=5), Limits(memory_bytes=6, memory_swap_bytes=5)):
        with pytest.raises(CgroupError, match="cannot limit memory and swap"):
            v2.apply(wrong)


def test_v2_without_swap_accounting(v2: Cgroup, tree: Path) -> None:
    (tree / "a/leaf/memory.swap.max").unlink()
    v2.apply(Limits(memory_bytes=100, memory_swap_bytes=-1))
    with pytest.raises(CgroupError, match=r"cannot write '0' to .*memory\.swap\.max: not there"):
        v2.apply(Limits(memory_bytes=100, memory_swap_bytes=100))


def test_v2_counts(v2: Cgroup, tree: Path) -> None:
    assert v2.oom_kills() == 2
    assert v2.stats() == Stats(4096, None, 30_000, 20_000, 10_000, 5)
    v2.apply(Limits(memory_bytes=100))
    assert v2.stats().memory_limit == 100
    v2.join(77)
    assert v2.pids() == [77]
    v2.remove()
    assert (tree / "a").is_dir()
    assert not (tree / "a/leaf").exists()


def test_v1_cpuset_is_inherited(tree: Path) -> None:
    (tree / "cpuset.cpus").write_text("0-3\n")
    (tree / "cpuset.mems").write_text("0\n")
    Cgroup("/a/leaf", [Hierarchy(str(tree), frozenset({"cpuset"}))]).create()
    assert (tree / "a/leaf/cpuset.cpus").read_text() == "0-3"
    assert (tree / "a/leaf/cpuset.mems").read_text() == "0"
