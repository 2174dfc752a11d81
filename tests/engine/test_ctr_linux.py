# SPDX-License-Identifier: Apache-2.0
"""Linux images: each scenario in a plain runc container, which proves the test, and in a guest of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.engine.harness import BUSYBOX, LINUX_GUEST, exit_code

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.harness import Engine, Runtime

STATIC = "runphi/static:latest"
USER = "runphi/user:latest"
LARGE = "runphi/large:latest"
#: a guest boots its kernel in software emulation; a busy machine needs a while for that
pytestmark = pytest.mark.timeout(120)

LINES = 20_000


def shell(engine: Engine, linux: Runtime, script: str, image: str = BUSYBOX, **more: str) -> tuple[int, list[str]]:
    """Runs a script without a terminal; returns its exit code and lines."""
    words = engine.run_args(
        image, engine.name(), "/bin/sh", "-c", script, runtime=linux.binary, env={**linux.env, **more}
    )
    done = engine.ctr(*words)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("code", [0, 7, 255])
def test_output_and_exit_code(engine: Engine, linux: Runtime, code: int) -> None:
    assert shell(engine, linux, f"echo hi; exit {code}") == (code, ["hi"])


def test_death_by_signal(engine: Engine, linux: Runtime) -> None:
    # pid 1 of a container is deaf to its own signals, so a child sends itself one
    assert shell(engine, linux, "exec 2>/dev/null; sh -c 'kill -9 $$'; exit $?") == (137, [])


def test_arguments_keep_their_bytes(engine: Engine, linux: Runtime) -> None:
    odd = ["", "two words", "quote ' and \"", "$HOME `id` \\", "ünï", "line\nbreak", "*"]
    script = 'printf "<%s>" "$@"'
    words = engine.run_args(
        BUSYBOX, engine.name(), "/bin/sh", "-c", script, "sh", *odd, runtime=linux.binary, env=linux.env
    )
    assert engine.ctr(*words).stdout == "".join(f"<{word}>" for word in odd)


def test_environment(engine: Engine, linux: Runtime) -> None:
    code, lines = shell(engine, linux, 'echo "$FOO"; echo "$PATH"', FOO="a b=c")
    assert (code, lines[0]) == (0, "a b=c")
    assert lines[1].startswith("/usr/local/sbin:")


def test_user_and_directory_of_the_image(engine: Engine, linux: Runtime) -> None:
    script = "id -u; id -g; pwd; touch /etc/x 2>/dev/null || echo refused"
    assert shell(engine, linux, script, USER) == (0, ["1000", "1000", "/home/user", "refused"])


def test_working_directory(engine: Engine, linux: Runtime) -> None:
    words = engine.run_args(
        BUSYBOX, engine.name(), "/bin/pwd", runtime=linux.binary, env=linux.env, options=("--cwd", "/tmp")
    )
    assert engine.ctr(*words).stdout == "/tmp\n"


def test_files_can_be_written_and_deleted(engine: Engine, linux: Runtime) -> None:
    script = "echo x > /tmp/f && chmod 640 /tmp/f && stat -c '%a %s' /tmp/f && rm /tmp/f && rm /bin/vi && ls /tmp"
    assert shell(engine, linux, script) == (0, ["640 2"])


def test_read_only_root(engine: Engine, linux: Runtime) -> None:
    words = engine.run_args(
        BUSYBOX,
        engine.name(),
        "/bin/touch",
        "/f",
        runtime=linux.binary,
        env=linux.env,
        options=("--read-only",),
    )
    done = engine.ctr(*words)
    assert done.returncode == 1
    assert "Read-only file system" in done.stdout + done.stderr


def test_host_name_and_absolute_root_from_a_specification(
    engine: Engine, linux: Runtime, images: list[Path], tmp_path: Path
) -> None:
    rootfs = tmp_path / "rootfs"
    unpack(next(path for path in images if path.stem == "busybox"), rootfs)
    name = engine.name()
    spec = json.loads(engine.must("oci", "spec"))
    spec["root"] = {"path": str(rootfs)}
    spec["hostname"] = "partition-7"
    spec["process"]["args"] = ["/bin/hostname"]
    spec["process"].setdefault("env", []).extend(f"{key}={value}" for key, value in linux.env.items())
    spec["linux"]["cgroupsPath"] = f"/{engine.namespace}/{name}"
    path = tmp_path / "config.json"
    path.write_text(json.dumps(spec))
    done = engine.ctr("run", "--rm", "--runc-binary", str(linux.binary), "--config", str(path), name)
    assert (done.returncode, done.stdout) == (0, "partition-7\n")


def unpack(archive: Path, target: Path) -> None:
    """Unpacks the first image of an OCI archive."""
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        def blob(entry: dict[str, str]) -> bytes:
            return read("blobs/" + entry["digest"].replace(":", "/"))

        manifest = json.loads(blob(json.loads(read("index.json"))["manifests"][0]))
        target.mkdir()
        for layer in manifest["layers"]:
            subprocess.run(["tar", "-x", "-C", target], input=blob(layer), check=True)


def test_no_output_is_lost_or_changed_on_a_pipe(engine: Engine, linux: Runtime) -> None:
    words = engine.run_args(BUSYBOX, engine.name(), "/bin/seq", "1", str(LINES), runtime=linux.binary, env=linux.env)
    child = engine.pipe(*words)
    assert child.finish() == 0
    wanted = "".join(f"{x}\n" for x in range(1, LINES + 1)).encode()
    assert hashlib.sha256(child.seen).digest() == hashlib.sha256(wanted).digest()


def test_stdin_and_its_end_reach_the_process(engine: Engine, linux: Runtime) -> None:
    words = engine.run_args(BUSYBOX, engine.name(), "/bin/cat", runtime=linux.binary, env=linux.env)
    child = engine.pipe(*words)
    data = bytes(range(256)) * 64
    child.send(data)
    # ctr forwards the end of its stdin only once the task runs, so wait for the echo first
    child.expect(b"\xff$")
    while len(child.seen) < len(data):
        child.expect(b"(?s).{%d}" % (len(child.seen) + 1))
    child.end_input()
    assert child.finish() == 0
    assert child.seen == data


def test_no_terminal_without_t(engine: Engine, linux: Runtime) -> None:
    assert shell(engine, linux, "test -t 0 || test -t 1 || echo no terminal") == (0, ["no terminal"])


def test_shell_on_a_terminal(engine: Engine, linux: Runtime) -> None:
    words = engine.run_args(BUSYBOX, engine.name(), "/bin/sh", runtime=linux.binary, tty=True, env=linux.env)
    child = engine.spawn(*words, size=(31, 99))
    child.expect(b"# ")
    child.send(b"echo $((6*7)); tty >/dev/null && echo is a tty\r")
    child.expect(rb"\n42\r+\nis a tty\r+\n")
    # the word comes from the foreground process: before it runs, ctrl-c would go to the shell, which ignores it
    child.send(b"sh -c 'echo sleeping; exec sleep 1000'; echo slept\r")
    child.expect(rb"\nsleeping\r+\n")
    child.send(b"\x03")
    # the shell may throw away what is typed before it shows its prompt again
    child.expect(b"# ")
    child.send(b"echo awake\r")
    child.expect(rb"\nawake\r+\n")
    child.send(b"exit 12\r")
    assert exit_code(child) == 12


def test_terminal_size_follows(engine: Engine, linux: Runtime) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; stty size; done"
    words = engine.run_args(
        BUSYBOX, engine.name(), "/bin/sh", "-c", script, runtime=linux.binary, tty=True, env=linux.env
    )
    child = engine.spawn(*words, size=(31, 99))
    child.expect(rb"31 99\r+\n")
    child.setwinsize(40, 120)
    child.expect(rb"40 120\r+\n")


@pytest.mark.parametrize(("name_of_signal", "code"), [("TERM", 9), ("USR1", 10), ("KILL", 137)])
def test_signals_reach_the_process(engine: Engine, linux: Runtime, name_of_signal: str, code: int) -> None:
    script = "trap 'exit 9' TERM; trap 'exit 10' USR1; echo ready; while :; do sleep 0.1; done"
    name = engine.name()
    words = engine.run_args(BUSYBOX, name, "/bin/sh", "-c", script, runtime=linux.binary, env=linux.env)
    child = engine.pipe(*words)
    child.expect(b"ready\n")
    engine.must("tasks", "kill", "-s", name_of_signal, name)
    assert child.finish() == code


def test_image_without_a_shell(engine: Engine, linux: Runtime) -> None:
    words = engine.run_args(STATIC, engine.name(), "/hello", "9", runtime=linux.binary, env=linux.env)
    done = engine.ctr(*words)
    assert (done.returncode, done.stdout) == (9, "hello from a static program (1 arguments)\n")


def test_large_image_with_little_memory(engine: Engine, linux: Runtime) -> None:
    script = "head -n 5 /data/MD5SUMS | md5sum -c -s && ls /data | wc -l"
    words = engine.run_args(
        LARGE,
        engine.name(),
        "/bin/sh",
        "-c",
        script,
        runtime=linux.binary,
        env=linux.env,
        options=("--memory-limit", str(128 << 20)),
    )
    done = engine.ctr(*words)
    assert (done.returncode, done.stdout.split()) == (0, ["51"])


def test_missing_program_is_an_error(engine: Engine, linux: Runtime) -> None:
    words = engine.run_args(BUSYBOX, engine.name(), "/bin/missing", runtime=linux.binary, env=linux.env)
    done = engine.ctr(*words)
    assert done.returncode != 0
    assert "missing" in done.stdout + done.stderr


@pytest.mark.qemu
def test_guest_has_a_kernel_of_its_own(engine: Engine) -> None:
    code, lines = shell(engine, LINUX_GUEST, "uname -r; grep -c . /proc/mounts >/dev/null && echo proc")
    assert code == 0
    assert lines[0] != os.uname().release
    assert lines[1] == "proc"


@pytest.mark.qemu
def test_memory_limit_is_the_guests_memory(engine: Engine) -> None:
    words = engine.run_args(
        BUSYBOX,
        engine.name(),
        "/bin/sh",
        "-c",
        "head -n 1 /proc/meminfo",
        env=LINUX_GUEST.env,
        options=("--memory-limit", str(192 << 20)),
    )
    kilobytes = int(engine.ctr(*words).stdout.split()[1])
    assert 128 << 10 < kilobytes <= 192 << 10
