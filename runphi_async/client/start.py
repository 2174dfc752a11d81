# SPDX-License-Identifier: Apache-2.0
"""Start the supervisor when no one answers on its socket; the rare part of the thin client.

One client starts it, the others wait on the lock. The new process belongs to nobody: its own session, no descriptor
of ours but the pipe on which it says that it is ready, or why it cannot be.
"""

import fcntl
import posix

from runphi_async import wire
from runphi_async.client import connection

#: Starts the supervisor again when it was killed: an engine that waits for a container's end calls no verb, so nobody
#: else would. A supervisor that ends by itself (0), says what is wrong (2), or met SIGTERM as it started (143), stays
#: ended.
#: The shell's own stderr is nobody's: it would say "Killed" into a pipe that nobody reads, and die of it.
GUARDIAN = """exec 3>&2 2>/dev/null
while :; do (exec "$@" 2>&3 3>&-); s=$?; case $s in 0|2|143) exit $s;; 1) sleep 1;; esac; exec 3>/dev/null; done"""
#: Where a checkout, an installation, or the environment that a wheel is in keeps the interpreter with the supervisor's
#: dependencies.
INTERPRETERS = ("/.venv/bin/python", "/venv/bin/python", "/bin/python")


def interpreter(home: str) -> "str | None":
    """Return the supervisor's interpreter below ``home``."""
    for name in INTERPRETERS:
        if exists(home + name):
            return home + name
    return None


def exists(path: str) -> bool:
    """Whether there is a file."""
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def make_directories(path: bytes) -> None:
    """Make a directory and those above it; what is there already stays as it is."""
    for end in [i for i, byte in enumerate(path) if byte == ord("/") and i > 0] + [len(path)]:
        try:
            posix.mkdir(path[:end], 0o700 if end == len(path) else 0o755)
        except FileExistsError:
            continue


def start(run_dir: bytes, home: str) -> "str | None":
    """Start a supervisor; return None when one answers, else the reason why not."""
    python = interpreter(home)
    if python is None:
        program = "quickstart" if exists(home + "/bin/quickstart") else "configure -a"
        return f"no Python environment at {home}/.venv; run {home}/bin/{program} once as root"
    try:
        make_directories(run_dir)
        lock = posix.open(run_dir + b"/start.lock", posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC, 0o600)
    except OSError as exc:
        shown = run_dir.decode("utf-8", "replace")
        return f"cannot use its directory {shown}: {exc.strerror}; run as root or set RUNPHI_RUN_DIR"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sock = connection.connect(run_dir)
        if sock is not None:  # another client was faster
            sock.close()
            return None
        return launch(python, run_dir, home)
    finally:
        posix.close(lock)


def launch(python: str, run_dir: bytes, home: str) -> "str | None":
    """Fork twice, exec the supervisor and wait for its word; None means ready."""
    ready, word = posix.pipe()
    pid = posix.fork()
    if pid == 0:
        try:
            posix.setsid()
            if posix.fork() == 0:
                detach(word)
                env = dict(posix.environ)
                env[b"RUNPHI_RUN_DIR"] = run_dir
                env.setdefault(b"PATH", b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
                for name in (b"TTRPC_ADDRESS", b"LD_LIBRARY_PATH", b"NOTIFY_SOCKET", b"LISTEN_FDS", b"LISTEN_PID"):
                    env.pop(name, None)
                daemon = [python, "-I", home + "/bin/runphid", "--ready-fd", "2", "--guarded"]
                connection.restore_signals()
                posix.execve("/bin/sh", ["/bin/sh", "-c", GUARDIAN, "runphid-guardian", *daemon], env)
        finally:
            posix._exit(127)
    posix.close(word)
    posix.waitpid(pid, 0)
    said = b""
    while not said.endswith(wire.MAGIC):
        data = posix.read(ready, 4096)
        if not data:
            break
        said += data
    posix.close(ready)
    if said.endswith(wire.MAGIC):
        return None
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"{home}/bin/runphid ended without a word"


def doctor_alone(home: str, run_dir: bytes, why: str, argv: list[bytes]) -> int:
    """Become ``runphi_async.commands.alone``: a machine whose supervisor cannot start is the one to be looked at.

    It is reached through the supervisor's own program, which every kind of installation has.
    """
    python = interpreter(home)
    if python is None:
        return connection.fail(f"cannot start the supervisor: {why}")
    env = dict(posix.environ)
    env[b"RUNPHI_RUN_DIR"] = run_dir
    env.setdefault(b"PATH", b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    connection.restore_signals()
    words = [python, "-I", home + "/bin/runphid", "--doctor", why]
    try:
        posix.execve(python, [word.encode("utf-8", "surrogateescape") for word in words] + argv, env)
    except OSError as exc:
        return connection.fail(f"cannot start the supervisor: {why}; and cannot run {python}: {exc.strerror}")


def detach(word: int) -> None:
    """Keep only /dev/null and the ready pipe (as stderr, so that even a traceback of the start arrives)."""
    null = posix.open("/dev/null", posix.O_RDWR)
    posix.dup2(word, 2)
    posix.dup2(null, 0)
    posix.dup2(null, 1)
    posix.closerange(3, 1 << 20)
    posix.chdir("/")
    posix.umask(0o022)
