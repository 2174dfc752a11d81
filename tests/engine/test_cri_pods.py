# SPDX-License-Identifier: Apache-2.0
"""Pods of more than one kind of container, several pods, Linux guests in pods, and pods with a network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runphi_async.testing.containerd import wait_until
from tests.engine.cri import CriError
from tests.engine.pods import ANSWER, BUSYBOX, DEMO, HANDLER, INMATE, LogLine

if TYPE_CHECKING:
    from tests.engine.pods import Container, Pod, PodEngine

#: guests that boot Linux are slow where nothing but software runs them
pytestmark = pytest.mark.timeout(300)

SHELL = ("/bin/sh", "-c")
#: longer than the line that containerd's log holds in one piece
LONG = 20_000
#: memory that a guest touches at once
FILL = 48 << 20


@pytest.fixture(params=["runc", HANDLER])
def handler(request: pytest.FixtureRequest) -> str:
    """The same ordinary pod under runc's handler, which proves the test, and under this project's."""
    return str(request.param)


@pytest.fixture(params=["runc", pytest.param("guest", marks=pytest.mark.qemu)])
def linux(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The same process in an ordinary container and in a Linux guest."""
    return {"annotations": {"org.runphi.linux": "1"} if request.param == "guest" else {}}


def run(pod: Pod, *command: str, **more: Any) -> Container:
    return pod.container(BUSYBOX, *command, **more).start()


# Section: ordinary containers


def test_ordinary_pod(pods: PodEngine, handler: str) -> None:
    pod = pods.pod(handler=handler)
    script = "echo out; echo err >&2; trap 'exit 9' TERM; while :; do sleep 0.1; done"
    main = run(pod, *SHELL, script, env={"A": "b c"})
    main.says("err\n")
    assert sorted(main.log()) == [LogLine("stderr", "F", "err"), LogLine("stdout", "F", "out")]
    done = main.call("ExecSync", cmd=[*SHELL, "echo in; echo $A >&2; exit 6"], timeout=30)
    assert (done["exit_code"], done["stdout"], done["stderr"]) == (6, "aW4K", "YiBjCg==")
    assert int(main.stats()["memory"]["working_set_bytes"]["value"]) > 0
    main.call("UpdateContainerResources", linux={"cpu_shares": 300})
    (group,) = [path for path in pods.cgroups() if path.name == main.id and (path / "cpu.shares").exists()]
    assert (group / "cpu.shares").read_text() == "300\n"
    main.stop(30)
    assert main.status()["exit_code"] == 9
    assert not (pods.run_dir / main.id).exists()


def test_failed_start_of_an_ordinary_container_is_runcs_own(pods: PodEngine, handler: str) -> None:
    main = pods.pod(handler=handler).container(BUSYBOX, "/bin/missing")
    with pytest.raises(CriError, match=r"OCI runtime create failed: runc create failed: .*/bin/missing"):
        main.start()
    assert main.status()["reason"] == "StartError"


def test_unknown_handler_is_refused(pods: PodEngine) -> None:
    with pytest.raises(CriError, match='no runtime for "nosuch" is configured'):
        pods.pod(handler="nosuch")


# Section: both kinds together


@pytest.mark.qemu
def test_ordinary_container_beside_a_partition(pods: PodEngine) -> None:
    pod = pods.pod(annotations={"org.runphi.inmate/plc": "/boot/inmate.elf", "org.runphi.memory/plc": "64M"})
    plc = pod.container(DEMO, name="plc", stdin=True).start()
    plc.says("runPHI demo inmate")
    side = run(pod, *SHELL, "echo ready; exec sleep 1000", name="side")
    side.says("ready")
    assert (pods.run_dir / plc.id).is_dir()
    assert not (pods.run_dir / side.id).exists()
    assert len(pods.guests()) == 1
    assert side.call("ExecSync", cmd=["/bin/true"], timeout=30)["exit_code"] == 0
    with pytest.raises(CriError, match="not supported by this guest"):
        plc.call("ExecSync", cmd=["/bin/true"], timeout=30)
    side.stop()
    side.remove()
    with plc.attach() as stream:  # the other's end has not touched it, though one shim serves both
        stream.send(b"exit 5\r")
        assert plc.exited() == 5


@pytest.mark.qemu
def test_restarted_container_of_a_pod(pods: PodEngine) -> None:
    pod = pods.pod(annotations=INMATE)
    for code in (1, 2):  # kubelet makes a new container for each attempt, and keeps the last dead one
        main = pod.container(stdin=True).start()
        main.says("runPHI demo inmate")
        with main.attach() as stream:
            stream.send(b"exit %d\r" % code)
            assert main.exited() == code
        assert main.log_file.endswith(f"main/{code - 1}.log")


@pytest.mark.qemu
def test_two_pods_at_once(pods: PodEngine) -> None:
    mains = [pods.pod(annotations=INMATE).container(stdin=True).start() for _ in range(2)]
    for main in mains:
        main.says("runPHI demo inmate")
    assert len(pods.guests()) == 2
    for number, main in enumerate(mains):
        with main.attach() as stream:
            stream.ask(b"echo I am %d\r" % number, b"\r\nI am %d" % number)
    mains[0].stop()
    assert [main.state for main in mains] == ["EXITED", "RUNNING"]
    assert "I am 0" not in mains[1].text()


# Section: Linux guests


def test_process_of_a_pod(pods: PodEngine, linux: dict[str, Any]) -> None:
    pod = pods.pod(annotations=linux["annotations"])
    script = 'echo "$0 $A"; pwd; id -u; touch /f 2>/dev/null || echo read-only; exit 7'
    main = run(pod, *SHELL, script, env={"A": "b c"}, working_dir="/tmp", args=["arg"])
    assert main.exited() == 7
    assert main.text() == "arg b c\n/tmp\n0\n"


def test_long_lines_are_logged_in_parts(pods: PodEngine, linux: dict[str, Any]) -> None:
    pod = pods.pod(annotations=linux["annotations"])
    main = run(pod, *SHELL, f"printf '%0{LONG}d\\n' 1; printf last")
    assert main.exited() == 0
    assert [line.tag for line in main.log()][:2] == ["P", "F"]
    assert main.text().rstrip("\n") == f"{1:0{LONG}}\nlast"


def test_stop_with_grace(pods: PodEngine, linux: dict[str, Any]) -> None:
    pod = pods.pod(annotations=linux["annotations"])
    polite = run(pod, *SHELL, "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.1; done", name="polite")
    deaf = run(pod, *SHELL, "trap '' TERM; echo ready; while :; do sleep 0.1; done", name="deaf")
    for main in (polite, deaf):
        main.says("ready")
    polite.stop(40)
    assert polite.status()["exit_code"] == 9
    assert polite.text() == "ready\nbye\n"
    deaf.stop(1)
    assert deaf.status()["exit_code"] == 137


def test_shell_by_attach(pods: PodEngine, linux: dict[str, Any]) -> None:
    pod = pods.pod(annotations=linux["annotations"])
    main = run(pod, "/bin/sh", tty=True, stdin=True)
    with main.attach(tty=True) as stream:
        stream.resize(31, 99)
        stream.ask(b"echo $((6*7))\r", b"\r\n42\r\n")
        stream.send(b"exit 12\r")
        assert main.exited() == 12


def test_stdin_that_ends_with_its_only_attach(pods: PodEngine, linux: dict[str, Any]) -> None:
    pod = pods.pod(annotations=linux["annotations"])
    main = run(pod, "/bin/cat", stdin=True, stdin_once=True)
    with main.attach() as stream:
        stream.send(b"typed\n")
        main.says("typed\n")
    assert main.exited() == 0
    assert main.text() == "typed\n"


@pytest.mark.qemu
def test_out_of_memory_is_told_as_such(pods: PodEngine) -> None:
    pod = pods.pod(annotations={"org.runphi.linux": "1"})
    script = f"echo ready; read x; dd if=/dev/zero of=/dev/null bs={FILL} count=1"
    main = run(pod, *SHELL, script, stdin=True, resources={"memory_limit_in_bytes": 128 << 20})
    main.says("ready")
    # the guest has not touched all its memory yet: take away what the machine would give it for that
    (group,) = [x for x in pods.cgroups() if x.name == main.id and (x / "memory.limit_in_bytes").exists()]
    used = int((group / "memory.usage_in_bytes").read_text())
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):  # the latter where swap is counted
        if (group / name).exists():
            (group / name).write_text(str(used + FILL // 4))
    with main.attach() as stream:
        stream.send(b"go\n")
        assert main.exited() == 137
    assert main.status()["reason"] == "OOMKilled"


# Section: network


def netns(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def links(pods: PodEngine) -> list[str]:
    """The network devices of the engine's own namespace."""
    command = ["nsenter", "--net", "--target", str(pods.pid), "ip", "-o", "link"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split()[1].partition("@")[0].rstrip(":") for line in lines]


@pytest.mark.qemu
def test_pod_with_a_network(pods: PodEngine) -> None:
    before = links(pods)
    pod = pods.pod(annotations={"org.runphi.inmate/plc": "/boot/inmate.elf"}, network="POD")
    address = pod.status()["network"]["ip"]
    assert address.startswith("198.51.100.")
    plc = pod.container(DEMO, name="plc").start()
    plc.says("runPHI demo inmate")
    side = run(pod, *SHELL, "hostname; ip -o -4 address show dev eth0; exec sleep 1000", name="side")
    side.says(f" inet {address}")
    assert side.text().startswith(f"{pod.config['hostname']}\n")
    # whatever the partition's machine does on the network, it does it from inside the pod
    pod_namespace = netns(pod.info()["pid"])
    assert netns(plc.info()["pid"]) == netns(side.info()["pid"]) == pod_namespace != netns(os.getpid())
    assert {netns(pid) for pid in pods.guests()} == {pod_namespace}
    assert len(links(pods)) == len(before) + 1
    pod.stop()
    pod.remove()
    wait_until(lambda: links(pods) == before, ANSWER, "the pod's link to go")
    assert not [path for path in Path(pods.run, "ipam").rglob(address) if path.is_file()]


@pytest.mark.qemu
def test_two_pods_have_two_addresses(pods: PodEngine) -> None:
    both = [pods.pod(annotations=INMATE, network="POD") for _ in range(2)]
    for pod in both:
        pod.container().start().says("runPHI demo inmate")
    addresses = {pod.status()["network"]["ip"] for pod in both}
    assert len(addresses) == 2
    assert len({netns(pid) for pid in pods.guests()}) == 2


@pytest.mark.qemu
def test_a_linux_guest_has_its_pods_address_and_mounts(pods: PodEngine, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("page of a pod\n")
    pod = pods.pod(annotations={"org.runphi.linux/web": "1"}, network="POD")
    address = pod.status()["network"]["ip"]
    script = "ip -o -4 address show dev eth0; mount | grep /www; exec httpd -f -p 80 -h /www"
    shared = [{"container_path": "/www", "host_path": str(tmp_path), "readonly": True}]
    web = run(pod, *SHELL, script, name="web", mounts=shared)
    web.says(f" inet {address}/")
    web.says("/www type virtiofs (ro")

    def page() -> bool:
        command = ["nsenter", "--net", "--target", str(pods.pid), "busybox", "nc", "-w", "30", address, "80"]
        ask = b"GET / HTTP/1.0\r\n\r\n"
        done = subprocess.run(command, input=ask, stdout=subprocess.PIPE, check=False, timeout=ANSWER)
        return done.stdout.endswith(b"\r\n\r\npage of a pod\n")

    wait_until(page, ANSWER, "the guest's page")
    # its place can be had once: another guest of the pod must do without
    with pytest.raises(CriError, match="another guest of the pod has its place"):
        run(pod, "/bin/true", name="second", annotations={"org.runphi.linux": "1"})
