# SPDX-License-Identifier: Apache-2.0
"""A room for another release's root: a world of its own, of which nothing stays. Here its root is this machine's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.release.room import LOCK, TIMED_OUT, Room
from tests.system.place import PATIENCE, ROOT, until

if TYPE_CHECKING:
    from collections.abc import Iterator

ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
#: leaves behind all that a command can: processes, mounts, cgroups, files, network namespaces
MESS = """
setsid sleep 98765 & (trap '' TERM HUP; exec sleep 98765) &
mkdir /mnt/x && mount -t tmpfs none /mnt/x && mount --bind / /mnt
for each in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -e "$each/cgroup.procs" ] && mkdir -p "$each/mess/deep" && sleep 98765 & echo $! >"$each/mess/deep/cgroup.procs"
done 2>/dev/null
echo changed >/etc/hostname; echo x >/usr/new; echo y >/tmp/new; mknod /dev/mess c 1 3
"""


def processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "98765" in words:
            found.append(words)
    return found


def groups() -> list[str]:
    return [path for path, _, _ in os.walk("/sys/fs/cgroup") if "/debianX-" in path]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for rooms; not on an overlay, which takes none as its upper layer."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rpr") as name:
        yield Path(name)


@pytest.fixture
def room(scratch: Path) -> Iterator[Room]:
    with Room([Path("/")], "debianX", scratch) as made:
        yield made
        assert processes() == []
    assert str(scratch) not in Path("/proc/self/mountinfo").read_text()
    assert groups() == []
    assert [path.name for path in scratch.iterdir()] == [f".{LOCK}"]
    for path in ("/usr/new", "/tmp/new", "/dev/mess", "/mnt/x"):
        assert not os.path.exists(path)


def output(room: Room, script: str, seconds: float = PATIENCE) -> tuple[int, str]:
    seen: list[bytes] = []
    status = room.run(["/bin/sh", "-c", script], ENV, seconds, sink=seen.append)
    return status, b"".join(seen).decode()


def test_a_world_of_its_own(room: Room) -> None:
    status, text = output(
        room, "hostname; echo $$; cat /proc/1/comm; cat /proc/self/cgroup; ls /proc | grep -c '^[0-9]'"
    )
    assert status == 0
    name, pid, first, *rest = text.splitlines()
    assert (name, first.startswith("python")) == ("debianX", True)
    assert 1 < int(pid) < 100
    # at the top of every hierarchy, so nobody in there sees or meets what runs beside
    *lines, count = rest
    assert lines
    assert all(line.split(":", 2)[2] in ("/", "/init") for line in lines), lines
    assert int(count) < 10
    where = "for each in / /tmp /run /dev /dev/pts /dev/shm /proc /sys; do findmnt -no FSTYPE -M $each; done"
    kinds = output(room, where)[1].split()
    assert kinds[:1] + kinds[2:] == ["overlay", "tmpfs", "tmpfs", "devpts", "tmpfs", "proc", "sysfs"]
    assert output(room, "ls /dev/kvm /dev/net/tun /dev/null | wc -w")[1] == output_here()
    # the machine's mounts are out of sight
    assert str(ROOT.parent) not in output(room, "cut -d' ' -f5 /proc/self/mountinfo")[1].splitlines()


def output_here() -> str:
    return f"{sum(os.path.exists(path) for path in ('/dev/kvm', '/dev/net/tun', '/dev/null'))}\n"


def test_its_words_and_its_end(room: Room) -> None:
    assert output(room, "echo out; echo err >&2; exit 7") == (7, "out\nerr\n")
    assert output(room, "kill -9 $$") == (137, "")


def test_nothing_stays(room: Room) -> None:
    assert output(room, MESS + "exit 3")[0] == 3
    assert processes() == []


def test_nothing_stays_of_what_takes_too_long(room: Room) -> None:
    status, text = output(room, MESS + "echo begun; sleep 98765", 5)
    assert (status, text) == (TIMED_OUT, "begun\n")
    assert processes() == []


def test_what_is_shown_to_it(room: Room, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text\n")
    room.bind(tmp_path, "/srv/shown")
    room.bind(tmp_path / "file", "/srv/file", readonly=False)
    room.place("/root/x").mkdir()
    (room.place("/root/x") / "placed").write_text("placed\n")
    script = "cat /srv/shown/file /root/x/placed; touch /srv/shown/new; echo more >>/srv/file; stat -c %a /root"
    text = output(room, script + " 2>/dev/null")[1]
    mode = f"{Path('/root').stat().st_mode & 0o7777:o}"
    assert [line for line in text.splitlines() if "touch" not in line] == ["text", "placed", mode]
    assert (tmp_path / "file").read_text() == "text\nmore\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_layer_keeps_what_was_changed() -> None:
    # on another file system than the root, which is a layer here and must not hold another
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="rpr") as name:
        keep, rooms = Path(name) / "keep", Path(name) / "rooms"
        keep.mkdir()
        with Room([Path("/")], "debianX", rooms, keep=keep) as room:
            assert output(room, "echo kept >/usr/kept") == (0, "")
        assert (keep / "usr/kept").read_text() == "kept\n"
        with Room([keep, Path("/")], "debianX", rooms) as room:
            assert output(room, "cat /usr/kept; echo other >/usr/kept") == (0, "kept\n")
        assert (keep / "usr/kept").read_text() == "kept\n"


def test_it_ends_with_whoever_made_it(scratch: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.release.room import Room\n"
        f"with Room([Path('/')], 'debianX', Path({str(scratch)!r})) as room:\n"
        "    room.run(['/bin/sh', '-c', 'echo begun; exec sleep 98765'], {'PATH': '/bin:/usr/bin'}, 100)\n"
    )
    maker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert maker.stdout is not None
    assert maker.stdout.readline() == b"begun\n"
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    until(lambda: not processes(), "the end of the room")
    # what it could not take along goes with the next one
    with Room([Path("/")], "debianX", scratch) as room:
        assert output(room, "true") == (0, "")
    assert [path.name for path in scratch.iterdir()] == [f".{LOCK}"]
    assert groups() == []
