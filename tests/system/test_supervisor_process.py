# SPDX-License-Identifier: Apache-2.0
"""The supervisor as a process: started by many at once, twice, by systemd; ended; given a wrong configuration."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from runphi_async import wire
from tests.system.place import PATIENCE, ROOT, Place, ended

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(120),
]


def test_a_second_supervisor_leaves_the_first_alone(place: Place) -> None:
    place.must("version")
    pid = place.pid()
    daemon = [str(ROOT / "bin" / "runphid"), "--ready-fd", "1"]
    done = subprocess.run(daemon, env=place.env, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, wire.MAGIC)
    assert place.pid() == pid


def test_sigterm_ends_it_and_guests_go_on(place: Place) -> None:
    c = place.running("c1")
    old = place.pid()
    guardian = int(Path(f"/proc/{old}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(old, signal.SIGTERM)
    ended(old)
    ended(guardian)
    os.waitpid(guardian, 0)
    assert os.path.exists(f"/proc/{c.vmm()}")
    c.type(b"echo on\n")  # into the pipe: nobody reads it now
    c.state()  # any verb starts the next one
    c.expect(b"\non\r\n")


def test_twenty_clients_start_one_supervisor(place: Place) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda _: place.call("version").returncode, range(20)))
    assert done == [0] * 20
    running = [
        words for words in place.processes().values() if "runphid --ready-fd" in words and "/bin/sh" not in words
    ]
    assert len(running) == 1


def test_a_wrong_configuration_is_said_to_the_caller(place: Place) -> None:
    (place.path / "config.toml").write_text("[qmu]\n")
    done = place.call("version")
    assert done.returncode == 1
    assert "cannot start the supervisor" in done.stderr
    assert "unknown key" in done.stderr
    assert "did you mean" in done.stderr or "known here" in done.stderr


def test_records_that_cannot_be_read_do_not_stop_it(place: Place) -> None:
    c = place.create("c1", backend="fake")
    guardian = int(Path(f"/proc/{place.pid()}/stat").read_text().rpartition(")")[2].split()[1])
    (place.run_dir / "junk").mkdir()
    (place.run_dir / "junk" / "state.json").write_bytes(b"\0garbage")
    (place.run_dir / "empty").mkdir()
    place.kill_supervisor()
    assert c.state()["status"] == "created"
    assert not (place.run_dir / "empty").exists()
    assert not (place.run_dir / "junk").exists()
    assert guardian


def test_socket_activation(place: Place) -> None:
    """As systemd does it: the socket is there before and behind every supervisor, and a call starts one."""
    place.run_dir.mkdir(mode=0o700)
    path = place.run_dir / "supervisor.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(64)

        def serve() -> subprocess.Popen[bytes]:
            # Descriptor 3, and LISTEN_PID is the pid of whoever is executed in the end. Source: sd_listen_fds(3).
            script = f'exec 3<&{listener.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
            return subprocess.Popen(
                ["/bin/bash", "-c", script, "bash", ROOT / "bin" / "runphid"],
                env=place.env, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip

        inode = path.stat().st_ino
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            early = pool.submit(place.create, "c1", backend="fake")  # waits in the socket's queue
            service = serve()
            c = early.result()
        c.must("start")
        c.expect(b"> ")
        service.kill()
        service.wait()
        service = serve()
        assert c.state()["status"] == "running"
        assert path.stat().st_ino == inode  # nobody put another socket in its place
        service.terminate()
        assert service.wait() == 0
        service = serve()
        c.type(b"exit 5\n")
        assert c.wait() == 5
        c.must("delete")
        service.terminate()
        service.wait()
    (place.run_dir / "supervisor.pid").unlink()


def test_doctor(place: Place) -> None:
    shown = place.must("doctor")
    assert "run directory" in shown
    assert re.search(r"^ok +qemu +QEMU with (tcg|kvm)", shown, re.MULTILINE)
    found = json.loads(place.must("doctor", "--json"))
    assert {"host", "runphi", "runc", "qemu"} <= {finding["area"] for finding in found}
    place.run_dir.chmod(0o777)
    done = place.call("doctor")
    assert done.returncode == 1
    assert re.search(r"^error +runphi +run directory .* can be written by others", done.stdout, re.MULTILINE)
    place.run_dir.chmod(0o700)
