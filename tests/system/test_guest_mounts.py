# SPDX-License-Identifier: Apache-2.0
"""The mounts of a Linux guest for real: what config.json says is there, and nothing else of the host."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backends import configured
from backends.qemu.settings import Qemu
from tests.system.linuxkit import BOOT, await_init, linux, linux_bundle
from tests.system.place import ended, until

if TYPE_CHECKING:
    from tests.system.place import Place

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(BOOT + 180),
    pytest.mark.skipif(not os.path.exists(configured.load().of(Qemu).initrd), reason="needs bin/prepare-guest"),
]

#: what containerd and docker put into every config.json
USUAL: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    {
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["ro", "nosuid", "noexec", "nodev"],
    },
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
    {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=1m"],
    },
]


def bind(source: Path, destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", *options]}


def host_mounts(place: Place) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(place.path) in line]


def test_files_and_directories_of_the_host(place: Place) -> None:
    data, secret = place.path / "data", place.path / "secret"
    (data / "sub").mkdir(parents=True)
    secret.mkdir()
    (data / "from-host").write_text("one\n")
    (secret / "key").write_text("k1\n")
    (place.path / "resolv.conf").write_text("nameserver 10.77.0.1\n")
    script = """
    cat /data/from-host /etc/resolv.conf /data/sub/key
    echo two >/data/from-guest; echo three >>/etc/resolv.conf
    echo x >/data/sub/new || echo read-only
    mount -o remount,rw,bind /data/sub; echo x >/data/sub/new || echo still read-only
    ls /data/sub; echo bye; cat >/dev/null
    """
    # out of order on purpose in one place: the second hides a part of the first, as written
    wanted = [
        *USUAL,
        bind(data, "/data", "rw", "rprivate"),
        bind(secret, "/data/sub", "ro"),
        bind(place.path / "resolv.conf", "/etc/resolv.conf"),
    ]
    c = linux(place, "c1", script, mounts=wanted)
    said = c.expect(b"bye\n").decode()
    assert said.startswith("one\nnameserver 10.77.0.1\nk1\n")
    assert said.count("read-only\n") == 2
    assert said.endswith("key\nbye\n")
    assert (data / "from-guest").read_text() == "two\n"
    assert (place.path / "resolv.conf").read_text() == "nameserver 10.77.0.1\nthree\n"
    assert sorted(path.name for path in secret.iterdir()) == ["key"]
    (data / "from-host").write_text("changed\n")
    plan = (c.record / "configc1.conf").read_text()
    assert f"# mount: /data is {data}\n" in plan
    assert f"# mount: /data/sub is {secret}, read-only\n" in plan
    assert host_mounts(place) == []  # nothing of it shows on the host
    c.must("delete", "--force")
    assert host_mounts(place) == []
    assert (data / "from-host").exists()
    assert (data / "sub").is_dir()


def test_the_guests_own_file_systems_and_flags(place: Place) -> None:
    tools = place.path / "tools"
    tools.mkdir()
    (tools / "run").write_text("#!/bin/sh\necho ran\n")
    (tools / "run").chmod(0o755)
    script = """
    exec 2>&1; echo interfaces $(ls /sys/class/net); ip -o addr show dev lo
    grep -E ' (/tools|/cache|/seeded|/run|/dev/shm|/sys|/sys/fs/cgroup|/var/deep) ' /proc/mounts
    /tools/run; echo code $?
    df -k /cache | tail -n 1 | awk '{print "size", $2}'
    cat /seeded/file; ls -l /seeded/link | sed 's/.*link/link/'; touch /seeded/new && echo writable
    ls /linked/here
    """
    wanted = [
        *USUAL,
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        bind(tools, "/tools", "ro", "noexec", "nosuid", "nodev"),
        {"destination": "/cache", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "noexec", "nodev"]},
        {"destination": "/seeded", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "rprivate"]},
        bind(tools, "/var/deep", "ro"),
        bind(tools, "/linked/here", "ro"),
    ]
    root = {"path": "rootfs", "readonly": True}
    private = {"namespaces": [{"type": "network"}]}
    bundle = linux_bundle(place, "c1", script, mounts=wanted, root=root, linux=private)
    rootfs = bundle / "rootfs"
    (rootfs / "seeded").mkdir()
    (rootfs / "seeded" / "file").write_text("seed\n")
    os.symlink("file", rootfs / "seeded" / "link")
    # links of the image that lead out of it lead nowhere but into the guest
    outside = place.path / "outside"
    outside.mkdir()
    os.symlink(outside, rootfs / "linked")
    c = place.create("c1", made=bundle)
    assert c.created == 0, c.error
    c.must("start")
    await_init(c)
    said = c.rest().decode()
    assert "interfaces lo\n" in said  # nothing was plugged into its namespace
    assert "127.0.0.1/8" in said
    table = {line.split()[1]: line.split() for line in said.splitlines() if line.count(" ") == 5}
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(table["/tools"][3].split(",")), said
    assert table["/cache"][2] == "tmpfs"
    assert {"nodev", "noexec"} <= set(table["/cache"][3].split(","))
    assert "ro" in table["/sys"][3].split(",")
    assert table["/sys/fs/cgroup"][2] == "cgroup2"
    assert "size=1024k" in table["/dev/shm"][3]
    assert table["/run"][2] == "tmpfs"
    assert "Permission denied\ncode 126\n" in said
    assert "size 64\n" in said
    assert "seed\nlink -> file\nwritable\n" in said
    assert said.endswith("writable\nrun\n")
    assert list(outside.iterdir()) == []
    c.wait()


def test_what_the_host_mounts_later(place: Place) -> None:
    data = place.path / "data"
    data.mkdir()
    mount = functools.partial(subprocess.run, check=True)
    mount(["mount", "--bind", data, data])
    try:
        mount(["mount", "--make-shared", data])
        (data / "before").mkdir()
        (data / "after").mkdir()
        mount(["mount", "-t", "tmpfs", "none", data / "before"])
        (data / "before" / "1").touch()
        script = "echo up; read word; for d in /slave /private /plain; do echo $d $(ls $d/before) $(ls $d/after); done"
        plain = {"destination": "/plain", "type": "bind", "source": str(data), "options": ["bind"]}
        c = linux(
            place, "c1", script, mounts=[bind(data, "/slave", "rslave"), bind(data, "/private", "rprivate"), plain]
        )
        c.expect(b"up\n")
        mount(["mount", "-t", "tmpfs", "none", data / "after"])
        (data / "after" / "2").touch()
        c.type(b"go\n")
        assert c.rest().decode().splitlines() == ["/slave 1 2", "/private 1", "/plain"]
        assert c.wait() == 0
    finally:
        subprocess.run(["umount", "--recursive", data], check=True)


@pytest.mark.parametrize(
    ("mount", "text"),
    [
        ({"type": "bind", "source": "PLACE/nothing"}, "there is no such file or directory on the host"),
        ({"type": "bind", "source": "PLACE/sock"}, "it is a socket"),
        ({"type": "bind", "source": "/dev/null"}, "it is a device"),
        ({"type": "nfs", "source": "server:/x"}, "cannot have a file system of type 'nfs'"),
        ({"type": "bind", "source": "PLACE", "options": ["rshared"]}, "a guest's mounts cannot appear on the host"),
        ({"type": "bind", "source": "PLACE", "options": ["idmap"]}, "a bind mount has no option 'idmap'"),
    ],
)
def test_what_cannot_be_mounted_is_refused_by_create(place: Place, mount: dict[str, Any], text: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place.path / "sock"))
    listener.close()
    asked = {"destination": "/data", **mount, "source": mount["source"].replace("PLACE", str(place.path))}
    c = place.create("c1", made=linux_bundle(place, "c1", "true", mounts=[asked]))
    assert c.created == 1
    assert "cannot mount" in c.error
    assert "/data" in c.error
    assert text in c.error


def test_a_mount_that_fails_in_the_guest_is_said(place: Place) -> None:
    bundle = linux_bundle(place, "c1", "true", mounts=[bind(place.path, "/bin/sh/below")])
    c = place.create("c1", made=bundle)
    assert c.created == 0, c.error
    c.must("start")
    assert b"cannot mount /bin/sh/below: Not a directory" in c.rest()
    assert c.wait() == 126


def test_an_inmate_is_told_what_it_does_not_see(place: Place) -> None:
    c = place.create("c1", mounts=[*USUAL, bind(place.path, "/data"), bind(place.path / "x", "/etc/hosts")])
    assert c.created == 0, c.error
    plan = (c.record / "configc1.conf").read_text()
    assert "# mount: not seen by a guest of kind inmate: /data\n" in plan


def test_the_whole_file_server_is_the_containers(place: Place) -> None:
    bundle = linux_bundle(place, "c1", "echo up; cat >/dev/null", mounts=USUAL)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["oomScoreAdj"] = 900
    (bundle / "config.json").write_text(json.dumps(spec))
    c = place.create("c1", made=bundle)
    c.must("start")
    c.expect(b"up\n")
    served = [pid for pid, words in place.processes().items() if "virtiofsd" in words]
    assert len(served) == 2  # each kind of virtiofsd has a parent that only waits for the one in the sandbox
    for pid in served:
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        assert all(line.endswith(f"{place.cgroup}/c1") for line in groups), groups
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "900\n"
    place.must("delete", "--force", "c1")


def test_nothing_stays_when_the_supervisor_is_killed(place: Place) -> None:
    data = place.path / "data"
    data.mkdir()
    c = linux(place, "c1", "echo up; cat >/dev/null", mounts=[*USUAL, bind(data, "/data")])
    c.expect(b"up\n")
    server = int((c.record / "fs.pid").read_text().split()[0])
    place.kill_supervisor()
    assert os.path.exists(f"/proc/{server}")  # the guest needs it
    os.kill(c.pid, signal.SIGKILL)
    c.must("delete", "--force")
    ended(server)
    until(lambda: not any("virtiofsd" in words for words in place.processes().values()), "the server's end")
    assert host_mounts(place) == []
    assert data.is_dir()
