# SPDX-License-Identifier: Apache-2.0
"""cgroups on the hierarchies this machine has; test_cgroup_v2.py has v2 with controllers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runphi_async.container.cgrouppath import path_for
from runphi_async.errors import CgroupError
from runphi_async.host.cgroup import Cgroup, Hierarchy, Limits, Stats, hierarchies, leave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/me\\040mory rw - cgroup cgroup rw,memory
36 31 0:32 / /elsewhere rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
"""
PURE = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
NAMED_ONLY = """\
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
30 23 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            HYBRID,
            (
                Hierarchy("/sys/fs/cgroup/cpu,cpuacct", frozenset({"cpu", "cpuacct"})),
                Hierarchy("/sys/fs/cgroup/me mory", frozenset({"memory"})),
                Hierarchy("/sys/fs/cgroup/systemd", frozenset()),
                Hierarchy("/sys/fs/cgroup/unified", frozenset(), v2=True),
            ),
        ),
        (PURE, (Hierarchy("/sys/fs/cgroup", frozenset({"cpuset", "cpu", "memory", "pids"}), v2=True),)),
        (
            NAMED_ONLY,
            (
                Hierarchy("/sys/fs/cgroup/systemd", frozenset()),
                Hierarchy("/sys/fs/cgroup/unified", frozenset({"cpuset", "cpu", "memory", "pids"}), v2=True),
            ),
        ),
        ("31 23 0:28 / / rw - ext4 /dev/vda rw\n", ()),
    ],
)
def test_hierarchies(tmp_path: Path, text: str, expected: object) -> None:
    (tmp_path / "mountinfo").write_text(text)
    assert hierarchies(str(tmp_path / "mountinfo")) == expected


@pytest.mark.parametrize(
    ("given", "systemd", "path"),
    [
        (None, False, "/runphi/ID"),
        ("", False, "/runphi/ID"),
        ("/docker/x", False, "/docker/x"),
        ("docker/x", False, "/docker/x"),
        ("//docker/../../x/.", False, "/x"),
        ("a:b:c", False, "/a:b:c"),
        (None, True, "/system.slice/runphi-ID.scope"),
        ("system.slice:runphi:abc", True, "/system.slice/runphi-abc.scope"),
        (":cri:abc", True, "/system.slice/cri-abc.scope"),
        ("-.slice:cri:abc", True, "/cri-abc.scope"),
        ("user.slice:p:x.slice", True, "/user.slice/x.slice"),
        (
            "kubepods-burstable-podX.slice:cri:ID",
            True,
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice/cri-ID.scope",
        ),
    ],
)
def test_path_for(given: str | None, systemd: bool, path: str) -> None:
    assert path_for(given, "ID", systemd=systemd) == path


@pytest.mark.parametrize(
    ("given", "systemd"),
    [
        ("/", False),
        ("..", False),
        ("/a\0", False),
        ("/docker/x", True),
        ("a--b.slice:p:x", True),
        ("-a.slice:p:x", True),
        ("a/b.slice:p:x", True),
        ("a:p:x", True),
        ("a.slice:p:../../x", True),
    ],
)
def test_path_for_refuses(given: str, systemd: bool) -> None:
    with pytest.raises(CgroupError):
        path_for(given, "ID", systemd=systemd)


def test_no_cgroup_is_the_root() -> None:
    for path in ("/", "", "/a/.."):
        with pytest.raises(CgroupError):
            Cgroup(path, ())


# --- the real hierarchies of this machine ---

REAL = hierarchies()
CONTROLLERS: frozenset[str] = frozenset().union(*(h.controllers for h in REAL))
V1 = "memory" in CONTROLLERS and not any(h.v2 and h.controllers for h in REAL)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not REAL or not os.access(REAL[0].mount, os.W_OK), reason="cgroups are not writable"
)
needs_v1 = pytest.mark.skipif(not V1, reason="no cgroup v1 memory controller")


@pytest.fixture
def real() -> Iterator[Cgroup]:
    top = f"/runphi-test-{uuid.uuid4().hex[:12]}"
    group = Cgroup(f"{top}/leaf", REAL)
    yield group
    group.kill_all()
    group.remove()
    Cgroup(top, REAL).remove()


@pytest.fixture
def spawn(real: Cgroup) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(args or ("sleep", "60"), stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def real_file(group: Cgroup, controller: str, name: str) -> str:
    mount = next(h.mount for h in REAL if controller in h.controllers)
    return Path(f"{mount}{group.path}/{name}").read_text().strip()


@needs_root
def test_life_of_a_real_cgroup(real: Cgroup, spawn: Callable[..., subprocess.Popen[bytes]]) -> None:
    real.create()
    real.create()
    assert real.pids() == []
    assert real.oom_kills() == 0
    first, second = spawn(), spawn()
    for process in (first, second):
        real.join(process.pid)
    assert real.pids() == sorted([first.pid, second.pid])
    lines = Path(f"/proc/{first.pid}/cgroup").read_text().splitlines()
    joined = [line for line in lines if line.endswith(real.path)]
    assert len(joined) == len(REAL)
    with pytest.raises(CgroupError, match="cannot remove cgroup"):
        real.remove(deadline=0)
    real.kill_all()
    assert real.pids() == []
    assert first.wait(5) == second.wait(5) == -signal.SIGKILL
    real.remove()
    assert not any(os.path.exists(h.mount + real.path) for h in REAL)
    real.remove()
    real.kill_all()
    assert (real.pids(), real.oom_kills()) == ([], 0)
    assert real.stats() == Stats()


@needs_root
def test_one_can_be_spared(real: Cgroup, spawn: Callable[..., subprocess.Popen[bytes]]) -> None:
    victim, spared = spawn("sleep", "100"), spawn("sleep", "100")
    real.create()
    for process in (victim, spared):
        real.join(process.pid)
    real.kill_all(spare=spared.pid)
    assert victim.wait(5) == -9
    assert (spared.poll(), real.pids()) == (None, [spared.pid])
    real.kill_all()
    assert spared.wait(5) == -9


@needs_root
def test_kill_all_outlives_a_forker(real: Cgroup, spawn: Callable[..., subprocess.Popen[bytes]]) -> None:
    real.create()
    process = spawn("sh", "-c", "read x; while :; do sleep 100 & done")
    real.apply(Limits(pids=60))
    real.join(process.pid)
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    while len(real.pids()) < 20:
        assert process.poll() is None
    real.kill_all()
    assert real.pids() == []


@needs_root
def test_join_of_a_dead_process(real: Cgroup) -> None:
    real.create()
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(CgroupError, match=rf"cannot write '{process.pid}' to .*cgroup\.procs"):
        real.join(process.pid)


@needs_root
@needs_v1
def test_limits_of_v1(real: Cgroup) -> None:
    real.create()
    mib = 1 << 20
    real.apply(Limits(64 * mib, 128 * mib, 512, 50_000, 100_000, "0", "0", 77))
    assert real_file(real, "memory", "memory.limit_in_bytes") == str(64 * mib)
    assert real_file(real, "memory", "memory.memsw.limit_in_bytes") == str(128 * mib)
    assert real_file(real, "cpu", "cpu.shares") == "512"
    assert real_file(real, "cpu", "cpu.cfs_quota_us") == "50000"
    assert real_file(real, "cpuset", "cpuset.cpus") == "0"
    assert real_file(real, "pids", "pids.max") == "77"
    assert real.stats().memory_limit == 64 * mib
    # up past the old swap limit, then down again: the order of the two files has to change
    real.apply(Limits(memory_bytes=256 * mib, memory_swap_bytes=512 * mib))
    assert real_file(real, "memory", "memory.limit_in_bytes") == str(256 * mib)
    real.apply(Limits(memory_bytes=32 * mib, memory_swap_bytes=32 * mib))
    assert real_file(real, "memory", "memory.memsw.limit_in_bytes") == str(32 * mib)
    real.apply(Limits())
    real.apply(Limits(0, 0, 0, 0, 0, "", "", 0))
    assert real_file(real, "pids", "pids.max") == "77"
    real.apply(Limits(memory_bytes=-1, memory_swap_bytes=-1, cpu_quota=-1, pids=-1))
    assert real.stats().memory_limit is None
    assert real_file(real, "cpu", "cpu.cfs_quota_us") == "-1"
    assert real_file(real, "pids", "pids.max") == "max"


@needs_root
@needs_v1
def test_errors_name_file_and_value(real: Cgroup) -> None:
    real.create()
    with pytest.raises(CgroupError, match=r"cannot write '0-999' to .*/leaf/cpuset\.cpus: "):
        real.apply(Limits(cpuset_cpus="0-999"))
    with pytest.raises(CgroupError, match=r"cannot write '1' to .*/leaf/cpu\.cfs_period_us: .*out of range"):
        real.apply(Limits(cpu_period=1))
    without = Cgroup(real.path, [h for h in REAL if "memory" not in h.controllers])
    with pytest.raises(CgroupError, match="no memory controller is mounted"):
        without.apply(Limits(memory_bytes=1 << 20))


@needs_root
@needs_v1
def test_stats_and_oom_kills(real: Cgroup, spawn: Callable[..., subprocess.Popen[bytes]]) -> None:
    real.create()
    real.apply(Limits(memory_bytes=24 << 20, memory_swap_bytes=24 << 20))
    process = spawn(
        sys.executable,
        "-c",
        "input(); x = b'x' * (4 << 20); print(flush=True); input(); y = b'y' * (200 << 20)",
    )
    real.join(process.pid)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    process.stdout.readline()
    stats = real.stats()
    assert 4 << 20 <= stats.memory_usage <= 24 << 20
    assert stats.memory_limit == 24 << 20
    assert stats.cpu_total > 0
    assert stats.pids == 1
    assert real.oom_kills() == 0
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.wait(20) == -signal.SIGKILL
    assert real.oom_kills() == 1


@needs_root
def test_failed_create_leaves_nothing(real: Cgroup, tmp_path: Path) -> None:
    broken = Cgroup(real.path, [*REAL, Hierarchy(str(tmp_path / "none"), frozenset())])
    with pytest.raises(CgroupError, match="cannot make cgroup"):
        broken.create()
    assert not any(os.path.exists(h.mount + os.path.dirname(real.path)) for h in REAL)


@needs_root
def test_remove_takes_what_was_made_below(real: Cgroup) -> None:
    real.create()
    Cgroup(f"{real.path}/a/b", REAL).create()
    real.remove()
    assert not any(os.path.exists(h.mount + real.path) for h in REAL)


@needs_root
def test_leave(real: Cgroup) -> None:
    code = (
        "import sys; from runphi_async.host.cgroup import leave; leave(sys.argv[1]);"
        "print(open('/proc/self/cgroup').read())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, real.path],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.stdout.count(f":{real.path}\n") == len(REAL)


@needs_root
@pytest.mark.skipif(not any(h.v2 for h in REAL), reason="no cgroup2 is mounted")
def test_v2_of_this_kernel(spawn: Callable[..., subprocess.Popen[bytes]], real: Cgroup) -> None:
    group = Cgroup(real.path, [h for h in REAL if h.v2])
    group.create()
    process = spawn()
    group.join(process.pid)
    assert group.pids() == [process.pid]
    group.kill_all()
    group.remove()


def test_leave_of_nothing() -> None:
    leave("/x", ())
