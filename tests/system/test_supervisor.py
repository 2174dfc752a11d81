# SPDX-License-Identifier: Apache-2.0
"""A real supervisor with real guests, driven by ``bin/runphi`` as engines do; it is killed, and so is all around it."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from consoles.streams import terminal
from runphi_async import wire
from tests.system.place import PATIENCE, RUNPHI, Container, Place, until
from tests.unit.wirekit import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(90),
]


# Section: the life of a container


def test_the_whole_walk(place: Place, backend: str) -> None:
    c = place.create("c1", backend=backend)
    state = c.state()
    assert (state["status"], state["pid"], state["id"]) == ("created", c.pid, "c1")
    assert state["annotations"]["user.note"] == "kept"
    assert state["bundle"] == str(place.path / "bundles" / "c1")
    assert (c.record / "pidfile").read_text() == str(c.pid)
    c.must("start")
    assert b"runPHI demo inmate" in c.expect(b"> ")
    assert c.state()["status"] == "running"
    c.type(b"echo hello\n")
    c.expect(b"\nhello\r\n> ")
    pids = json.loads(c.must("ps", "--format", "json"))
    assert {c.pid, c.vmm()} <= set(pids)
    assert str(c.vmm()) in c.must("ps")
    c.must("pause")
    assert c.state()["status"] == "paused"
    assert c.refused("pause").startswith("container not running")
    assert c.refused("start") == "cannot start a container in the paused state"
    c.must("resume")
    assert c.refused("resume") == "container not paused"
    c.type(b"exit 3\n")
    assert c.wait() == 3
    c.rest()
    state = c.state()
    assert (state["status"], state["pid"]) == ("stopped", 0)
    assert state["annotations"]["org.runphi.exit-code"] == "3"
    assert [event["event"] for event in place.events("c1")] == ["create", "start", "pause", "resume", "exit"]
    assert [event["seq"] for event in place.events("c1")] == [1, 2, 3, 4, 5]
    c.must("delete")
    assert "container does not exist" in c.refused("state")
    assert not (place.root / "c1").exists()


def test_refusals_in_the_words_engines_match_on(place: Place, backend: str) -> None:
    c = place.running("c1", backend=backend)
    assert c.refused("start") == "cannot start an already running container"
    assert c.refused("delete") == "cannot delete container c1 that is not stopped: running"
    twice = Container(place, "c1", place.root)
    twice.create(place.path / "bundles" / "c1", ())
    assert (twice.created, twice.error) == (1, "container with given ID already exists\n")
    assert c.state()["status"] == "running"  # the refused create hurt nobody
    place.must("kill", "c1", "9")
    assert c.wait() == 137
    assert place.refused("kill", "c1", "9") == "container not running"
    place.must("kill", "--all", "c1", "9")
    assert c.refused("start") == "cannot start a container that has stopped"
    assert c.refused("pause") == "container not running"
    c.must("delete")
    c.must("delete", "--force")
    twice.close()


def test_delete_of_a_created_container_ends_its_init(place: Place, backend: str) -> None:
    c = place.create("c1", backend=backend)
    c.must("delete")
    assert c.wait() == 137


def test_force_delete_of_a_running_one(place: Place, backend: str) -> None:
    c = place.running("c1", backend=backend)
    c.must("delete", "--force")
    assert c.wait() == 137


def test_signals(place: Place) -> None:
    c = place.running("c1")
    for number in ("0", "1", "10", "28", "WINCH", "SIGUSR1"):
        place.must("kill", "c1", number)
    place.must("kill", "c1", "STOP")
    assert c.state()["status"] == "paused"
    place.must("kill", "c1", "18")
    assert c.state()["status"] == "running"
    c.type(b"echo alive\n")
    c.expect(b"\nalive\r\n")
    place.must("kill", "c1", "15")
    assert c.wait() == 143
    assert "killed by signal 15" in c.state()["annotations"]["org.runphi.exit-reason"]


def test_a_guest_that_can_stop_by_itself(place: Place) -> None:
    c = place.running("c1", backend="fake")
    place.must("kill", "c1", "TERM")
    assert c.wait() == 0
    assert c.rest().endswith(b"stopping\r\n")


def test_a_guest_that_does_not_stop_is_destroyed_in_time(inmates_built: Path) -> None:
    place = Place(inmates_built, "[fake]\nstop_seconds = 0.2\n")
    c = place.running("c1", backend="fake")
    c.type(b"hang\n")
    c.expect(b"hanging\r\n")
    place.must("kill", "c1", "TERM")
    place.must("kill", "c1", "TERM")
    assert c.wait() == 143
    assert place.call("version").returncode == 0
    assert place.close() == []


@pytest.mark.parametrize(("typed", "code"), [("exit 0", 0), ("exit 255", 255), ("crash", 134), ("reset", 133)])
def test_exit_codes(place: Place, backend: str, typed: str, code: int) -> None:
    c = place.running("c1", backend=backend)
    c.type(typed.encode() + b"\n")
    assert c.wait() == code
    assert c.state()["annotations"]["org.runphi.exit-code"] == str(code)


def test_the_last_bytes_come_before_the_exit(place: Place, backend: str) -> None:
    c = place.running("c1", backend=backend)
    c.type(b"spam 100\nexit 4\n")
    assert c.wait() == 4  # nobody has read a byte of it yet
    assert re.findall(rb"line (\d+)", c.rest()) == [b"%07d" % n for n in range(1, 101)]


def test_ids_as_engines_make_them(place: Place) -> None:
    names = ["0123456789abcdef" * 4, "x" * 200, ".hidden", "a_b-c.d+e,f", "supervisor.sock"]
    containers = [place.create(name, backend="fake", group=f"g{i}") for i, name in enumerate(names)]
    assert [c.created for c in containers] == [0] * len(names), [c.error for c in containers]
    place.kill_supervisor()
    for c in containers:
        assert c.state()["status"] == "created"
        c.must("start")
        c.expect(b"> ")
    listed = json.loads(place.must("list", "--format", "json"))
    assert sorted(row["id"] for row in listed) == sorted(names)
    bad = place.create("../evil", made=place.path / "bundles" / ".hidden")
    assert (bad.created, "invalid container id" in bad.error) == (1, True)


def test_a_200_character_id_with_a_real_guest(place: Place) -> None:
    c = place.running("x" * 200)
    c.type(b"exit 1\n")
    assert c.wait() == 1


def test_the_same_id_in_two_roots(place: Place) -> None:
    other = place.path / "root2"
    one = place.create("c1", backend="fake")
    two = place.create("c1", backend="fake", root=other, group="two")
    assert (one.record.name, two.record.name) == ("c1", "c1@2")
    for c, text in ((one, b"one"), (two, b"two")):
        c.must("start")
        c.expect(b"> ")
        c.type(b"echo " + text + b"\n")
        c.expect(b"\n" + text + b"\r\n")
    rows = json.loads(
        subprocess.run([RUNPHI, "list", "--format", "json"], env=place.env, capture_output=True, check=True).stdout
    )
    assert [row["pid"] for row in rows if row["id"] == "c1"] == [one.pid, two.pid] or len(rows) == 2
    said = subprocess.run([RUNPHI, "attach", "c1"], env=place.env, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "ambiguous: c1 (" in said.stderr
    assert "c1@2 (" in said.stderr

    def logged() -> bool:
        done = subprocess.run([RUNPHI, "logs", "c1@2"], env=place.env, capture_output=True, check=True)
        return b"\ntwo\r\n" in done.stdout

    until(logged, "in the log, which is behind what its readers see")
    two.must("delete", "--force")
    assert one.state()["status"] == "running"


def test_the_same_id_in_two_roots_without_a_cgroups_path(place: Place) -> None:
    """Nobody said which cgroup: the two must not share one, or the end of one is the end of both."""
    other = place.path / "root2"
    one = place.create("c1", backend="fake", linux={"namespaces": []})
    two = place.create("c1", backend="fake", linux={"namespaces": []}, root=other)
    for c in (one, two):
        c.must("start")
        c.expect(b"> ")
    two.must("delete", "--force")
    one.type(b"echo alive\n")
    one.expect(b"\nalive\r\n")


def test_ten_at_once(place: Place) -> None:
    bundles = [place.bundle(f"c{n}") for n in range(10)]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        containers = list(pool.map(lambda n: place.create(f"c{n}", made=bundles[n]), range(10)))
        assert [c.error for c in containers] == [""] * 10
        assert len({c.pid for c in containers}) == 10
        list(pool.map(lambda c: c.must("start"), containers))
        list(pool.map(lambda c: c.expect(b"> "), containers))
        for n, c in enumerate(containers):
            c.type(b"exit %d\n" % n)
        assert list(pool.map(lambda c: c.wait(), containers)) == list(range(10))
        list(pool.map(lambda c: c.must("delete"), containers))


def test_one_id_wanted_by_ten_at_once(place: Place) -> None:
    bundle = place.bundle("c1", backend="fake")
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        containers = list(pool.map(lambda _: place.create("c1", made=bundle), range(10)))
    assert sorted(c.created for c in containers) == [0] + [1] * 9
    assert {c.error for c in containers} == {"", "container with given ID already exists\n"}


# Section: creates that fail


def nothing_left(place: Place, name: str) -> None:
    assert not os.path.lexists(place.root / name)
    assert [path.name for path in place.run_dir.iterdir() if path.is_dir()] == []
    until(lambda: not place.cgroups(), "the end of the cgroup")
    known = {place.pid(), int(Path(f"/proc/{place.pid()}/stat").read_text().rpartition(")")[2].split()[1])}
    until(lambda: set(place.processes()) <= known, "the end of the processes")


def hook(path: Path, script: str) -> dict[str, Any]:
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return {"path": str(path)}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"process": {"env": ["INMATE=/boot/missing"]}}, "cannot use '/boot/missing' of the image"),
        ({"process": {"env": ["INMATE=/boot"]}}, "not a regular file"),
        ({"annotations": {"org.runphi.backend": "nope"}}, "unknown backend 'nope'"),
        ({"annotations": {"org.runphi.bckend": "qemu"}}, "did you mean org.runphi.backend?"),
        ({"annotations": {"org.runphi.memory": "1K"}}, "1"),
        ({"terminal": True}, "cannot allocate tty"),
        ({"hooks": {"prestart": [{"path": "/nonexistent/hook"}]}}, "cannot run prestart hook"),
        ({"hooks": {"createRuntime": [{"path": "/bin/false"}]}}, "cannot finish createRuntime hook"),
    ],
    ids=lambda value: "" if isinstance(value, str) else json.dumps(value)[:50],
)
def test_a_create_that_fails_leaves_nothing(place: Place, what: dict[str, Any], message: str) -> None:
    began = time.monotonic()
    c = place.create("c1", **what)
    assert c.created == 1
    assert message in c.error
    assert c.error.count("\n") == 1
    nothing_left(place, "c1")
    assert time.monotonic() - began < 15
    assert c.rest() == b""


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"process":5}', b'{"root":{"path":3},"process":{}}', b"{}" * 1000],
    ids=repr,
)
def test_a_garbage_bundle(place: Place, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    c = place.create("c1", made=tmp_path)
    assert c.created == 1
    assert "config.json" in c.error
    assert "internal error" not in c.error
    nothing_left(place, "c1")


def test_a_missing_bundle_and_a_strange_one(place: Place) -> None:
    c = place.create("c1", made=place.path / "missing")
    assert (c.created, c.error.startswith("cannot read")) == (1, True)
    strange = Path(os.fsdecode(bytes(place.path) + b"/b\xff"))
    os.rename(place.bundle("strange", backend="fake"), strange)
    c = place.create("c2", made=strange)
    assert "internal error" not in c.error
    assert (c.created == 0) == (c.error == "")


def test_a_client_killed_during_create_leaves_nothing(place: Place) -> None:
    place.must("version")
    bundle = place.bundle("c1", hooks={"createRuntime": [hook(place.path / "slow", "sleep 0.5\n")]})
    for delay in (0.02, 0.05, 0.1, 0.2):
        child = subprocess.Popen(
            [RUNPHI, "--root", str(place.root), "create", "--bundle", str(bundle), "c1"],
            env=place.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(delay)  # the moment is the point
        child.kill()
        child.wait()
        place.call("delete", "--force", "c1")
        until(
            lambda: not os.path.lexists(place.root / "c1") or not place.call("delete", "--force", "c1").returncode,
            "delete",
        )
    until(lambda: place.call("state", "c1").returncode != 0, "nothing left of it")
    nothing_left(place, "c1")


def test_an_init_that_is_killed_at_once(place: Place) -> None:
    """Somebody kills the client's child between its fork and the supervisor's first look at it."""
    place.must("version")
    bundle = place.bundle("c1")
    words = ["--root", str(place.root), "create", "--bundle", str(bundle), "c1"]
    said = b""
    with socket.socket(socket.AF_UNIX) as client, open(os.devnull, "r+b") as null:
        client.settimeout(PATIENCE)
        client.connect(str(place.run_dir / "supervisor.sock"))
        request = wire.request(b"/", [], [os.fsencode(word) for word in words])
        socket.send_fds(client, [request], [null.fileno()] * 3)
        reader = Reader(client)
        while (frame := reader.frame())[0] != wire.EXIT:
            kind, payload = frame
            if kind == wire.SPAWN:
                child = subprocess.Popen(["/bin/true"])
                child.wait()
                client.sendall(wire.frame(wire.PID, b"%d" % child.pid))
            else:
                said += payload
    assert said == b"cannot create the container: its init process was killed before it began\n"
    assert "does not exist" in place.refused("state", "c1")
    nothing_left(place, "c1")


def test_a_start_that_fails_ends_the_init(place: Place) -> None:
    c = place.create("c1", backend="fake", annotations={"org.runphi.cmdline": "fail-start"})
    assert "fake: cannot be started" in c.refused("start")
    assert c.wait() != 0
    assert c.state()["status"] == "stopped"
    c.must("delete")


# Section: hooks


def test_hooks_run_where_the_specification_says(place: Place) -> None:
    trace = place.path / "trace"
    order = ["prestart", "createRuntime", "poststart", "poststop"]
    hooks = {
        name: [hook(place.path / name, f'printf "{name} " >> {trace}; cat >> {trace}; echo >> {trace}\n')]
        for name in order
    }
    c = place.create("c1", backend="fake", hooks=hooks)
    assert c.created == 0, c.error

    def seen() -> list[tuple[str, dict[str, Any]]]:
        lines = [line.partition(" ") for line in trace.read_text().splitlines()]
        return [(name, json.loads(document)) for name, _, document in lines]

    assert [name for name, _ in seen()] == order[:2]
    for _, document in seen():
        assert (document["id"], document["pid"], document["status"]) == ("c1", c.pid, "creating")
        assert document["bundle"] == str(place.path / "bundles" / "c1")
        assert document["annotations"]["user.note"] == "kept"
    c.must("start")
    assert seen()[2][1]["status"] == "running"
    place.must("kill", "c1", "9")
    c.wait()
    c.must("delete")
    assert [name for name, _ in seen()] == order
    assert seen()[3][1]["status"] == "stopped"
    assert "pid" not in seen()[3][1]


def test_a_poststart_hook_that_fails_hurts_nobody(place: Place) -> None:
    c = place.create("c1", backend="fake", hooks={"poststart": [{"path": "/bin/false"}], "poststop": [{"path": "/x"}]})
    c.must("start")
    c.expect(b"> ")
    assert c.state()["status"] == "running"
    c.must("delete", "--force")


# Section: terminals


@pytest.fixture
def console_socket(place: Place) -> Iterator[tuple[str, Callable[[], int]]]:
    """An engine's console socket: its path, and what receives the master."""
    path = str(place.path / "pty.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        received: list[int] = []

        def receive() -> int:
            # Only now, after create has ended: as containerd's shim does.
            listener.settimeout(PATIENCE)
            sock, _ = listener.accept()
            with sock:
                data, fds, _, _ = socket.recv_fds(sock, 4096, 10)
                received.extend(fds)
                assert 0 < len(data) < 4096
                assert sock.recv(1) == b""
            assert len(fds) == 1
            return fds[0]

        yield path, receive
        for fd in received:
            os.close(fd)


def read_terminal(master: int, text: bytes) -> bytes:
    import select

    seen, deadline = b"", time.monotonic() + PATIENCE
    while text not in seen:
        assert select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0], seen[-200:]
        seen += os.read(master, 65536)
    return seen


def test_a_terminal(place: Place, console_socket: tuple[str, Callable[[], int]], backend: str) -> None:
    path, receive = console_socket
    c = place.create(
        "c1", "--console-socket", path, backend=backend, terminal=True,
        process={"consoleSize": {"height": 31, "width": 99}},
    )  # fmt: skip
    assert c.created == 0, c.error
    assert c.rest() == b""  # nobody keeps the pipes of create
    master = receive()
    assert terminal.get_size(master) == (31, 99)
    c.must("start")
    read_terminal(master, b"> ")
    os.write(master, b"echo x\n")
    shown = read_terminal(master, b"> ")
    assert shown.count(b"echo x") == 1  # the guest's echo, and no other
    assert b"\r\r\n" not in shown
    place.kill_supervisor()
    os.write(master, b"echo y\n")
    read_terminal(master, b"\ny\r\n")
    place.must("kill", "c1", "28")
    os.write(master, b"exit 3\n")
    assert c.wait() == 3
    assert c.state()["status"] == "stopped"


def test_a_terminal_that_hangs_up(place: Place, console_socket: tuple[str, Callable[[], int]]) -> None:
    path, receive = console_socket
    c = place.create("c1", "--console-socket", path, backend="fake", terminal=True)
    master = receive()
    c.must("start")
    read_terminal(master, b"> ")
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, master)
    os.close(null)
    assert c.state()["status"] == "running"
    place.kill_supervisor()
    assert c.state()["status"] == "running"
    place.must("kill", "c1", "9")
    assert c.wait() == 137


def test_a_console_socket_nobody_listens_on(place: Place) -> None:
    c = place.create("c1", "--console-socket", str(place.path / "missing.sock"), backend="fake", terminal=True)
    assert c.created == 1
    assert "cannot send the terminal to" in c.error
    nothing_left(place, "c1")


# Section: the other verbs


def test_run(place: Place, backend: str) -> None:
    bundle = place.bundle("c1", backend=backend)
    done = subprocess.run(
        [RUNPHI, "--root", str(place.root), "run", "--bundle", str(bundle), "c1"],
        env=place.env, input=b"echo hi\nexit 9\n", capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (9, b"")
    assert b"\nhi\r\n" in done.stdout
    nothing_left(place, "c1")


def test_run_whose_client_is_killed(place: Place) -> None:
    bundle = place.bundle("c1", backend="fake")
    child = subprocess.Popen(
        [RUNPHI, "--root", str(place.root), "run", "--bundle", str(bundle), "c1"],
        env=place.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    assert b"demo inmate" in child.stdout.readline()
    child.kill()
    child.communicate()
    until(lambda: place.call("state", "c1").returncode, "the end of the container")
    until(lambda: not [path for path in place.run_dir.iterdir() if path.is_dir()], "the end of its record")


def test_attach_logs_and_events_end_with_the_container(place: Place, backend: str) -> None:
    c = place.running("c1", backend=backend)

    def follow(*words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [RUNPHI, "--root", str(place.root), *words, "c1"],
            env=place.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    attach, logs, events = follow("attach", "--no-stdin"), follow("logs", "-f"), follow("events")
    assert attach.stdout is not None
    assert b"demo inmate" in attach.stdout.readline()
    c.type(b"spam 3000\nexit 7\n")
    assert c.wait() == 7
    out, err = attach.communicate(timeout=PATIENCE)
    assert (attach.returncode, err) == (7, b"")
    assert out.count(b"line ") + out.count(b"spam") >= 3000 or b"bytes skipped" in out
    out, err = logs.communicate(timeout=PATIENCE)
    assert (logs.returncode, err) == (0, b"")
    assert out == c.console_log()
    c.must("delete")
    out, err = events.communicate(timeout=PATIENCE)
    assert (events.returncode, err) == (0, b"")
    kinds = [json.loads(line)["event"] for line in out.splitlines()]
    assert [kind for kind in kinds if kind not in ("attach", "detach")] == ["create", "start", "exit"]


def test_logs(place: Place) -> None:
    c = place.running("c1", backend="fake")
    c.type(b"spam 10\n")
    c.expect(b"line 0000010\r\n> ")
    until(lambda: c.console_log().endswith(b"> "), "the log")
    assert place.must("logs", "--tail", "3", "c1").splitlines() == ["line 0000009", "line 0000010", "> "]
    assert place.must("logs", "-n", "0", "c1") == ""
    assert place.must("logs", "--since", "1h", "c1") == c.console_log().decode().replace("\r\n", "\n")
    assert place.must("logs", "--since", "2099-01-01T00:00:00Z", "c1") == ""
    assert "wants a duration" in place.refused("logs", "--since", "soon", "c1")
    assert "wants a number" in place.refused("logs", "--tail", "x", "c1")


def test_update(place: Place) -> None:
    c = place.running("c1", backend="fake")
    resources = json.dumps({"cpu": {"shares": 512, "quota": 50_000, "period": 100_000}})
    with (place.path / "resources").open("w+") as file:
        file.write(resources)
        file.seek(0)
        place.must("update", "--resources", "-", "c1", stdin=file)
    found = list(Path("/sys/fs/cgroup").glob(f"*{place.cgroup}/c1/cpu.shares"))
    if found:
        assert found[0].read_text() == "512\n"
    assert "not supported by this guest" in place.refused("update", "--memory", str(1 << 30), "c1")
    assert c.state()["status"] == "running"
    (place.path / "bad").write_text("{")
    assert place.refused("update", "-r", str(place.path / "bad"), "c1")


def test_stats_features_spec(place: Place, tmp_path: Path) -> None:
    place.running("c1")
    stats = json.loads(place.must("events", "--stats", "c1"))
    assert stats["data"]["console"]["received"] > 10
    assert json.loads(place.must("features"))["ociVersionMin"]
    place.must("spec", "--bundle", str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["root"]["path"] == "rootfs"
    assert "it exists already" in place.refused("spec", "--bundle", str(tmp_path))
    assert place.refused("exec", "c1", "ls").startswith("cannot run a further process")
    assert place.refused("checkpoint", "c1").startswith("cannot checkpoint")
