# SPDX-License-Identifier: Apache-2.0
"""The thin client: forwards one command line to the supervisor and acts out the answer.

Engines start it five to eight times per container, so it imports nothing but built-in modules (a test looks at
sys.modules) and parses nothing it need not: a verb costs little more than the bare interpreter. What must happen in
the caller's process tree happens here: forking the init stub, which the engine's shim then inherits, and becoming
the ordinary runtime for containers that are not partitions.
"""

# No `from __future__ import annotations`: it is one more file to load.
import _socket
import posix
import sys

from runphi_async import wire
from runphi_async.client.connection import (
    TRIES,
    Link,
    Lost,
    connect,
    fail,
    request,
    restore_signals,
    spawn_stub,
    write_all,
)

TYPE_CHECKING = False  # type checkers know the name; `typing` would be one more file to load
if TYPE_CHECKING:
    from collections.abc import Callable

#: Verbs on an existing container: they belong to the runtime that owns it. All else is the supervisor's to answer.
#: These and the repeatable ones are those of the supervisor's table (commands/verbs.py).
SHARED_VERBS = (
    b"start", b"state", b"kill", b"delete", b"pause", b"resume", b"ps", b"update", b"exec", b"checkpoint", b"restore",
)  # fmt: skip
HELP = (b"--help", b"-h")
#: Verbs that may simply be asked again when the supervisor died while it answered.
REPEATABLE = (
    b"state", b"list", b"ps", b"delete", b"kill", b"logs", b"attach", b"features", b"version", b"pause", b"resume",
    b"replay", b"reopen-logs",
)  # fmt: skip
#: The verb that goes on without a supervisor, as it says what is wrong with it; and seconds after which one is hung.
DOCTOR = b"doctor"
DOCTOR_PATIENCE = 120.0
GLOBAL_VALUES = (b"--root", b"--log", b"--log-format", b"--rootless", b"--criu", b"--config")


def verb_and_root(argv: list[bytes]) -> tuple[bytes, bytes, list[bytes]]:
    """Find the verb, the root directory and the words behind the verb; the supervisor does the real parsing."""
    root = wire.DEFAULT_ROOT.encode()
    i = 0
    while i < len(argv):
        word = argv[i]
        if not word.startswith(b"-"):
            return word, root, argv[i + 1 :]
        if word in GLOBAL_VALUES:
            if word == b"--root" and i + 1 < len(argv):
                root = argv[i + 1]
            i += 1
        elif word.startswith(b"--root="):
            root = word[7:]
        i += 1
    return b"", root, []


def is_ours(run_dir: bytes, root: bytes, words: list[bytes]) -> bool:
    """Whether any of the words names a container whose entry in the root directory is a link to our record."""
    for word in words:
        if b"/" not in word and word:
            try:
                if posix.readlink(root + b"/" + word).startswith(run_dir + b"/"):
                    return True
            except OSError:
                continue
    return False


def usable(path: bytes, home: str) -> bool:
    """Whether an ordinary runtime is there and not ourselves: runPHI may have taken runc's name since it was found."""
    try:
        found, own = posix.stat(path), posix.stat(home + "/bin/runphi")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino)


def become_runc(path: bytes, argv: list[bytes]) -> int:
    """Replace this process by the ordinary runtime; it sees exactly what the engine sent."""
    restore_signals()
    try:
        posix.execve(path, argv, posix.environ)
    except OSError as exc:
        shown = path.decode("utf-8", "replace")
        return fail(f"cannot run {shown}: {exc.strerror}; install runc or set `runc` in the configuration")


def converse(link: Link, argv: list[bytes], again: "Callable[[list[bytes]], Link | str]") -> int:
    """Act out the supervisor's frames until the exit status comes.

    :param again: asks the next supervisor, with further words behind the verb, when this one dies.
    """
    while True:
        kind, payload = link.frame()
        if kind == wire.EXIT:
            return int(payload)
        if kind == wire.OUT:
            write_all(1, payload)
        elif kind == wire.ERR:
            write_all(2, payload)
        elif kind == wire.RUNC:
            link.sock.close()
            return become_runc(payload, [b"runc", *argv])
        elif kind == wire.SPAWN:
            spawn_stub(link, payload)
        elif kind == wire.ATTACH:
            from runphi_async.client import attach

            return attach.attach(link, payload, again)
        else:
            raise Lost


def reach(run_dir: bytes, home: str) -> "_socket.socket | str":
    """Connect, starting a supervisor when none answers; a str is the reason why there is none."""
    sock = connect(run_dir)
    if sock is not None:
        return sock
    from runphi_async.client import start as client_start

    return client_start.start(run_dir, home) or connect(run_dir) or "it ended at once"


def doctor_alone(home: str, run_dir: bytes, why: str, argv: list[bytes]) -> int:
    """Become a doctor that needs no supervisor."""
    from runphi_async.client import start as client_start

    return client_start.doctor_alone(home, run_dir, why, argv)


def call_again(argv: list[bytes], more: list[bytes], run_dir: bytes, home: str) -> "Link | str":
    """Ask once more with further words behind the verb; a str is the reason why nobody can be asked."""
    sock = reach(run_dir, home)
    if isinstance(sock, str):
        return sock
    at = len(argv) - len(verb_and_root(argv)[2])
    request(sock, [*argv[:at], *more, *argv[at:]])
    return Link(sock)


def fill_standard_descriptors() -> None:
    """Put /dev/null where 0, 1 or 2 is closed: else our own socket would become the container's stdin."""
    for fd in (0, 1, 2):
        try:
            posix.fstat(fd)
        except OSError:
            posix.open("/dev/null", posix.O_RDWR)


def absolute(path: bytes) -> bytes:
    """Return a directory's name as the supervisor writes it: links are compared with it as text."""
    if not path.startswith(b"/"):
        path = posix.getcwdb() + b"/" + path
    return b"/" + b"/".join(word for word in path.split(b"/") if word and word != b".")


def main(home: str) -> int:
    """Run one command line; return the exit status."""
    fill_standard_descriptors()
    argv = [word.encode(sys.getfilesystemencoding(), "surrogateescape") for word in sys.argv[1:]]
    run_dir = absolute(posix.environ.get(b"RUNPHI_RUN_DIR") or wire.DEFAULT_RUN_DIR.encode())
    verb, root, words = verb_and_root(argv)
    if verb in SHARED_VERBS and words[:1] not in ([HELP[0]], [HELP[1]]) and not is_ours(run_dir, root, words):
        try:
            ordinary = posix.readlink(run_dir + b"/runc")
        except OSError:
            ordinary = b""  # no supervisor has been here yet to tell which runc: ask one
        if ordinary and usable(ordinary, home):
            return become_runc(ordinary, [b"runc", *argv])
    for attempt in range(1, TRIES + 1):
        sock = reach(run_dir, home)
        if isinstance(sock, str):
            if verb == DOCTOR:
                return doctor_alone(home, run_dir, sock, argv)
            return fail(f"cannot start the supervisor: {sock}")
        try:
            if verb == DOCTOR:
                sock.settimeout(DOCTOR_PATIENCE)
            request(sock, argv)
            return converse(Link(sock), argv, lambda more: call_again(argv, more, run_dir, home))
        except Lost:
            sock.close()
            if attempt == TRIES or verb not in REPEATABLE:
                break
        except KeyboardInterrupt:
            return 130
    if verb == DOCTOR:
        return doctor_alone(home, run_dir, "it ended or fell silent before it answered", argv)
    log = run_dir.decode("utf-8", "replace") + "/supervisor.log"
    return fail(f"the supervisor ended or fell silent before it answered; see {log} and try again")
