# SPDX-License-Identifier: Apache-2.0
"""Hooks get exactly what the specification gives them, and cannot hang or leak."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING

import anyio
import pytest

from runphi_async.container.hooks import run_hooks
from runphi_async.errors import HookError
from runphi_async.oci.spec import Hook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

STATE = b'{"ociVersion":"1.0.2","id":"x"}'


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    fds, tasks = set(os.listdir("/proc/self/fd")), asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - {asyncio.current_task()} <= tasks
    assert set(os.listdir("/proc/self/fd")) <= fds
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def shell(script: str, *args: str, **fields: object) -> Hook:
    return Hook(path="/bin/sh", args=["sh", "-c", script, *args], **fields)  # type: ignore[arg-type]


async def test_what_a_hook_gets(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = """
        exec >"$1"; cat; echo; echo "$0" "$2"; pwd; env; ls /proc/self/fd; ps -o pid=,sid= -p $$
    """
    hook = shell(script, "argv-zero", str(out), "a b", env=["ONE=1", "TWO=a=b"])
    await run_hooks([hook], STATE, kind="prestart", cwd=str(tmp_path))
    lines = out.read_text().splitlines()
    assert lines[0] == STATE.decode()
    assert lines[1] == "argv-zero a b"
    assert lines[2] == str(tmp_path)
    env = set(lines[3:-5]) - {f"PWD={tmp_path}"}
    assert {line for line in env if not line.startswith(("_=", "SHLVL=", "OLDPWD="))} == {"ONE=1", "TWO=a=b"}
    assert lines[-5:-1] == ["0", "1", "2", "3"]  # 3 is ls reading the directory
    pid, session = lines[-1].split()
    assert pid == session


async def test_empty_environment_and_default_argv(tmp_path: Path) -> None:
    program = tmp_path / "hook"
    program.write_text(f'#!/bin/sh\ntr "\\\\0" "\\\\n" </proc/$$/environ >{tmp_path}/out; echo "$#" >>{tmp_path}/out\n')
    program.chmod(0o755)
    await run_hooks([Hook(path=str(program))], STATE, kind="poststop")
    assert (tmp_path / "out").read_text() == "0\n"


async def test_a_hook_need_not_read_its_stdin() -> None:
    big = json.dumps({"annotations": {"k": "v" * (1 << 20)}}).encode()
    await run_hooks([Hook(path="/bin/true"), shell("exec <&-; exit 0")], big, kind="createRuntime")


async def test_order_and_first_failure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hooks = [shell(f"echo {n} >>{out}; exit {n // 2}") for n in (0, 1, 2, 3)]
    with pytest.raises(HookError, match=r"createRuntime hook '/bin/sh': exit status 1$"):
        await run_hooks(hooks, STATE, kind="createRuntime")
    assert out.read_text() == "0\n1\n2\n"


@pytest.mark.parametrize("kind", ["poststart", "poststop"])
async def test_late_hooks_all_run(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    hooks = [shell(f"echo {n} >>{out}; echo bad {n} >&2; exit 1") for n in (0, 1)]
    with pytest.raises(HookError, match="bad 0"):
        await run_hooks(hooks, STATE, kind=kind)
    assert out.read_text() == "0\n1\n"


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (shell("echo first >&2; echo '  why  ' >&2; echo >&2; exit 7"), "'/bin/sh': exit status 7: why"),
        (shell("kill -9 $$"), "'/bin/sh': killed by SIGKILL"),
        (shell("kill -40 $$"), "'/bin/sh': killed by signal 40"),
        (shell("head -c 100000 /dev/zero | tr '\\0' x >&2; echo >&2; echo end >&2; exit 1"), ": end"),
        (Hook(path="bin/true"), "cannot run prestart hook 'bin/true': its path is not absolute"),
        (Hook(path="/none/hook"), "cannot run prestart hook '/none/hook': not found"),
        (Hook(path="/etc/passwd"), "cannot run prestart hook '/etc/passwd': Permission denied"),
        (Hook(path="/bin/true", timeout=0), "its timeout is 0"),
        (Hook(path="/bin/true", args=["a\0b"]), "cannot run prestart hook '/bin/true': embedded null byte"),
    ],
)
async def test_failures_are_named(hook: Hook, message: str) -> None:
    with pytest.raises(HookError) as caught:
        await run_hooks([hook], STATE, kind="prestart")
    assert message in caught.value.msg
    assert "no such file or directory" not in str(caught.value).lower()


async def test_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    hook = shell(f"trap '' TERM; sleep 100 & echo $$ $! >{pids}; echo stuck >&2; wait", timeout=1)
    start = time.monotonic()
    with pytest.raises(HookError, match=r"prestart hook '/bin/sh': not done after 1 s, killed: stuck"):
        await run_hooks([hook], STATE, kind="prestart")
    assert 0.9 < time.monotonic() - start < 4
    await gone(pids)


@pytest.mark.parametrize("by", ["asyncio", "anyio"])
async def test_cancel_kills_the_whole_group(tmp_path: Path, by: str) -> None:
    pids = tmp_path / "pids"
    hook = shell(f"sleep 100 & echo $$ $! >{pids}.new; mv {pids}.new {pids}; wait")

    async def until_started() -> None:
        while not pids.exists():
            await asyncio.sleep(0.01)

    if by == "asyncio":
        task = asyncio.create_task(run_hooks([hook], STATE, kind="prestart"))
        await until_started()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: run_hooks([hook], STATE, kind="prestart"))
            await until_started()
            group.cancel_scope.cancel()
    await gone(pids)


async def gone(pids: Path) -> None:
    for pid in pids.read_text().split():
        # the grandchild is reaped by init a moment later
        for _ in range(200):
            found = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
            if found in ("", "Z"):
                break
            await asyncio.sleep(0.01)
        assert found in ("", "Z"), f"{pid} is still {found}"


async def test_a_daemon_that_holds_stderr_makes_nobody_wait(tmp_path: Path) -> None:
    start = time.monotonic()
    await run_hooks([shell("sleep 3 & exit 0")], STATE, kind="poststart")
    assert time.monotonic() - start < 2


async def test_the_loop_goes_on_meanwhile() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await run_hooks([shell("sleep 0.3")], STATE, kind="prestart")
        group.cancel_scope.cancel()
    assert ticks > 5
