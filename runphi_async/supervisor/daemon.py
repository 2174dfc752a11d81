# SPDX-License-Identifier: Apache-2.0
"""runphid: the one asyncio process that holds every guest and answers every verb.

It may die at any moment: guests go on, and the next one finds them before it answers, and adopts them while it does
(``runphi_async.container.recover``).
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import logging
import os
import signal
import socket
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import anyio

from backends.configured import load
from backends.detect import look_ahead
from runphi_async import wire
from runphi_async.aio import allocator, threads
from runphi_async.container.recover import Recovery
from runphi_async.container.registry import Supervisor
from runphi_async.errors import CgroupError, ConfigError, RunphiError
from runphi_async.host import cgroup
from runphi_async.host.files import write_atomically
from runphi_async.supervisor.server import Server

if TYPE_CHECKING:
    from runphi_async.config.schema import Config

log = logging.getLogger(__name__)

#: Clients that may wait to be accepted: engines start dozens of containers at once.
BACKLOG: Final = 512
#: First descriptor of systemd's socket activation. Source: sd_listen_fds(3).
_LISTEN_FD: Final = 3
#: Seconds that another supervisor may take to end when systemd starts one, and between two looks at its lock.
_TAKE_OVER: Final = 10.0
_AGAIN: Final = 0.02
#: Seconds that tasks may take to let go when the supervisor is told to end; less than the next one waits for its place.
LEAVING: Final = 5.0
#: Leaf cgroup of the supervisor: it must not sit in the cgroup of the engine's shim that happened to start it.
_CGROUP: Final = "runphid"


# Section: the process


def main(argv: list[str]) -> int:
    """Run the supervisor.

    :param argv: ``--ready-fd N``: write ``wire.MAGIC`` there when ready, or one line that says why not;
        ``--guarded``: our parent is a guardian of ours, which leaves the engine's cgroup with us;
        ``--doctor WHY ARGV…``: no supervisor can be had: answer `runphi doctor` without one.
    """
    if argv[:1] == ["--doctor"]:
        from runphi_async.commands import alone

        return alone.main(argv[1], argv[2:])
    ready = int(argv[argv.index("--ready-fd") + 1]) if "--ready-fd" in argv else -1
    run_dir = os.path.abspath(os.environ.get("RUNPHI_RUN_DIR") or wire.DEFAULT_RUN_DIR)
    try:
        os.makedirs(run_dir, mode=0o700, exist_ok=True)
        os.chmod(run_dir, 0o700)
        config = load(os.environ.get("RUNPHI_CONFIG"))
        group = _group(config)
        starting = _open_lock(run_dir, "supervisor.starting")
        fcntl.flock(starting, fcntl.LOCK_EX)  # whoever holds it will listen in a moment, or end
        activated = _has_socket()
        if not _serve_alone(run_dir):
            if not activated:
                _say(ready, wire.MAGIC)  # another one listens: whoever waits may connect
                return 0
            _take_over(run_dir)
        _set_up_log(config, run_dir)
        if not activated:  # systemd gave us our own place already
            _detach(guarded="--guarded" in argv)
        listener = _listen(run_dir, group, activated=activated)
        os.close(starting)
        write_atomically(os.path.join(run_dir, "supervisor.pid"), b"%d\n" % os.getpid(), 0o644)
        _publish_runc(config, run_dir)
        if group >= 0:
            _admit(run_dir, group)
    except (RunphiError, OSError) as exc:
        _say(ready, f"{exc}\n".encode())
        return 2
    allocator.keep_blocks()
    anyio.run(_main, config, run_dir, listener, ready, group)
    return threads.let_go(0)


def _open_lock(run_dir: str, name: str) -> int:
    return os.open(os.path.join(run_dir, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _serve_alone(run_dir: str) -> bool:
    """Take the lock of the run directory for as long as we live; False when another supervisor has it."""
    fd = _open_lock(run_dir, "supervisor.lock")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    return True


def _take_over(run_dir: str) -> None:
    """End the supervisor that serves, and wait for its place: systemd's socket lies where its own was, so that nobody
    reaches it any more. Guests go on.

    :raises RunphiError: it does not end.
    """
    path = os.path.join(run_dir, "supervisor.pid")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path) as file:  # it ends already
        os.kill(int(file.read()), signal.SIGTERM)
    deadline = time.monotonic() + _TAKE_OVER
    while not _serve_alone(run_dir):
        if time.monotonic() > deadline:
            raise RunphiError("cannot take over from another supervisor: it does not end", f"kill -9 $(cat {path})")
        time.sleep(_AGAIN)


def _set_up_log(config: Config, run_dir: str) -> None:
    handler = logging.FileHandler(config.supervisor.log_file or os.path.join(run_dir, "supervisor.log"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=config.supervisor.log_level.upper(), handlers=[handler], force=True)


def _detach(*, guarded: bool) -> None:
    """Leave what the starting engine gave us: cgroup, out-of-memory rank, working directory."""
    try:
        cgroup.leave(_CGROUP)
        if guarded:
            cgroup.Cgroup("/" + _CGROUP, cgroup.hierarchies()).join(os.getppid())
    except (CgroupError, OSError) as exc:
        log.warning("cannot leave the caller's cgroup: %s", exc)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-500" if os.geteuid() == 0 else "0")
    except OSError as exc:
        log.debug("cannot protect the supervisor from the out-of-memory killer: %s", exc)
    os.chdir("/")


def _group(config: Config) -> int:
    """Return the number of the group that may use consoles, -1 for none."""
    name = config.supervisor.group
    if not name:
        return -1
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(
            f"supervisor.group: there is no group {name!r}", f"groupadd --system {name} makes it"
        ) from None


def _admit(run_dir: str, group: int) -> None:
    """Let the group reach the socket through the run directory, and nothing else there: it cannot list it."""
    for name in os.listdir(run_dir):
        path = os.path.join(run_dir, name)
        if name != wire.SOCKET and stat.S_ISREG(os.lstat(path).st_mode):
            os.chmod(path, 0o600)
    os.chown(run_dir, -1, group)
    os.chmod(run_dir, 0o710)


def _has_socket() -> bool:
    """Whether systemd started us and gave us the socket to listen on: sd_listen_fds(3)."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1"


def _listen(run_dir: str, group: int, *, activated: bool) -> socket.socket:
    if activated:
        sock = socket.socket(fileno=_LISTEN_FD)
        os.set_inheritable(_LISTEN_FD, False)
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Bound aside and renamed: a client never meets a socket that does not listen yet.
            temporary = f"{wire.SOCKET}.{os.getpid()}"
            sock.bind(f"/proc/self/fd/{directory}/{temporary}")
            if group >= 0:
                os.chown(temporary, -1, group, dir_fd=directory)
            os.chmod(temporary, 0o600 if group < 0 else 0o660, dir_fd=directory)
            sock.listen(BACKLOG)
            os.rename(temporary, wire.SOCKET, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(directory)
    sock.setblocking(False)
    return sock


def _publish_runc(config: Config, run_dir: str) -> None:
    """Leave the path of the ordinary runtime where the thin client finds it without asking anybody."""
    runc = config.real_runc()
    link = os.path.join(run_dir, "runc")
    if runc is None:
        if os.path.lexists(link):
            os.unlink(link)
        return
    os.symlink(runc, link + ".new") if not os.path.lexists(link + ".new") else None
    os.replace(link + ".new", link)


def _say(fd: int, text: bytes) -> None:
    if fd < 0:
        sys.stderr.write(text.decode("utf-8", "replace"))
        return
    try:
        os.write(fd, text)
    except OSError:
        return  # nobody waits: a guardian started us


async def _main(config: Config, run_dir: str, listener: socket.socket, ready: int, group: int) -> None:
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(config, run_dir, tasks)
        supervisor.group = group
        if supervisor.hypervisor is not None:
            tasks.start_soon(supervisor.hypervisor.run, name="hypervisor console")
        recovery = Recovery(supervisor)
        await recovery.find()
        tasks.start_soon(recovery.adopt, name="recovery")
        _ready(ready)
        tasks.start_soon(Server(supervisor).serve, listener, tasks)
        tasks.start_soon(look_ahead, supervisor.detection, name="look ahead")
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number is signal.SIGHUP:
                    supervisor.reopen_logs()
                    continue
                log.info("ends on %s; guests go on", number.name)
                break
        late = leave_within(LEAVING)
        tasks.cancel_scope.cancel()
    late.cancel()


def leave_within(seconds: float) -> threading.Timer:
    """End the process by then, whatever a task still waits for: a step of an end that hangs cannot be cancelled.

    Guests go on, and the next supervisor takes them over. Cancelled, what is returned does nothing.
    """
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()
    return timer


def _ready(fd: int) -> None:
    _say_ready_to_systemd()
    if fd < 0:
        return
    _say(fd, wire.MAGIC)
    if fd == 2:  # it was the starter's pipe: from here on stderr is nobody's
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 2)
        os.close(null)
    else:
        os.close(fd)


def _say_ready_to_systemd() -> None:
    """Tell systemd that the service is up. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(b"READY=1", "\0" + address[1:] if address[0] == "@" else address)
            except OSError as exc:
                log.warning("cannot notify systemd: %s", exc.strerror)
