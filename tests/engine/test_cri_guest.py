# SPDX-License-Identifier: Apache-2.0
"""A bare-metal guest in a pod, by the calls that kubelet makes."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runphi_async.testing.containerd import wait_until
from tests.engine.cri import CriError
from tests.engine.pods import ANSWER, INMATE, LogLine

if TYPE_CHECKING:
    from tests.engine.pods import Container, PodEngine

pytestmark = pytest.mark.qemu

BANNER = "runPHI demo inmate"
MEMORY = 32 << 20


def guest(pods: PodEngine, **more: object) -> Container:
    """A demo guest that waits for a command, alone in a pod."""
    started = pods.pod(annotations=INMATE).container(**more).start()  # type: ignore[arg-type]
    started.says(BANNER)
    return started


def test_life_of_a_guest(pods: PodEngine) -> None:
    pod = pods.pod(annotations=INMATE)
    main = pod.container(stdin=True)
    assert main.state == "CREATED"
    assert not pods.guests()
    main.start()
    main.says(BANNER)
    assert main.state == "RUNNING"
    assert len(pods.guests()) == 1
    with main.attach() as stream:
        stream.send(b"exit 3\r")
        assert main.exited() == 3
    status = main.status()
    assert status["reason"] == "Error"
    assert int(status["finished_at"]) >= int(status["started_at"]) >= int(status["created_at"]) > 0
    assert not pods.guests()
    main.remove()
    with pytest.raises(CriError, match="NOT_FOUND"):
        main.status()
    pod.stop()
    assert pod.status()["state"] == "SANDBOX_NOTREADY"
    pod.remove()
    assert pods.containers() == []


def test_pause_container_is_runcs_and_the_guest_is_ours(pods: PodEngine) -> None:
    pod = pods.pod(annotations=INMATE)
    # runc's start returns a moment before its init process becomes the pause program
    words = Path(f"/proc/{pod.info()['pid']}/cmdline")
    wait_until(lambda: words.read_bytes() == b"/pause\0", ANSWER, "runc's pause process")
    assert not (pods.run_dir / pod.id).exists()
    main = pod.container().start()
    main.says(BANNER)
    assert (pods.run_dir / main.id).is_dir()
    assert pods.runphi("--root", str(pods.runc_root), "state", main.id).returncode == 0


def test_annotations_of_pod_and_container_arrive(pods: PodEngine) -> None:
    pod = pods.pod(annotations={**INMATE, "org.runphi.memory": "64M", "example.org/owner": "me"})
    main = pod.container(annotations={"org.runphi.vcpus": "2", "example.org/other": "x"}).start()
    main.says(BANNER)
    found = main.info()["runtimeSpec"]["annotations"]
    ours = {key: value for key, value in found.items() if not key.startswith("io.kubernetes")}
    assert ours == {**INMATE, "org.runphi.memory": "64M", "org.runphi.vcpus": "2"}
    plan = (pods.run_dir / main.id / f"config{main.id}.conf").read_text()
    assert re.search(r"-m 64M?\b", plan), plan
    assert re.search(r"-smp \S*2\b", plan), plan


def test_log_is_in_the_form_kubelet_reads(pods: PodEngine) -> None:
    main = guest(pods, stdin=True)
    with main.attach() as stream:
        stream.send(b"spam 300\rexit 0\r")
        assert main.exited() == 0
    assert main.status()["reason"] == "Completed"
    lines = main.log()
    assert lines[0].stream == "stdout"
    numbered = [x for x in lines if x.text.startswith("line ")]
    assert numbered == [LogLine("stdout", "F", f"line {x:07}") for x in range(1, 301)]
    assert main.status()["log_path"] == main.log_file


def test_log_goes_on_in_a_new_file_after_kubelet_rotated_it(pods: PodEngine) -> None:
    main = guest(pods, stdin=True)
    old = Path(main.log_file)
    old.rename(old.with_suffix(".rotated"))
    main.call("ReopenContainerLog")
    with main.attach() as stream:
        stream.ask(b"echo after the rotation\r", b"\r\nafter the rotation")
    main.says("\nafter the rotation\n")
    assert BANNER not in main.text()


def test_several_attach_to_one_guest(pods: PodEngine) -> None:
    main = guest(pods, stdin=True)
    with main.attach() as first, main.attach() as second:
        for stream in (first, second):
            stream.ask(b"echo hello\r", b"\r\nhello")
        for here, there, text in ((first, second, b"from the first"), (second, first, b"from the second")):
            here.send(b"echo %s\r" % text)
            for stream in (here, there):
                stream.expect(b"\r\n" + text)
    with main.attach() as third:  # the ends of the others have ended neither guest nor input
        third.send(b"exit 7\r")
        assert main.exited() == 7


def test_terminal_with_sizes(pods: PodEngine) -> None:
    main = guest(pods, stdin=True, tty=True)
    with main.attach(tty=True) as stream:
        for rows, columns in ((40, 120), (1, 1), (24, 80)):
            stream.resize(rows, columns)
        stream.ask(b"half a line\x03", b"^C")  # ctrl-c is a byte like any other
        stream.ask(b"echo on a terminal\r", b"\r\non a terminal")
        stream.send(b"exit 4\r")
        assert main.exited() == 4
    assert "\non a terminal\n" in main.text()


def test_exec_says_that_it_cannot_and_harms_nothing(pods: PodEngine) -> None:
    main = guest(pods, stdin=True)
    with pytest.raises(CriError, match="cannot run a further process in the container: not supported by this guest"):
        main.call("ExecSync", cmd=["/bin/true"], timeout=10)
    with main.exec("/bin/sh") as stream:
        status = stream.finish()
    assert status["status"] == "Failure"
    assert "not supported by this guest" in status["message"]
    assert main.state == "RUNNING"
    with main.attach() as stream:
        stream.send(b"exit 0\r")
        assert main.exited() == 0


@pytest.mark.parametrize(("grace", "code"), [(30, 143), (0, 137)], ids=["TERM", "KILL"])
def test_stop(pods: PodEngine, grace: int, code: int) -> None:
    main = guest(pods)
    main.stop(grace)
    assert main.state == "EXITED"
    assert main.status()["exit_code"] == code
    main.stop(grace)  # kubelet may ask again


def test_statistics_are_those_of_the_guest(pods: PodEngine) -> None:
    main = guest(pods)
    for report in (main.stats(), *pods.cri.call("ListContainerStats", filter={"id": main.id})["stats"]):
        assert report["attributes"]["id"] == main.id
        assert int(report["memory"]["working_set_bytes"]["value"]) > 4 << 20
        assert 0 < int(report["cpu"]["usage_core_nano_seconds"]["value"]) < 60e9


def test_limits_of_the_pods_container_and_their_update(pods: PodEngine) -> None:
    limits = {"cpu_period": 100_000, "cpu_quota": 150_000, "cpu_shares": 512, "memory_limit_in_bytes": MEMORY}
    main = guest(pods, resources=limits)
    plan = (pods.run_dir / main.id / f"config{main.id}.conf").read_text()
    assert re.search(r"-smp \S*2\b", plan), plan
    (group,) = [path for path in pods.cgroups() if path.name == main.id and (path / "cpu.cfs_quota_us").exists()]
    assert (group / "cpu.cfs_quota_us").read_text() == "150000\n"
    main.call("UpdateContainerResources", linux={"cpu_quota": 50_000, "cpu_shares": 256})
    assert (group / "cpu.cfs_quota_us").read_text() == "50000\n"
    assert (group / "cpu.shares").read_text() == "256\n"
    with pytest.raises(CriError, match="cannot change the memory of a living guest"):
        main.call("UpdateContainerResources", linux={"memory_limit_in_bytes": 2 * MEMORY})
    assert main.state == "RUNNING"


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"org.runphi.inmate": "/boot/missing.elf"}, "/boot/missing.elf"),
        ({**INMATE, "org.runphi.memmory": "64M"}, "annotation org.runphi.memmory"),
        ({**INMATE, "org.runphi.memory/main": "lots"}, "annotation org.runphi.memory"),
    ],
    ids=["image", "typing-error", "value"],
)
def test_failed_start_says_why(pods: PodEngine, annotations: dict[str, str], words: str) -> None:
    main = pods.pod(annotations=annotations).container()
    with pytest.raises(CriError, match="OCI runtime create failed: .*" + re.escape(words)):
        main.start()
    status = main.status()
    assert (status["state"], status["reason"]) == ("CONTAINER_EXITED", "StartError")
    assert words in status["message"]  # kubelet shows it as the pod's event
    main.remove()
    assert not (pods.run_dir / main.id).exists()


def test_removed_container_takes_its_guest_along(pods: PodEngine) -> None:
    main = guest(pods)
    main.remove()
    assert not pods.guests()
    assert not (pods.run_dir / main.id).exists()


def test_pod_takes_its_guest_along(pods: PodEngine) -> None:
    pod = pods.pod(annotations=INMATE)
    main = pod.container().start()
    main.says(BANNER)
    pod.stop()
    assert main.status()["exit_code"] == 137
    assert not pods.guests()
    pod.remove()
    wait_until(lambda: not pods.cgroups(), ANSWER, "the cgroups to go")
    assert not (pods.run_dir / main.id).exists()


def test_killed_machine_is_an_error_for_kubelet(pods: PodEngine) -> None:
    main = guest(pods)
    (machine,) = pods.guests()
    os.kill(machine, signal.SIGKILL)
    assert main.exited() not in (0, None)
    assert main.status()["reason"] == "Error"


def test_guest_and_log_outlive_containerd_and_supervisor(pods: PodEngine) -> None:
    main = guest(pods, stdin=True)
    supervisor = pods.supervisor_pid()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    pods.restart()
    assert main.state == "RUNNING"
    with main.attach() as stream:
        stream.ask(b"echo still here\r", b"\r\nstill here")
        main.says("\nstill here\n")
        stream.send(b"exit 8\r")
        assert main.exited() == 8


def test_rank_for_the_out_of_memory_killer(pods: PodEngine) -> None:
    main = guest(pods, resources={"oom_score_adj": 990})  # what kubelet gives a pod without requests, or nearly
    (machine,) = pods.guests()
    for pid in (main.info()["pid"], machine):
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "990\n"
