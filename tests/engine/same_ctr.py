# SPDX-License-Identifier: Apache-2.0
"""What is played with both runtimes under containerd: one function a scenario."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from runphi_async.testing.containerd import wait_until
from tests.engine.harness import ANSWER
from tests.engine.same import NAME, SURROUNDINGS, kernel_limits

if TYPE_CHECKING:
    from tests.engine.same import CtrSide


def output_and_exit_code(side: CtrSide) -> None:
    side.run("/bin/sh", "-c", "echo out; echo err >&2; exit 21")


def surroundings_of_a_process(side: CtrSide) -> None:
    side.run("/bin/sh", "-c", SURROUNDINGS, options=["--env", "A=b c"])


def surroundings_with_options(side: CtrSide) -> None:
    options = [
        "--user",
        "1000:1000",
        "--cwd",
        "/tmp",
        "--read-only",
        "--net-host",
        "--no-pivot",
        "--cap-add",
        "CAP_NET_RAW",
    ]
    side.run("/bin/sh", "-c", SURROUNDINGS, options=options)


def surroundings_of_the_privileged(side: CtrSide) -> None:
    side.run("/bin/sh", "-c", SURROUNDINGS, options=["--privileged", "--seccomp"])


def terminal(side: CtrSide) -> None:
    child = side.engine.spawn(*side.args("/bin/sh", options=["--env", "PS1=# "], tty=True), size=(31, 99))
    side.typed(
        child,
        # the size comes a moment after the start
        (b"while [ \"$(stty size)\" != '31 99' ]; do :; done; stty size; tty", rb"\n31 99\r+\n/dev/pts/\d+\r+\n"),
        (b"echo $TERM-$((6*7))", rb"\n\w*-42\r+\n"),
        (b"exit 13", rb"exit 13\r+\n"),
    )


def background(side: CtrSide) -> None:
    side.start()
    pid, status = side.engine.tasks()[NAME]
    side.note("status", status)
    side.note("limits", kernel_limits(pid))
    side.note("processes", len(side.engine.must("tasks", "ps", NAME).splitlines()))
    side.task("delete", NAME)
    side.task("kill", "-s", "KILL", NAME)
    side.settle("STOPPED")
    side.task("delete", NAME)


def exec_in_a_running_one(side: CtrSide) -> None:
    side.start()
    side.task("exec", "--exec-id", "e1", NAME, "/bin/sh", "-c", "echo inside; echo err >&2; exit 6")
    side.task("exec", "--exec-id", "e2", "--user", "1000", "--cwd", "/tmp", NAME, "/bin/sh", "-c", "id; pwd")
    side.task("exec", "--exec-id", "e3", NAME, "/bin/missing")
    side.task("exec", "--exec-id", "e4", "--cwd", "/nowhere", NAME, "/bin/true")
    side.task("exec", "--exec-id", "e5", NAME, "/bin/sh", "-c", "kill -9 $$")
    side.task("exec", "--exec-id", "e6", NAME, "/bin/sh", "-c", SURROUNDINGS)
    child = side.engine.spawn("tasks", "exec", "--exec-id", "e7", "-t", NAME, "/bin/sh")
    side.typed(child, (b"tty; echo $((6*7))", rb"\n/dev/pts/\d+\r+\n42\r+\n"), (b"exit 4", rb"exit 4\r+\n"))


def pause_and_resume(side: CtrSide) -> None:
    side.start()
    side.task("pause", NAME)
    side.settle("PAUSED")
    side.task("exec", "--exec-id", "e1", NAME, "/bin/true")
    side.task("pause", NAME)
    side.task("resume", NAME)
    side.settle("RUNNING")
    side.task("resume", NAME)
    side.task("exec", "--exec-id", "e2", NAME, "/bin/true")


def signals_reach_the_process(side: CtrSide) -> None:
    side.start(
        "/bin/sh", "-c", "trap 'echo >/usr1' USR1; trap 'exit 9' TERM; echo >/ready; while :; do sleep 0.1; done"
    )

    def written(name: str) -> bool:
        done = side.engine.ctr("tasks", "exec", "--exec-id", "look", NAME, "test", "-e", name)
        return done.returncode == 0

    wait_until(lambda: written("/ready"), ANSWER, "the traps")
    side.task("kill", "-s", "WINCH", NAME)
    side.task("kill", "-s", "USR1", NAME)
    wait_until(lambda: written("/usr1"), ANSWER, "the trap")
    side.task("kill", "-s", "TERM", NAME)
    side.settle("STOPPED")
    side.task("kill", "-s", "TERM", NAME)
    side.task("exec", "--exec-id", "e1", NAME, "/bin/true")
    side.task("pause", NAME)
    side.task("delete", NAME)


def init_killed_from_outside(side: CtrSide) -> None:
    side.start()
    os.kill(side.engine.tasks()[NAME][0], signal.SIGKILL)
    side.settle("STOPPED")
    side.task("delete", NAME)


def shim_killed(side: CtrSide) -> None:
    side.start()
    pid, _ = side.engine.tasks()[NAME]
    for shim in side.engine.shims(NAME):
        os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), ANSWER, "the end of the container's process")
    wait_until(lambda: side.engine.status(NAME) is None, ANSWER, "containerd to forget the task")
    side.note("status", side.engine.status(NAME))


def numbers(side: CtrSide) -> None:
    side.start(options=["--memory-limit", "67108864"])
    found = side.engine.metrics(NAME)
    # not what is in each group: a number that happens to be 0 is not in containerd's answer
    side.note("numbers", sorted(key for key, value in found.items() if isinstance(value, dict)))
    side.note("limit", found["memory"]["usage"]["limit"])
    side.note("pids", found["pids"])


def mounts(side: CtrSide) -> None:
    place = side.engine.run / "given"
    place.mkdir(exist_ok=True)
    (place / "f").write_text("given\n")
    options = ["--mount", f"type=bind,src={place},dst=/ro,options=rbind:ro"]
    side.run("/bin/sh", "-c", "cat /ro/f; echo x >/ro/g", options=options)
    side.run("/bin/true", options=["--mount", f"type=bind,src={place}/none,dst=/ro,options=rbind:ro"])


def checkpoint_is_refused(side: CtrSide) -> None:
    side.start()
    side.task("checkpoint", "--image-path", str(side.engine.run / "image"), NAME)
    side.settle("RUNNING")


def programs_that_cannot_be_run(side: CtrSide) -> None:
    side.run("/bin/missing")
    side.run("missing")
    side.run("/etc/passwd")
    side.run("/bin/true", options=["--cwd", "/etc/passwd"])


def the_same_name_twice(side: CtrSide) -> None:
    side.start()
    side.run("/bin/true")
    side.task("start", NAME)
    side.settle("RUNNING")


SCENARIOS = (
    output_and_exit_code,
    surroundings_of_a_process,
    surroundings_with_options,
    surroundings_of_the_privileged,
    terminal,
    background,
    exec_in_a_running_one,
    pause_and_resume,
    signals_reach_the_process,
    init_killed_from_outside,
    shim_killed,
    numbers,
    mounts,
    checkpoint_is_refused,
    programs_that_cannot_be_run,
    the_same_name_twice,
)
