# SPDX-License-Identifier: Apache-2.0
"""What is played with both runtimes under podman and docker: one function a scenario."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from runphi_async.testing.containerd import wait_until
from tests.engine.harness import ANSWER
from tests.engine.same import NAME, SURROUNDINGS

if TYPE_CHECKING:
    from tests.engine.same import CliSide


def output_and_exit_code(side: CliSide) -> None:
    side.shell("echo out; echo err >&2; exit 21")


def surroundings_of_a_process(side: CliSide) -> None:
    side.shell(SURROUNDINGS, "--hostname", "valve", "-e", "A=b c")


def surroundings_with_options(side: CliSide) -> None:
    side.shell(
        SURROUNDINGS, "--hostname", "valve", "--user", "1000:1000", "-w", "/tmp", "--read-only", "--cap-drop", "all",
        "--security-opt", "no-new-privileges", "--tmpfs", "/scratch", "--ulimit", "nofile=512:512", "--pids-limit=50",
    )  # fmt: skip


def surroundings_of_the_privileged(side: CliSide) -> None:
    side.shell(SURROUNDINGS, "--hostname", "valve", "--privileged", "--pid=host", "--ipc=host")


def stdin_and_its_end(side: CliSide) -> None:
    side.run("/bin/cat", options=["--rm", "-i"], stdin="one\ntwo\nno newline")


def much_output(side: CliSide) -> None:
    done = side.cli.call(*side.args("/bin/seq", "1", "50000", options=["--rm"]))
    side.note("output", (done.returncode, hashlib.sha256(done.stdout.encode()).hexdigest()[:16]))


def terminal(side: CliSide) -> None:
    child = side.cli.spawn(*side.args("/bin/sh", options=["--rm", "-it", "-e", "PS1=# "]), size=(31, 99))
    side.typed(
        child,
        (b"stty size; stty -a | grep -c onlcr; tty; echo $TERM", rb"(?s)\n31 99\r\n.*xterm\r\n"),
        # the word comes from the foreground process: before it runs, ctrl-c would go to the shell
        (b"sh -c 'echo sleep''ing; exec sleep 1000'", rb"\nsleeping\r\n"),
        (b"\x03", b"# "),
        (b"echo $?-$((6*7))", rb"\n\d+-42\r\n"),
        (b"exit 13", rb"exit 13\r\n"),
    )


def logs_of_one_that_has_ended(side: CliSide) -> None:
    side.start("seq 1 3; echo err >&2; exit 5")
    side.do("wait", NAME)
    for options in ((), ("--tail", "1")):
        # the two streams are copied side by side: only within each is there an order
        done = side.cli.call("logs", *options, NAME)
        side.note("logs", (done.returncode, sorted((done.stdout + done.stderr).split()) if not options else ()))
    side.state()
    side.do("rm", NAME)


def exec_in_a_running_one(side: CliSide) -> None:
    side.start()
    side.do("exec", NAME, "/bin/sh", "-c", "echo inside; echo err >&2; exit 6")
    side.do("exec", "-i", NAME, "/bin/cat", stdin="given")
    side.do("exec", "-u", "1000:1000", "-w", "/tmp", "-e", "A=b", NAME, "/bin/sh", "-c", "id; pwd; echo $A")
    side.do("exec", NAME, "/bin/sh", "-c", SURROUNDINGS.replace("; hostname", "").replace("HOSTNAME", "H"))
    side.do("exec", NAME, "/bin/missing")
    side.do("exec", NAME, "/etc/passwd")
    side.do("exec", "-w", "/nowhere", NAME, "/bin/true")
    side.do("exec", "-d", NAME, "/bin/sh", "-c", "echo later >/tmp/f")
    wait_until(lambda: side.cli.call("exec", NAME, "cat", "/tmp/f").stdout == "later\n", ANSWER, "exec -d")
    side.do("exec", NAME, "/bin/sh", "-c", "kill -9 $$")


def exec_on_a_terminal(side: CliSide) -> None:
    side.start()
    child = side.cli.spawn("exec", "-it", "-e", "PS1=# ", NAME, "/bin/sh", size=(20, 70))
    side.typed(child, (b"stty size; tty", rb"\n20 70\r\n/dev/pts/\d+\r\n"), (b"exit 4", b"exit 4\r\n"))


def exec_in_one_that_has_ended(side: CliSide) -> None:
    side.start("exit 0")
    side.do("wait", NAME)
    side.do("exec", NAME, "/bin/true")
    side.do("kill", NAME)
    side.do("pause", NAME)


def pause_and_resume(side: CliSide) -> None:
    side.start()
    side.do("pause", NAME)
    side.state()
    side.do("exec", NAME, "/bin/true")
    side.do("pause", NAME)
    side.do("unpause", NAME)
    side.state()
    side.do("unpause", NAME)
    side.do("exec", NAME, "/bin/true")


def signals_reach_the_process(side: CliSide) -> None:
    side.start("trap 'echo usr1' USR1; trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")
    side.do("kill", "-s", "USR1", NAME)
    wait_until(lambda: "usr1" in side.cli.call("logs", NAME).stdout, ANSWER, "the trap")
    side.do("kill", "-s", "WINCH", NAME)
    side.do("kill", "-s", "NOSUCH", NAME)
    side.do("stop", NAME)
    side.state()
    side.do("logs", NAME)


def kill_and_stop_of_the_deaf(side: CliSide) -> None:
    side.start()
    side.do("stop", "-t", "1", NAME)
    side.state()
    side.do("start", NAME)
    side.do("kill", NAME)
    side.do("wait", NAME)
    side.state()


def init_killed_from_outside(side: CliSide) -> None:
    side.start()
    os.kill(int(side.cli.inspect(NAME, "{{.State.Pid}}")), signal.SIGKILL)
    side.settle("exited")
    side.state()


def limits_given_and_updated(side: CliSide) -> None:
    side.start("exec sleep 1000", "--memory", "64m", "--cpus", "0.5", "--cpu-shares", "300", "--pids-limit", "40")
    side.limits()
    side.do("update", "--memory", "96m", "--memory-swap", "192m", "--cpu-quota", "30000", "--cpu-shares", "200", NAME)
    side.limits()
    side.do("update", "--cpuset-cpus", "0", NAME)
    side.limits()
    side.do("update", "--cpuset-cpus", "4000", NAME)


def memory_that_runs_out(side: CliSide) -> None:
    side.start("exec dd if=/dev/zero of=/dev/null bs=64M", "--memory", "16m", "--memory-swap", "16m")
    side.do("wait", NAME)


def numbers_and_processes(side: CliSide) -> None:
    side.start("sleep 1000 & exec sleep 1001")
    row = json.loads(side.cli.must("stats", "--no-stream", "--format", "{{json .}}", NAME).strip().strip("[]"))
    side.note("numbers", sorted(row))
    side.note("pids", row.get("PIDs") or row["pids"])
    # not "pid": the threads of runc that start a process take numbers, too, now more of them, now fewer
    side.do("top", NAME, "-o", "args") if side.is_docker else side.do("top", NAME, "user", "ppid", "args")


def volumes(side: CliSide) -> None:
    with tempfile.TemporaryDirectory(dir=side.cli.run) as directory:
        place = Path(directory).rename(side.cli.run / "volume")
        (place / "given").write_text("given\n")
        mounts = ["-v", f"{place}:/rw", "-v", f"{place}:/ro:ro", "-v", "kept:/kept", "--tmpfs", "/scratch:size=1m"]
        side.shell("cat /rw/given; echo x >/rw/f; echo y >/ro/f; echo z >/kept/f; df -k /scratch | tail -1", *mounts)
        side.note("written", (place / "f").read_text())
        side.shell("cat /kept/f; ls /ro", *mounts)
        side.shell("true", "-v", f"{place}/missing-file/x:/x:nosuchoption")
        side.do("volume", "rm", "kept")
        for file in place.iterdir():
            file.unlink()
        place.rename(directory)


def networks(side: CliSide) -> None:
    script = "ls /sys/class/net; ip route; ping -c 1 -W 1 127.0.0.1 | grep -c '1 packets received'"
    side.shell(script, "--network=none")
    side.shell(script, "--network=host")


def restart(side: CliSide) -> None:
    side.start("echo ready; exec sleep 1000")
    side.do("restart", "-t", "0", NAME)
    wait_until(lambda: side.cli.must("logs", NAME).count("ready") == 2, ANSWER, "the second start")
    side.state()


def restart_policy(side: CliSide) -> None:
    side.start("echo ready; exit 3", "--restart", "on-failure:2")
    wait_until(lambda: side.cli.inspect(NAME, "{{.RestartCount}}") == "2", ANSWER, "two more starts")
    side.settle("exited")
    side.state()
    side.note("starts", side.cli.must("logs", NAME).count("ready"))


def health(side: CliSide) -> None:
    side.start("touch /tmp/well; exec sleep 1000", "--health-cmd", "test -e /tmp/well", "--health-interval", "1s",
               "--health-retries", "1")  # fmt: skip

    def check(status: str) -> None:
        if side.is_docker:  # it has its own clock; podman leaves that to systemd
            shown = "{{.State.Health.Status}}"
            wait_until(lambda: side.cli.inspect(NAME, shown) == status, ANSWER, f"the container to be {status}")
            side.note("health", status)
        else:
            side.do("healthcheck", "run", NAME)

    check("healthy")
    side.do("exec", NAME, "rm", "/tmp/well")
    check("unhealthy")


def checkpoint_is_refused(side: CliSide) -> None:
    side.start()
    if side.is_docker:
        side.do("checkpoint", "create", NAME, "c1")
        side.do("checkpoint", "ls", NAME)
    else:
        side.do("container", "checkpoint", NAME)
    side.state()


def programs_that_cannot_be_run(side: CliSide) -> None:
    side.run("/bin/missing", options=["--rm"])
    side.run("missing", options=["--rm"])
    side.run("/etc/passwd", options=["--rm"])
    side.run("/bin/true", options=["--rm", "-w", "/etc/passwd"])
    side.run("/bin/true", options=["--rm", "--user", "nobody-here"])
    side.run("/bin/true", options=["--rm", "--device", "/dev/none-here"])


def create_start_attach_and_remove(side: CliSide) -> None:
    script = "read line; echo got $line; exit 8"
    words = side.args("/bin/sh", "-c", script, options=["-i", "--stop-timeout", "1"])
    done = side.cli.call("create", *words[1:])
    side.note("create", (done.returncode, side.alike(done.stdout)))
    side.state()
    child = side.cli.pipe("start", "-a", "-i", NAME)
    child.send(b"a line\n")
    child.expect(rb"got a line\n")
    side.note("attached", (child.finish(), child.seen))
    side.state()
    side.do("start", NAME)
    side.do("rm", NAME)
    side.do("rm", "-f", NAME)
    side.do("rm", NAME)


def files_copied_and_what_has_changed(side: CliSide) -> None:
    side.start("echo x >/tmp/f; echo ready; exec sleep 1000")
    side.do("cp", f"{NAME}:/tmp/f", str(side.cli.run / "copied"))
    side.note("copied", (side.cli.run / "copied").read_text())
    side.do("diff", NAME)
    side.note("listed", side.cli.must("ps", "-a", "--format", "{{.Names}} {{.Image}} {{.Command}}"))


SCENARIOS = (
    output_and_exit_code,
    surroundings_of_a_process,
    surroundings_with_options,
    surroundings_of_the_privileged,
    stdin_and_its_end,
    much_output,
    terminal,
    logs_of_one_that_has_ended,
    exec_in_a_running_one,
    exec_on_a_terminal,
    exec_in_one_that_has_ended,
    pause_and_resume,
    signals_reach_the_process,
    kill_and_stop_of_the_deaf,
    init_killed_from_outside,
    limits_given_and_updated,
    memory_that_runs_out,
    numbers_and_processes,
    volumes,
    networks,
    restart,
    restart_policy,
    health,
    checkpoint_is_refused,
    programs_that_cannot_be_run,
    create_start_attach_and_remove,
    files_copied_and_what_has_changed,
)
