# SPDX-License-Identifier: Apache-2.0
"""The connection to the supervisor: a request with three descriptors, then frames in both directions.

Built-in modules only, as in all of the thin client.
"""

import _signal  # type: ignore[import-not-found]  # `signal` costs an import of enum
import _socket
import posix
import sys

from runphi_async import wire

#: Seconds without any word from the supervisor after which a verb gives up. Hooks may take long; hours they don't.
PATIENCE = 600.0


#: How often somebody is asked: a supervisor that dies may still have taken the call that was meant for the next one.
TRIES = 3


class Lost(Exception):
    """The supervisor went away before it answered."""


def fail(text: str) -> int:
    """Print an error as the runtime it stands for would."""
    posix.write(2, b"runphi: " + text.encode("utf-8", "replace") + b"\n")
    return 1


def restore_signals() -> None:
    """Undo what the interpreter ignores: a container that inherits an ignored SIGPIPE never ends in a pipeline."""
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)


class Link:
    """The connection to the supervisor: frames in, frames out."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.decoder = wire.Decoder()
        self.fds: list[int] = []

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Say something; to one who has gone, nothing: what it said before must still be read, and then its end."""
        data = wire.frame(kind, payload)
        while data:
            try:
                data = data[self.sock.send(data) :]
            except TimeoutError as exc:
                raise Lost from exc
            except OSError:
                return

    def fill(self) -> None:
        try:
            data, ancillary, _, _ = self.sock.recvmsg(65536, 1024, _socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as exc:
            raise Lost from exc
        except OSError as exc:
            raise Lost from exc
        for level, kind, payload in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                for i in range(0, len(payload) - 3, 4):
                    self.fds.append(int.from_bytes(payload[i : i + 4], sys.byteorder))
        if not data:
            raise Lost
        self.decoder.feed(data)

    def frame(self) -> tuple[bytes, bytes]:
        while True:
            taken = self.take()
            if taken is not None:
                return taken
            self.fill()

    def take(self) -> "tuple[bytes, bytes] | None":
        return self.decoder.take()


def connect(run_dir: bytes) -> "_socket.socket | None":
    """Connect to the supervisor if one answers."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    directory = -1
    path = run_dir + b"/" + wire.SOCKET.encode()
    try:
        if len(path) > 100:  # sun_path holds 108 bytes: go through the directory's descriptor
            directory = posix.open(run_dir, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
            path = b"/proc/self/fd/%d/%s" % (directory, wire.SOCKET.encode())
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    finally:
        if directory >= 0:
            posix.close(directory)
    sock.settimeout(PATIENCE)
    return sock


def request(sock: _socket.socket, argv: list[bytes]) -> None:
    """Send the call with descriptors 0, 1 and 2."""
    fds = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2))
    env = [key + b"=" + posix.environ[key] for key in wire.ENVIRONMENT if key in posix.environ]
    try:
        cwd = posix.getcwdb()
    except OSError:
        cwd = b"/"
    data = wire.request(cwd, env, argv)
    try:
        sent = sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
        while sent < len(data):
            sent += sock.send(data[sent:])
    except OSError as exc:
        raise Lost from exc


def spawn_stub(link: Link, payload: bytes) -> int:
    """Fork the init stub: the child waits for the supervisor's word, then execs with exactly its descriptors."""
    cwd, *argv = wire.unpack(payload)
    fds, link.fds = link.fds, []
    gate, release = posix.pipe()
    pid = posix.fork()
    if pid == 0:
        try:
            posix.close(release)
            posix.setsid()
            posix.chdir(cwd)
            go = posix.read(gate, 1)
            if go == b"g":
                # Move all out of the way of the low numbers first, then into place.
                high = [_dup_above(fd, 32) for fd in fds]
                for number, fd in enumerate(high):
                    posix.dup2(fd, number, True)
                posix.closerange(len(high), 1 << 30)
                restore_signals()
                posix.execve(argv[0], argv, {b"PATH": b"/usr/sbin:/usr/bin:/sbin:/bin"})
        finally:
            posix._exit(127)
    posix.close(gate)
    for fd in fds:
        posix.close(fd)
    try:
        link.send(wire.PID, b"%d" % pid)
        kind, payload = link.frame()
        if kind != wire.GO:
            raise Lost
        posix.write(release, b"g")
    finally:
        posix.close(release)
    return pid


def _dup_above(fd: int, lowest: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD, lowest)


def write_all(fd: int, data: bytes) -> None:
    """Write text of the answer; a reader that left ends it quietly, as with any tool."""
    while data:
        try:
            data = data[posix.write(fd, data) :]
        except OSError:
            return
