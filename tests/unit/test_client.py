# SPDX-License-Identifier: Apache-2.0
"""The thin client as a process: what it loads, what it hands over, and what it becomes."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from runphi_async import wire
from tests.unit.clientkit import (
    PATIENCE,
    ROOT,
    RUNPHI,
    FakeSupervisor,
    Session,
    environment,
    run,
    run_directory,
    supervisors,
)

run_dir = pytest.fixture(run_directory)
supervisor = pytest.fixture(supervisors)


def own(run_dir: Path, root: Path, name: str) -> None:
    """Make ``name`` of ``root`` a container of ours."""
    root.mkdir(exist_ok=True)
    (root / name).symlink_to(run_dir / name)


# Section: asking and answering


def test_argv_cwd_and_environment_arrive(supervisor: FakeSupervisor, run_dir: Path, tmp_path: Path) -> None:
    seen = []

    def script(session: Session) -> None:
        seen.append((session.argv, session.cwd, session.env))
        session.send(wire.OUT, b"out")
        session.send(wire.ERR, b"err")
        session.exit(3)

    supervisor.scripts.append(script)
    words: list[str | bytes] = ["--root=/x", "create", "--bundle", "a b", "", b"\xff\xfe", "ü", "id"]
    env = {**environment(run_dir), "XDG_RUNTIME_DIR": "/x", "SECRET": "s", "TERM": "a=b"}
    done = run(run_dir, *words, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out", b"err")
    argv, cwd, told = seen[0]
    assert argv == [os.fsencode(word) for word in words]
    assert cwd == os.fsencode(tmp_path)
    assert sorted(told) == [b"TERM=a=b", b"XDG_RUNTIME_DIR=/x"]


def test_the_three_descriptors_are_the_callers(supervisor: FakeSupervisor, run_dir: Path, tmp_path: Path) -> None:
    def script(session: Session) -> None:
        os.write(session.fds[1], os.read(session.fds[0], 100).upper())
        os.write(session.fds[2], b"two")
        session.exit()

    supervisor.scripts.append(script)
    done = run(run_dir, "list", stdin=None, input=b"hello")
    assert (done.stdout, done.stderr) == (b"HELLO", b"two")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_become_dev_null(supervisor: FakeSupervisor, run_dir: Path, closed: str) -> None:
    kinds: list[str] = []

    def script(session: Session) -> None:
        kinds.extend(os.readlink(f"/proc/self/fd/{fd}") for fd in session.fds)
        session.exit(0)

    supervisor.scripts.append(script)
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$0" list {closed}', RUNPHI], env=environment(run_dir), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert kinds == ["/dev/null"] * 3


def test_a_supervisor_that_goes_away_is_asked_again_where_that_is_safe(
    supervisor: FakeSupervisor, run_dir: Path
) -> None:
    supervisor.scripts += [lambda session: None, lambda session: session.exit(5)]
    assert run(run_dir, "list").returncode == 5
    supervisor.scripts.append(lambda session: None)
    done = run(run_dir, "create", "c1")
    assert done.returncode == 1
    assert b"supervisor ended or fell silent" in done.stderr


@pytest.mark.parametrize("garbage", [b"?\0\0\0\0", b"x\0\0", b"o\xff\xff\xff\xff"], ids=repr)
def test_an_answer_that_makes_no_sense_is_an_error(supervisor: FakeSupervisor, run_dir: Path, garbage: bytes) -> None:
    supervisor.scripts.append(lambda session: session.sock.sendall(garbage))
    done = run(run_dir, "create", "c1")
    assert done.returncode == 1
    assert done.stderr.startswith(b"runphi: ")
    assert b"Traceback" not in done.stderr


def test_a_reader_that_left_ends_it_quietly(supervisor: FakeSupervisor, run_dir: Path) -> None:
    def script(session: Session) -> None:
        for _ in range(50):
            session.send(wire.OUT, b"x" * 10_000)
        session.exit()

    supervisor.scripts.append(script)
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" list | head -c 1', RUNPHI], env={**os.environ, **environment(run_dir)},
        capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"x", b"")


@pytest.mark.parametrize("form", ["{}", "{}/", "{}//", "{}/."])
def test_the_run_directory_in_other_words(supervisor: FakeSupervisor, run_dir: Path, tmp_path: Path, form: str) -> None:
    own(run_dir, tmp_path / "root", "c1")
    (run_dir / "runc").symlink_to("/bin/false")
    supervisor.scripts.append(lambda session: session.exit(4))
    env = {"RUNPHI_RUN_DIR": form.format(run_dir)}
    assert run(run_dir, "--root", str(tmp_path / "root"), "state", "c1", env=env).returncode == 4


def test_a_relative_run_directory(supervisor: FakeSupervisor, run_dir: Path) -> None:
    supervisor.scripts.append(lambda session: session.exit(4))
    assert run(run_dir, "list", env={"RUNPHI_RUN_DIR": "run"}, cwd=run_dir.parent).returncode == 4


def test_a_long_run_directory(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 120)
    long.mkdir()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dir_fd = os.open(long, os.O_RDONLY)
    listener.bind(f"/proc/self/fd/{dir_fd}/{wire.SOCKET}")
    listener.listen(1)
    child = subprocess.Popen([RUNPHI, "list"], env=environment(long), stderr=subprocess.PIPE)
    sock, _ = listener.accept()
    session = Session(sock)
    session.exit(6)
    session.close()
    assert child.communicate(timeout=PATIENCE)[1] == b""
    assert child.returncode == 6
    listener.close()
    os.close(dir_fd)


# Section: what it loads

LOADED = f"""
import sys
sys.argv = {{argv!r}}
__file__ = {RUNPHI!r}
import posix
out = posix.dup(1)
def end(*_):
    posix.write(out, ("\\n@" + ",".join(sorted(sys.modules))).encode())
    leave(0)
leave, posix._exit = posix._exit, end
posix.execve = end
exec(compile(open({RUNPHI!r}).read(), {RUNPHI!r}, "exec"))
"""


def loaded(run_dir: Path, *words: str) -> set[str]:
    code = LOADED.format(argv=["runphi", *words])
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", code], env=environment(run_dir), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert "@" in done.stdout, done.stderr
    modules = set(done.stdout.rpartition("@")[2].split(","))
    bare = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", "import sys; print(','.join(sys.modules), *sys.builtin_module_names)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return modules - set(bare.stdout.replace(",", " ").split())


CLIENT = {"runphi_async", "runphi_async.client", "runphi_async.client.connection", "runphi_async.wire"}


@pytest.mark.parametrize("verb", ["create", "list", "features", "version", "run"])
def test_verbs_load_nothing_but_built_in_modules(supervisor: FakeSupervisor, run_dir: Path, verb: str) -> None:
    supervisor.scripts.append(lambda session: session.exit())
    assert loaded(run_dir, verb, "c1") == CLIENT


@pytest.mark.parametrize("verb", ["start", "state", "kill", "delete", "ps", "pause", "resume", "update", "exec"])
def test_verbs_on_a_container_of_ours(supervisor: FakeSupervisor, run_dir: Path, tmp_path: Path, verb: str) -> None:
    own(run_dir, tmp_path / "root", "c1")
    (run_dir / "runc").symlink_to("/bin/false")
    supervisor.scripts.append(lambda session: session.exit())
    assert loaded(run_dir, "--root", str(tmp_path / "root"), verb, "c1") == CLIENT


def test_becoming_runc_loads_nothing(run_dir: Path) -> None:
    (run_dir / "runc").symlink_to("/bin/true")
    assert loaded(run_dir, "start", "c1") == CLIENT


def test_a_console_loads_its_module_only(supervisor: FakeSupervisor, run_dir: Path) -> None:
    def script(session: Session) -> None:
        session.send(wire.ATTACH, b"\0")
        session.exit()

    supervisor.scripts.append(script)
    assert loaded(run_dir, "attach", "c1") <= CLIENT | {
        "runphi_async.client.attach",
        "runphi_async.client.keys",
        "runphi_async.wire.console",
        "termios",
    }


def test_a_client_of_the_layout_without_rooms_starts_the_next_supervisor() -> None:
    """An upgrade left it running: it holds a module where there is a package now, and looks for another one."""
    code = (
        "import sys, types; import runphi_async.wire; old = types.ModuleType('runphi_async.client');"
        "sys.modules[old.__name__] = runphi_async.client = old;"
        "from runphi_async import client_start; print(client_start.start(b'/dev/null/x', '/nonexistent'))"
    )
    done = subprocess.run(["/usr/bin/python3", "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (
        done.stdout == "no Python environment at /nonexistent/.venv; run /nonexistent/bin/configure -a once as root\n"
    )


#: What the client of the layout with rooms brought along: its words of the wire and of the connection.
BROUGHT = {
    "wire": {
        "MAGIC", "SOCKET", "OUT", "ERR", "EXIT", "RUNC", "SPAWN", "GO", "ATTACH", "CONSOLE_AT", "CONSOLE", "SKIPPED",
        "NOTICE", "PAINT", "ROLE", "PID", "INPUT", "RESIZE", "INPUT_EOF", "DETACH", "ASK", "SIGNAL", "ENVIRONMENT",
        "frame", "pack", "unpack", "request",
    },
    "connection": {
        "PATIENCE", "TRIES", "Lost", "Link", "fail", "restore_signals", "connect", "request", "spawn_stub", "write_all",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["attach", "keys", "start"])
def test_what_is_loaded_late_needs_no_new_words(name: str) -> None:
    """An upgrade left a client running: it loads these modules of the new version beside its own old ones."""
    tree = ast.parse((ROOT / "runphi_async" / "client" / f"{name}.py").read_text())
    used: dict[str, set[str]] = {"wire": set(), "connection": set()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in used:
            used[node.value.id].add(node.attr)
        if isinstance(node, ast.ImportFrom):
            assert node.module not in ("runphi_async.wire", "runphi_async.client.connection")
    assert used["wire"] <= BROUGHT["wire"]
    assert used["connection"] <= BROUGHT["connection"]


# Section: becoming runc


@pytest.fixture
def runc(run_dir: Path, tmp_path: Path) -> Path:
    """A runc that writes down how it was called."""
    script = tmp_path / "fake-runc"
    script.write_text(
        "#!/bin/sh\n"
        f'for word in "$0" "$@"; do printf "%s\\0" "$word"; done > {tmp_path}/argv\n'
        f"cat /proc/$$/environ > {tmp_path}/environ\n"
        f"grep -E '^Sig(Ign|Blk)' /proc/$$/status > {tmp_path}/signals\n"
        f"ls /proc/$$/fd > {tmp_path}/fds\n"
        "echo from runc; exit 9\n"
    )
    script.chmod(0o755)
    (run_dir / "runc").symlink_to(script)
    return script


def ignored(text: str) -> set[int]:
    line = next(line for line in text.splitlines() if line.startswith("SigIgn"))
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def passed_on() -> set[int]:
    """Signals that whoever started the tests ignores (nohup does): they stay so, but for Python's own two."""
    return ignored(Path("/proc/self/status").read_text()) - {signal.SIGPIPE, signal.SIGXFSZ}


def test_runc_sees_exactly_what_the_engine_sent(run_dir: Path, runc: Path, tmp_path: Path) -> None:
    words: list[str | bytes] = [
        "--root",
        "/r",
        "--log=/l",
        "exec",
        "--process",
        "f",
        "-d",
        "id",
        "--",
        b"\xff",
        "",
        "a b",
    ]
    env = {**environment(run_dir), "A": "1", "LC_ALL": "C"}
    done = run(run_dir, *words, env=env)
    assert (done.returncode, done.stdout) == (9, b"from runc\n")
    seen = (tmp_path / "argv").read_bytes().split(b"\0")[:-1]
    assert seen[1:] == [os.fsencode(word) for word in words]
    assert b"A=1\0" in (tmp_path / "environ").read_bytes()


def test_runc_gets_ordinary_signals_and_no_descriptor_of_ours(run_dir: Path, runc: Path, tmp_path: Path) -> None:
    run(run_dir, "start", "x")
    assert ignored((tmp_path / "signals").read_text()) == passed_on()
    numbers = {int(word) for word in (tmp_path / "fds").read_text().split()}
    assert numbers <= {0, 1, 2, 10, 11}  # the shell's own among them


def test_the_supervisor_may_send_the_client_to_runc(
    supervisor: FakeSupervisor, run_dir: Path, runc: Path, tmp_path: Path
) -> None:
    supervisor.scripts.append(lambda session: session.send(wire.RUNC, os.fsencode(runc)))
    done = run(run_dir, "create", "--bundle=.", "x")
    assert done.returncode == 9
    assert (tmp_path / "argv").read_bytes().split(b"\0")[1:-1] == [b"create", b"--bundle=.", b"x"]
    assert ignored((tmp_path / "signals").read_text()) == passed_on()


def test_a_container_of_ours_does_not_go_to_runc(
    supervisor: FakeSupervisor, run_dir: Path, runc: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    own(run_dir, root, "c1")
    for words in (["--root", str(root)], [f"--root={root}"], ["--log", "l", f"--root={root}", "--debug"]):
        supervisor.scripts.append(lambda session: session.exit(2))
        assert run(run_dir, *words, "delete", "--force", "c1").returncode == 2
    assert run(run_dir, "--root", str(root), "delete", "other").returncode == 9
    assert run(run_dir, "delete", "c1").returncode == 9  # another root: another container


def test_a_runc_that_cannot_be_executed_is_said(supervisor: FakeSupervisor, run_dir: Path) -> None:
    supervisor.scripts.append(lambda session: session.send(wire.RUNC, b"/nonexistent/runc"))
    done = run(run_dir, "start", "c1")
    assert done.returncode == 1
    assert b"cannot run /nonexistent/runc" in done.stderr


@pytest.mark.parametrize("known", ["/nonexistent/runc", RUNPHI, "link"])
def test_a_runc_that_is_gone_or_has_become_ourselves_is_asked_for(
    supervisor: FakeSupervisor, run_dir: Path, runc: Path, tmp_path: Path, known: str
) -> None:
    (tmp_path / "link").symlink_to(RUNPHI)
    (run_dir / "runc").unlink()
    (run_dir / "runc").symlink_to(tmp_path / "link" if known == "link" else known)
    supervisor.scripts.append(lambda session: session.send(wire.RUNC, os.fsencode(runc)))
    done = run(run_dir, "start", "c1")
    assert (done.returncode, done.stdout) == (9, b"from runc\n")


# Section: the init stub


def test_the_stub_gets_exactly_its_descriptors(supervisor: FakeSupervisor, run_dir: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    files = []
    for number in range(11):
        path = tmp_path / f"file{number}"
        path.touch()
        files.append(os.open(path, os.O_RDWR))
    pids: list[int] = []

    def script(session: Session) -> None:
        # It waits, so that it can be looked at. Not a shell: one that reads has its descriptors moved meanwhile.
        program = os.path.realpath("/bin/sleep")
        argv = [os.fsencode(program), b"1000"]
        session.send(wire.SPAWN, wire.pack([os.fsencode(tmp_path), *argv]), files)
        kind, payload = session.frame()
        assert kind == wire.PID
        pids.append(int(payload))
        assert os.readlink(f"/proc/{payload.decode()}/exe") != program  # it waits for its word
        session.send(wire.GO)
        deadline = time.monotonic() + PATIENCE
        while os.readlink(f"/proc/{pids[0]}/exe") != program:
            assert time.monotonic() < deadline
        proc = f"/proc/{pids[0]}"
        links: dict[int, str] = {}
        environ = b""  # as long as the kernel is still laying out the new program's memory
        wanted = {number: f"{tmp_path}/file{number}" for number in range(11)}
        while (links != wanted or not environ) and time.monotonic() < deadline:
            environ = Path(f"{proc}/environ").read_bytes()
            with contextlib.suppress(FileNotFoundError):  # its loader opens and closes libraries at first
                links = {int(fd): os.readlink(f"{proc}/fd/{fd}") for fd in os.listdir(f"{proc}/fd")}
        report.write_text("\n".join(f"{fd} {link}" for fd, link in sorted(links.items())))
        (tmp_path / "status").write_text(Path(f"{proc}/status").read_text())
        (tmp_path / "stat").write_text(Path(f"{proc}/stat").read_text())
        (tmp_path / "environ").write_bytes(environ)
        (tmp_path / "cwd").symlink_to(os.readlink(f"{proc}/cwd"))
        os.kill(pids[0], signal.SIGKILL)
        session.exit(0)

    supervisor.scripts.append(script)
    leak = os.open("/dev/zero", os.O_RDONLY)  # engines leak descriptors into create
    os.set_inheritable(leak, True)
    done = run(run_dir, "create", "c1", pass_fds=[leak], cwd="/")
    os.close(leak)
    assert done.returncode == 0, done.stderr
    expected = [f"{n} {tmp_path}/file{n}" for n in range(11)]
    assert report.read_text().splitlines() == expected
    assert ignored((tmp_path / "status").read_text()) == passed_on()
    fields = (tmp_path / "stat").read_text().rpartition(")")[2].split()
    assert int(fields[3]) == pids[0]  # a session of its own
    assert (tmp_path / "environ").read_bytes() == b"PATH=/usr/sbin:/usr/bin:/sbin:/bin\0"
    assert os.readlink(tmp_path / "cwd") == str(tmp_path)
    for fd in files:
        os.close(fd)


def test_a_stub_without_its_word_ends(supervisor: FakeSupervisor, run_dir: Path, tmp_path: Path) -> None:
    pids: list[int] = []

    def script(session: Session) -> None:
        null = os.open("/dev/null", os.O_RDWR)
        session.send(wire.SPAWN, wire.pack([b"/", b"/bin/touch", os.fsencode(tmp_path / "ran")]), [null])
        os.close(null)
        pids.append(int(session.frame()[1]))

    supervisor.scripts.append(script)
    done = run(run_dir, "create", "c1")
    assert done.returncode == 1
    deadline = time.monotonic() + PATIENCE
    while os.path.exists(f"/proc/{pids[0]}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pids[0]}")
    assert not (tmp_path / "ran").exists()


def test_no_supervisor_and_none_can_be_started(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "runphi").write_bytes(Path(RUNPHI).read_bytes())
    (tmp_path / "bin" / "runphi").chmod(0o755)
    (tmp_path / "runphi_async").symlink_to(ROOT / "runphi_async")
    done = subprocess.run(
        [tmp_path / "bin" / "runphi", "list"], env={"RUNPHI_RUN_DIR": str(tmp_path / "run")}, capture_output=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"cannot start the supervisor: no Python environment at" in done.stderr
    assert b"configure -a once as root" in done.stderr
    (tmp_path / "bin" / "quickstart").touch()
    done = subprocess.run(
        [tmp_path / "bin" / "runphi", "list"], env={"RUNPHI_RUN_DIR": str(tmp_path / "run")}, capture_output=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert b"bin/quickstart once as root" in done.stderr


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file" / "run", "list")
    assert done.returncode == 1
    assert b"cannot use its directory" in done.stderr
    assert b"Traceback" not in done.stderr
