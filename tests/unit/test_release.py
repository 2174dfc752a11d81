# SPDX-License-Identifier: Apache-2.0
"""What the roots of other releases take from this machine, and how their runs are counted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.release import __main__ as release
from tests.release import carried
from tests.release import roots as layers
from tests.release.carried import Source, apt_sources, deb822_sources, named_paths, one_line_sources, translate
from tests.release.room import Hierarchy, Room, hierarchies
from tests.release.roots import ASIDE, KEPT, Kind, Roots, digest

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
 http://other.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib # the nearest
deb [arch=amd64 signed-by=/etc/apt/key.gpg] http://options.example/debian stable main
deb-src http://sources.example/debian bookworm main
deb [ arch=amd64 ] https://stranger.example/apt focal main
broken
"""


def test_both_formats_of_sources() -> None:
    assert list(deb822_sources(DEB822)) == [
        Source("http://mirror.example/debian", "bookworm"),
        Source("http://mirror.example/debian", "bookworm-updates"),
        Source("http://other.example/debian", "bookworm"),
        Source("http://other.example/debian", "bookworm-updates"),
        Source("http://mirror.example/debian-security", "bookworm-security"),
    ]
    assert list(one_line_sources(ONE_LINE)) == [
        Source("http://mirror.example/debian", "bookworm"),
        Source("http://options.example/debian", "stable"),
        Source("https://stranger.example/apt", "focal"),
    ]


def test_another_release_comes_from_the_same_mirrors() -> None:
    found = [*deb822_sources(DEB822), *one_line_sources(ONE_LINE), Source("http://m.example", "bookworm-backports")]
    assert translate(found, "bookworm", "trixie") == [
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://other.example/debian trixie main",
        "deb http://other.example/debian trixie-updates main",
        "deb http://mirror.example/debian-security trixie-security main",
        "deb http://options.example/debian trixie main",
    ]


def test_where_packages_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(carried.MIRROR, raising=False)
    monkeypatch.setattr(carried, "APT", tmp_path)
    with pytest.raises(carried.CarryError, match=f"cannot find a mirror.*{carried.MIRROR}"):
        apt_sources("trixie")
    monkeypatch.setenv(carried.MIRROR, "http://named.example/debian")
    assert apt_sources("trixie") == ["deb http://named.example/debian trixie main"]


def test_os_release() -> None:
    text = '# what\nID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nEMPTY=\n'
    found = carried.os_release(text)
    assert (found["ID"], found["VERSION_CODENAME"], found["EMPTY"]) == ("debian", "bookworm", "")


def test_what_pips_settings_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("index/simple", "wheels", "more wheels"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "constraints.txt").touch()
    config = tmp_path / "pip.conf"
    config.write_text(
        f"[global]\nfind-links = {tmp_path}/wheels\nextra-index-url = file://{tmp_path}/index/simple\n"
        f"  https://example.org/simple\nconstraint = {tmp_path}/constraints.txt\ncert = {tmp_path}/nothing\n"
        "format = %(name)s\n"
    )
    monkeypatch.setattr(carried, "PIP_FILES", (tmp_path / "nosuch.conf", config))
    environment = {"PIP_FIND_LINKS": f"file://{tmp_path}/more%20wheels {tmp_path}/gone", "PIP_CERT": "/etc/passwd"}
    assert carried.pip_paths(environment) == [
        config, tmp_path / "wheels", tmp_path / "index", tmp_path / "constraints.txt", tmp_path / "more wheels",
    ]  # fmt: skip
    assert named_paths({"index-url": "https://example.org/simple", "find-links": "relative"}) == []


def test_variables_that_a_root_gets() -> None:
    given = {"PIP_CERT": "a", "RUNPHI_ACCEL": "tcg", "https_proxy": "p", "HOME": "/x", "SECRET": "s", "PATH": "/y"}
    assert carried.variables(given) == {"PIP_CERT": "a", "RUNPHI_ACCEL": "tcg", "https_proxy": "p"}


# Section: cgroups

HYBRID = """\
20 1 0:20 / /sys rw - sysfs sysfs rw
21 20 0:21 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
22 21 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
23 21 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
24 21 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
25 1 0:24 / /mnt/elsewhere rw - cgroup2 cgroup2 rw
"""


def test_hierarchies_of_a_hybrid_machine() -> None:
    assert hierarchies(HYBRID, "4:cpu,cpuacct:/a\n1:name=systemd:/\n0::/b\n") == [
        Hierarchy("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct", "/a"),
        Hierarchy("/sys/fs/cgroup/systemd", "name=systemd", ""),
        Hierarchy("/sys/fs/cgroup/unified", "", "/b"),
    ]


def test_hierarchy_of_version_2() -> None:
    line = "24 20 0:24 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
    assert hierarchies(line, "0::/user.slice/x\n") == [Hierarchy("/sys/fs/cgroup", "", "/user.slice/x")]


# Section: layers


def test_a_layer_is_named_after_what_it_is_made_of() -> None:
    kind = Kind("x", ("bin/lib.sh",), "true")
    name = digest("base", kind.inputs, kind.script)
    assert name == digest("base", kind.inputs, kind.script)
    others = [
        digest("other", kind.inputs, kind.script),
        digest("base", ("bin/test",), kind.script),
        digest("base", ("backends/guest/init",), kind.script),
        digest("base", kind.inputs, "false"),
    ]
    assert len({name, *others}) == 5


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the layers of a release are."""
    monkeypatch.setattr(layers, "STORE", tmp_path)
    return tmp_path / "debian12"


def layer(name: str) -> Path:
    """Make a layer of one file, or find it; who asked for it is done with it."""

    def fill(made: Path) -> None:
        (made / "file").write_text(name)

    roots = Roots("debian12")
    try:
        return roots.derived(name, "", fill)
    finally:
        roots.close()


def test_a_layer_is_made_once_and_the_oldest_go(store: Path) -> None:
    first = layer("disk")
    assert (first / "file").read_text() == "disk"
    (first / "file").write_text("kept")
    assert (layer("disk") / "file").read_text() == "kept"
    for number in range(KEPT):
        old = store / f"disk-{number}"
        old.mkdir()
        os.utime(old, (number, number))
    layer("disk")
    assert sorted(path.name for path in store.glob("disk-*")) == sorted([first.name, f"disk-{KEPT - 1}"])
    assert not [path for path in store.glob(f"{ASIDE}*") if path.is_dir()]


def test_a_run_that_is_killed_leaves_no_layer_that_counts(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def killed(path: Path) -> None:
        next(path for path in Path(path).rglob("*") if path.is_file()).unlink()
        raise KeyboardInterrupt

    def half(made: Path) -> None:
        (made / "half").touch()
        raise KeyboardInterrupt

    # while a layer is made
    roots = Roots("debian12")
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        roots.derived("disk", "", half)
    roots.close()
    assert not list(store.glob("disk-*"))
    assert any(path.is_dir() for path in store.glob(f"{ASIDE}*"))
    # and while an old one is removed
    monkeypatch.setattr(shutil, "rmtree", remove)
    old = layer("disk")
    os.utime(old, (0, 0))
    for number in range(KEPT):
        (store / f"disk-{number}").mkdir()
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        Roots("debian12")._prune("disk")
    monkeypatch.setattr(shutil, "rmtree", remove)
    assert (layer("disk") / "file").read_text() == "disk"
    assert not [path for path in store.glob(f"{ASIDE}*") if path.is_dir()]


def test_what_lies_in_a_room_gets_the_parents_of_its_root(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    (layer / "root").mkdir(parents=True)
    (layer / "root").chmod(0o700)
    room = Room([layer], "debian13", tmp_path / "rooms", keep=tmp_path / "keep")
    (tmp_path / "keep").mkdir()
    place = room.place("/root/a/runphi")
    assert place == tmp_path / "keep/root/a/runphi"
    assert (place.parent.parent.stat().st_mode & 0o777, place.parent.stat().st_mode & 0o777) == (0o700, 0o755)
    assert not place.exists()


# Section: steps and counts


def test_steps() -> None:
    fresh = ["bin/quickstart", "bin/quickstart --check"]
    assert [step.name for step in release.steps([], False, [])] == [*fresh, "bin/test unit system engine"]
    assert [step.name for step in release.steps([], True, [])] == [*fresh, "bin/test engine -- -m core"]
    assert [step.name for step in release.steps(["quickstart"], False, [])] == fresh
    (step,) = release.steps(["system", "lint"], False, ["-k", "a b"])
    assert (step.command, step.fresh) == ("bin/test system lint -- -k 'a b'", False)
    assert all(step.fresh and step.command.endswith("</dev/null") for step in release.steps(["quickstart"], False, []))


@pytest.mark.parametrize(
    ("tail", "status", "counted"),
    [
        (b"1 passed, 0 failed, 0 skipped\nall\n12 passed, 3 failed, 4 skipped\n", 1, (12, 3, 4)),
        (b"ready\n", 0, (1, 0, 0)),
        (b"no\n", 124, (0, 1, 0)),
        # a run that ended badly is no success, whatever it counted
        (b"12 passed, 0 failed, 0 skipped\n", 1, (12, 1, 0)),
    ],
)
def test_counts(tail: bytes, status: int, counted: tuple[int, int, int]) -> None:
    assert release.count(tail, status) == counted
