# SPDX-License-Identifier: Apache-2.0
"""What only docker has: a daemon that may restart while guests run, restart policies, log drivers, and its API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from runphi_async.testing.containerd import RUNPHI, wait_until
from tests.engine.harness import ANSWER, exit_code

if TYPE_CHECKING:
    from tests.engine.docker import Docker

pytestmark = pytest.mark.qemu


def detached(docker: Docker, *options: str) -> str:
    """The demo guest in the background, when it has spoken; returns its name."""
    name = docker.name()
    docker.must(*docker.guest_args(name, "-d", *options))
    wait_until(lambda: "demo inmate" in docker.must("logs", name), ANSWER, "the guest's first word in the log")
    return name


def test_guest_outlives_the_daemon(docker: Docker) -> None:
    name = detached(docker, "-i", "-t")
    pid = docker.inspect(name, "{{.State.Pid}}")
    docker.halt()
    docker.launch()
    assert docker.status(name) == "running"
    assert docker.inspect(name, "{{.State.Pid}}") == pid
    child = docker.spawn("attach", name)
    child.send(b"echo attached\r")
    child.expect(rb"\nattached\r+\n")
    child.send(b"exit 5\r")
    assert exit_code(child) == 5
    assert docker.must("wait", name).strip() == "5"


def test_guest_that_ends_while_the_daemon_is_away(docker: Docker) -> None:
    name = detached(docker)
    container = docker.inspect(name, "{{.Id}}")
    root = str(docker.run / "exec" / "runtime-runc" / docker.namespace)
    docker.halt()
    assert docker.runphi("--root", root, "kill", container, "TERM").returncode == 0
    docker.launch()
    wait_until(lambda: docker.status(name) == "exited", ANSWER, "the daemon to see the end")
    assert docker.inspect(name, "{{.State.ExitCode}}") == "143"


def test_restart_policy_starts_a_guest_again(docker: Docker) -> None:
    name = detached(docker, "-i", "--restart", "on-failure:1")
    child = docker.pipe("attach", name)
    child.send(b"exit 3\r")
    wait_until(lambda: docker.inspect(name, "{{.RestartCount}}") == "1", ANSWER, "the second start")
    wait_until(lambda: docker.must("logs", name).count("demo inmate") == 2, ANSWER, "the guest's second word")
    docker.must("kill", name)


def test_follow_with_times_ends_with_the_guest(docker: Docker) -> None:
    name = detached(docker)
    child = docker.pipe("logs", "-f", "-t", name)
    child.expect(rb"T[\d:.]+Z runPHI demo inmate")
    docker.must("stop", name)
    assert child.finish() == 0


def test_update_changes_the_guests_cpu_limit(docker: Docker) -> None:
    name = detached(docker, "--cpus", "1")
    docker.must("update", "--cpus", "0.5", name)
    done = docker.call("update", "--memory", "512m", "--memory-swap", "512m", name)
    assert done.returncode == 1
    assert "memory" in done.stderr
    assert docker.status(name) == "running"


def test_the_runtime_is_among_the_daemons(docker: Docker) -> None:
    def runtimes() -> set[str]:
        return set(json.loads(docker.must("info", "--format", "{{json .Runtimes}}")))

    assert "runphi" in runtimes()
    name = detached(docker)
    docker.add_runtime("another", RUNPHI)
    wait_until(lambda: "another" in runtimes(), ANSWER, "the daemon to read its configuration")
    assert docker.status(name) == "running"
    done = docker.call(*docker.run_args("runphi/demo", docker.name(), runtime="nosuch"))
    assert done.returncode == 125


def test_image_made_by_import(docker: Docker) -> None:
    """An image needs no registry: any archive of files will do."""
    name = docker.name()
    docker.must("create", "--name", name, "runphi/demo", "/x")
    archive = str(docker.run / "files.tar")
    docker.must("export", "--output", archive, name)
    docker.must("import", "--change", "ENV INMATE=/boot/inmate.elf", "--change", 'CMD ["/x"]', archive, "imported:1")
    child = docker.pipe(*docker.run_args("imported:1", docker.name(), options=("-i", "--rm")))
    child.expect(rb"> $")
    child.send(b"exit 2\r")
    assert child.finish() == 2
    docker.must("rmi", "imported:1")
