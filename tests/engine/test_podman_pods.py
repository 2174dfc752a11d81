# SPDX-License-Identifier: Apache-2.0
"""What only podman has: pods from Kubernetes files, its monitor conmon, and what it asks of a runtime's name."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from runphi_async.testing.containerd import wait_until
from tests.engine.harness import ANSWER, DEMO

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.podman import Podman

pytestmark = pytest.mark.qemu

POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: plant
spec:
  restartPolicy: Never
  containers:
    - name: valve
      image: localhost/runphi/demo:latest
      imagePullPolicy: Never
      env:
        - name: INMATE
          value: /boot/inmate.elf
    - name: log
      image: localhost/runphi/busybox:latest
      imagePullPolicy: Never
      command: ["/bin/sh", "-c", "echo ordinary; exec sleep 1000"]
"""


def conmon(podman: Podman, name: str) -> int:
    """Process id of a container's monitor."""
    return int(podman.inspect(name, "{{.State.ConmonPid}}"))


def test_pod_from_a_kubernetes_file(podman: Podman, tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(POD)
    done = podman.call("play", "kube", "--network=none", str(file))
    if "pause binary" in done.stderr:
        pytest.skip("podman finds no catatonit for its pods: bin/test installs it")
    assert done.returncode == 0, done.stderr
    assert podman.pod("plant")
    wait_until(lambda: "demo inmate" in podman.must("logs", "plant-valve"), ANSWER, "the guest's first word")
    wait_until(lambda: "ordinary" in podman.must("logs", "plant-log"), ANSWER, "the ordinary container's word")
    guest = podman.inspect("plant-valve", "{{.Id}}")
    assert guest in podman.runphi("list", "-q").stdout.split()
    assert podman.must("pod", "inspect", "--format", "{{.State}}", "plant").strip() == "Running"
    podman.must("pod", "pause", "plant")
    assert podman.status("plant-valve") == "paused"
    podman.must("pod", "unpause", "plant")
    podman.must("play", "kube", "--down", str(file))
    assert podman.containers() == []
    assert guest not in podman.runphi("list", "-q").stdout.split()


@pytest.mark.parametrize(("end", "code"), [("exit 7", "7"), ("", "143")])
def test_monitor_writes_log_and_exit_file(podman: Podman, inmates: Path, tmp_path: Path, end: str, code: str) -> None:
    container, bundle = f"{podman.namespace}-monitored", tmp_path / "bundle"
    boot = bundle / "rootfs" / "boot"
    boot.mkdir(parents=True)
    shutil.copy(inmates / "demo-x86_64.elf", boot / "inmate.elf")
    assert podman.runphi("spec", "--bundle", str(bundle)).returncode == 0
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["terminal"] = False
    spec["linux"]["cgroupsPath"] = f"/{podman.namespace}/{container}"
    (bundle / "config.json").write_text(json.dumps(spec))
    pid_file, log, exits = tmp_path / "pid", tmp_path / "log", tmp_path / "exits"
    exits.mkdir()
    words: list[str | Path] = ["conmon", "-c", container, "-u", container, "-r", podman.run / "runphi", "-b", bundle]
    words += ["-p", pid_file, "--exit-dir", exits, "-l", f"k8s-file:{log}", "--stdin", "--full-attach"]
    # it leaves a process of its own behind, so what it was given must not be a pipe of ours
    subprocess.run(
        words,
        env=podman.client_env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=ANSWER,
    )  # fmt: skip
    try:
        wait_until(pid_file.exists, ANSWER, "the pid file")
        assert podman.runphi("start", container).returncode == 0
        wait_until(lambda: "demo inmate" in said(log), ANSWER, "the guest's first word in the log")
        if end:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(str(bundle / "attach"))
                client.send(end.encode() + b"\r")
        else:
            assert podman.runphi("kill", container, "TERM").returncode == 0
        wait_until((exits / container).exists, ANSWER, "the exit file")
        wait_until(lambda: (exits / container).read_text() == code, ANSWER, f"exit code {code}")
        assert re.match(r"runPHI demo inmate, [^\n]+\n", said(log))
    finally:
        podman.runphi("delete", "--force", container)


def said(log: Path) -> str:
    """The text of conmon's log; P marks a part of a line."""
    lines = (line.split(" ", 3) for line in log.read_text().splitlines())
    return "".join(text + ("\n" if mark == "F" else "") for _, _, mark, text in lines)


def test_killed_monitor_leaves_nothing_that_cannot_be_removed(podman: Podman) -> None:
    name = podman.name()
    podman.must(*podman.guest_args(name, "-d"))
    container = podman.inspect(name, "{{.Id}}")
    os.kill(conmon(podman, name), signal.SIGKILL)
    podman.call("rm", "-f", "-t", "0", name)
    # podman forgets such a container without a call of the runtime: what it left is deleted by hand, as with runc
    assert podman.runphi("delete", "--force", container).returncode == 0
    assert container not in podman.runphi("list", "-q").stdout.split()


def test_errors_come_with_the_runtimes_words(podman: Podman) -> None:
    done = podman.call(*podman.run_args("runphi/demo", podman.name(), options=("--rm", "-e", "INMATE=/none")))
    assert done.returncode in (125, 126, 127)
    assert re.match(r"Error: .*runphi: .*/none", done.stderr), done.stderr


def test_version_is_shown(podman: Podman) -> None:
    shown = json.loads(podman.must("info", "--format", "json"))["host"]["ociRuntime"]
    assert shown["name"] == "runphi"
    assert "runphi" in shown["version"]


def test_linux_guest_runs_the_image(podman: Podman) -> None:
    script = 'echo "guest $((6*7))"; exit 9'
    words = podman.run_args("runphi/busybox", podman.name(), "/bin/sh", "-c", script, options=("--rm", "-e", "LINUX=1"))
    done = podman.call(*words, timeout=100.0)
    assert (done.returncode, done.stdout, done.stderr) == (9, "guest 42\n", "")


def test_an_image_may_set_less_than_its_caller(podman: Podman, tmp_path: Path) -> None:
    """podman before 5.0 puts the annotations of an image's manifest among those of its caller, later ones drop them."""
    passes_on = int(podman.must("version", "--format", "{{.Client.Version}}").partition(".")[0]) < 5
    (tmp_path / "Containerfile").write_text(f"FROM {DEMO}\n")
    tag = "localhost/runphi/greedy:latest"
    said = ["--annotation", "org.runphi.memory=500G", "--annotation", "org.runphi.log=none"]
    podman.must("build", "--quiet", "--pull=never", *said, "--tag", tag, str(tmp_path))
    try:
        name = podman.name()
        alone = podman.call(*podman.run_args(tag, name, options=["-d", "-e", "INMATE=/boot/inmate.elf"]))
        if passes_on:
            assert alone.returncode != 0
            assert "it comes from the image, and only who runs the image may set it" in alone.stderr
        else:
            assert alone.returncode == 0, alone.stderr
            assert "org.runphi" not in podman.must("inspect", name, "--format", "{{json .Config.Annotations}}")
        own = ["--annotation", "org.runphi.memory=64M", "--annotation", "org.runphi.log=raw"]
        name = podman.name()
        podman.must(*podman.run_args(tag, name, options=["-d", "-e", "INMATE=/boot/inmate.elf", *own]))
        wait_until(lambda: "runPHI demo inmate" in podman.must("logs", name), ANSWER, "the guest's first word")
        podman.remove_containers()
    finally:
        podman.call("rmi", "--force", tag)
