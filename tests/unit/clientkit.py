# SPDX-License-Identifier: Apache-2.0
"""The thin client as a process, and a thread that plays its supervisor on a real socket."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from runphi_async import wire
from tests.unit.wirekit import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent.parent
RUNPHI = str(ROOT / "bin" / "runphi")
PATIENCE = 20.0


class Session:
    """One client as the supervisor sees it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE)
        data, self.fds, _, _ = socket.recv_fds(sock, 65536, 3)
        assert data[:4] == wire.MAGIC
        while len(data) < 8 or len(data) < 8 + int.from_bytes(data[4:8], "big"):
            data += sock.recv(65536)
        self.cwd, env, argv = wire.unpack(data[8:])
        self.env, self.argv = wire.unpack(env), wire.unpack(argv)
        self.frame = Reader(sock).frame

    def send(self, kind: bytes, payload: bytes = b"", fds: list[int] | None = None) -> None:
        socket.send_fds(self.sock, [wire.frame(kind, payload)], fds or [])

    def exit(self, status: int = 0) -> None:
        self.send(wire.EXIT, b"%d" % status)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.sock.close()


class FakeSupervisor:
    """Answers each client with the next of its scripts."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.scripts: list[Callable[[Session], None]] = []
        self.errors: list[BaseException] = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(run_dir / wire.SOCKET))
        self.listener.listen(10)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            session = None
            try:
                session = Session(sock)
                self.scripts.pop(0)(session)
            except BaseException as exc:
                self.errors.append(exc)
            finally:
                if session is not None:
                    session.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        assert self.errors == []
        assert self.scripts == [], "not everybody came who was expected"


def run_directory(tmp_path: Path) -> Path:
    """Body of a fixture: the directory of a supervisor."""
    path = tmp_path / "run"
    path.mkdir()
    return path


def supervisors(run_dir: Path) -> Iterator[FakeSupervisor]:
    """Body of a fixture: a supervisor, all of whose scripts must have been played at the end."""
    made = FakeSupervisor(run_dir)
    yield made
    made.close()


def environment(run_dir: Path) -> dict[str, str]:
    return {"RUNPHI_RUN_DIR": str(run_dir)}  # neither PATH nor HOME: as podman's cleanup calls


def run(run_dir: Path, *words: str | bytes, **more: object) -> subprocess.CompletedProcess[bytes]:
    options: dict[str, object] = {
        "stdin": subprocess.DEVNULL, "capture_output": True, "env": environment(run_dir), "timeout": PATIENCE,
        "check": False, **more,
    }  # fmt: skip
    return subprocess.run([RUNPHI, *words], **options)  # type: ignore[call-overload,no-any-return]
