# SPDX-License-Identifier: Apache-2.0
"""Runs the OCI hooks of a container, at the points of its life cycle where the specification wants them.

Called by the life cycle's owner task of one container; a hook has no task of its own. Its stdin (the state)
and its stderr are anonymous files instead of pipes: a hook that never reads, or that leaves a daemon behind
holding its stderr, cannot make anybody wait. Its end is seen on a pidfd, and it is reaped only here, so its
process group can be killed without the risk of meeting another one under the same number; asyncio's own
subprocesses are reaped in a thread at a moment nobody knows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

import anyio

from runphi_async.container.document import document
from runphi_async.errors import HookError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.oci.spec import Hook
    from runphi_async.record.store import Record

#: kinds whose failure does not stop the hooks after it (runtime specification, "Lifecycle")
KEEP_GOING: Final = frozenset({"poststart", "poststop"})
#: how long a killed hook may take to be gone; longer only if the kernel is stuck
KILL_PATIENCE: Final = 5.0
#: how much of the end of stderr is searched for the last line
STDERR_TAIL: Final = 4096

log = logging.getLogger(__name__)


async def run_hooks(hooks: Sequence[Hook], state_json: bytes, *, kind: str, cwd: str = "/") -> None:
    """Run hooks one after the other.

    The first failure ends it with a HookError; of the kinds in KEEP_GOING the others still run, and the first
    error is raised after the last.

    :param state_json: what each hook gets on stdin.
    :param kind: name of the list in config.json, such as ``createRuntime``.
    :param cwd: directory the hooks run in, usually the bundle.
    """
    first: HookError | None = None
    for hook in hooks:
        try:
            await _run(hook, state_json, kind, cwd)
        except HookError as exc:
            if kind not in KEEP_GOING:
                raise
            log.warning("%s", exc)
            first = first or exc
    if first is not None:
        raise first


async def run_hooks_of(record: Record, hooks: Sequence[Hook], kind: str) -> None:
    """Run hooks of a container, in its bundle, with its state of now; see `run_hooks`."""
    await run_hooks(hooks, document(record).hook_bytes(), kind=kind, cwd=record.bundle)


async def _run(hook: Hook, state_json: bytes, kind: str, cwd: str) -> None:
    name = f"{kind} hook {hook.path!r}"
    if not os.path.isabs(hook.path):
        raise HookError(f"cannot run {name}: its path is not absolute", f"mend hooks.{kind} in config.json")
    if hook.timeout is not None and hook.timeout <= 0:
        raise HookError(f"cannot run {name}: its timeout is {hook.timeout}", "give seconds, more than 0")
    stderr = os.memfd_create("hook-stderr")
    try:
        try:
            process = _start(hook, state_json, stderr, cwd)
        except (OSError, ValueError) as exc:  # ValueError: a NUL character
            raise HookError(f"cannot run {name}: {_start_failure(exc)}") from exc
        try:
            with anyio.fail_after(hook.timeout):
                status = await _wait(process)
        except TimeoutError:
            raise HookError(
                f"cannot finish {name}: not done after {hook.timeout} s, killed{_last_line(stderr)}"
            ) from None
        if status:
            raise HookError(f"cannot finish {name}: {_describe(status)}{_last_line(stderr)}")
    finally:
        os.close(stderr)


def _start(hook: Hook, state_json: bytes, stderr: int, cwd: str) -> subprocess.Popen[bytes]:
    stdin = os.memfd_create("hook-state")
    try:
        os.write(stdin, state_json)
        os.lseek(stdin, 0, os.SEEK_SET)
        return subprocess.Popen(
            hook.args or [hook.path],
            executable=hook.path,
            env=dict(entry.partition("=")[::2] for entry in hook.env),
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=cwd,
            close_fds=True,
            start_new_session=True,
        )
    finally:
        os.close(stdin)


async def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a hook; when that is cut short, kill it and all it started."""
    pidfd = os.pidfd_open(process.pid)
    try:
        try:
            await anyio.wait_readable(pidfd)
        except BaseException:
            # not reaped yet, so the group's number is still its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with anyio.move_on_after(KILL_PATIENCE, shield=True):
                await anyio.wait_readable(pidfd)
            process.poll()
            raise
    finally:
        os.close(pidfd)
    return process.wait()


def _start_failure(exc: OSError | ValueError) -> str:
    # the system's own words for a missing file make podman report a missing command of the container
    if isinstance(exc, FileNotFoundError):
        return "not found, or its interpreter is not"
    return str(exc.strerror if isinstance(exc, OSError) else exc)


def _describe(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _last_line(stderr: int) -> str:
    size = os.fstat(stderr).st_size
    tail = os.pread(stderr, STDERR_TAIL, max(0, size - STDERR_TAIL))
    lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""
