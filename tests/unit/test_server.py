# SPDX-License-Identifier: Apache-2.0
"""The server with real thin clients, and containers of the fake backend: whole lives, side by side and with mishaps."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import anyio
import pytest

from runphi_async import wire
from runphi_async.config.schema import Config
from runphi_async.operations import start
from runphi_async.record.lifecycle import Status
from runphi_async.supervisor.server import REST, Server
from runphi_async.testing.backend import FakeDriver
from runphi_async.testing.clock import FakeClock
from tests.checkout import ROOT
from tests.unit import clikit
from tests.unit.consolekit import until
from tests.unit.containerkit import PATIENCE, House, held, settled, state_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from runphi_async.container.registry import Supervisor

#: PR_SET_CHILD_SUBREAPER: orphans below this process become its children, as those of an engine's shim do. prctl(2)
_SUBREAPER: Final = 36


class Said(NamedTuple):
    """What a client ended with."""

    status: int
    out: str
    err: str


class Served:
    """A house with a server at its door."""

    def __init__(self, house: House) -> None:
        self.house = house

    async def call(self, *words: str) -> Said:
        """Have a real client ask. Its output goes to files: an init process that lives on has the same."""
        env = {**os.environ, "RUNPHI_RUN_DIR": str(self.house.path / "run")}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            client = await asyncio.create_subprocess_exec(
                ROOT / "bin" / "runphi", "--root", self.house.root, *words,
                stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=err, env=env,
            )  # fmt: skip
            with anyio.fail_after(PATIENCE):
                status = await client.wait()
            out.seek(0)
            err.seek(0)
            return Said(status, out.read().decode(), err.read().decode())

    async def create(self, name: str, **more: Any) -> Said:
        """Make a container."""
        return await self.call("create", "--bundle", str(self.house.bundle(name, **more)), name)

    async def status(self, name: str) -> str:
        """Return a container's status."""
        said = await self.call("state", name)
        assert said.status == 0, said.err
        return str(json.loads(said.out)["status"])

    async def told(self, pid: int) -> int:
        """Wait until an init process has ended, and return its status: what an engine's shim learns."""
        await until(lambda: state_of(pid) == "Z", "the end of the init process")
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(autouse=True)
def shim() -> Iterator[None]:
    """Be one: whatever a client forks is inherited."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SUBREAPER, 1, 0, 0, 0)
    yield
    prctl(_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with held(tmp_path) as house:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "run" / wire.SOCKET))
        listener.listen(100)
        listener.setblocking(False)
        over = asyncio.Event()

        async def serve() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Server(house.supervisor).serve, listener, tasks)
                await over.wait()
                tasks.cancel_scope.cancel()

        serving = asyncio.create_task(serve())
        yield Served(house)
        over.set()
        await serving
        listener.close()


async def test_a_whole_life(served: Served) -> None:
    assert await served.create("c1") == (0, "", "")
    assert await served.status("c1") == "created"
    pid = served.house.supervisor.guests["c1"].record.pid
    assert await served.call("start", "c1") == (0, "", "")
    assert await served.status("c1") == "running"
    refused = await served.call("delete", "c1")
    assert (refused.status, refused.out) == (1, "")
    assert "not stopped: running" in refused.err
    assert (await served.call("kill", "c1", "KILL")).status == 0
    assert await served.told(pid) == 137
    assert await served.status("c1") == "stopped"
    assert await served.call("delete", "c1") == (0, "", "")
    assert "does not exist" in (await served.call("state", "c1")).err


async def test_many_lives_side_by_side(served: Served) -> None:
    names = [f"c{number}" for number in range(8)]
    assert {said.status for said in await asyncio.gather(*(served.create(name) for name in names))} == {0}
    pids = {name: served.house.supervisor.guests[name].record.pid for name in names}
    assert len(set(pids.values())) == len(names)
    await asyncio.gather(*(served.call("start", name) for name in names))
    assert {guest.record.status for guest in served.house.supervisor.guests.values()} == {Status.RUNNING}
    listed = json.loads((await served.call("list", "--format", "json")).out)
    assert {row["id"]: row["pid"] for row in listed} == pids
    await asyncio.gather(*(served.call("delete", "--force", name) for name in names))
    assert [await served.told(pid) for pid in pids.values()] == [137] * len(names)
    assert served.house.supervisor.guests == {}


async def test_a_run(served: Served) -> None:
    """It waits for the guest, says its code and deletes it; its hooks are those of start and delete."""
    left = served.house.path / "left"
    hook = [{"path": "/bin/sh", "args": ["sh", "-c", f"echo $0 >>{left}", word]} for word in ("started", "stopped")]
    hooks = {"poststart": hook[:1], "poststop": hook[1:]}
    bundle = served.house.bundle("c1", hooks=hooks)
    running = asyncio.create_task(served.call("run", "--bundle", str(bundle), "c1"))
    guests = served.house.supervisor.guests
    await until(lambda: "c1" in guests and guests["c1"].record.status is Status.RUNNING, "a running container")
    pid = guests["c1"].record.pid
    assert (await served.call("kill", "c1", "KILL")).status == 0
    assert (await running).status == 137
    assert await served.told(pid) == 137
    assert left.read_text().split() == ["started", "stopped"]
    assert guests == {}


async def test_a_verb_that_fails_as_nobody_thought_of_is_one_clients_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: FakeDriver) -> None:
        raise ZeroDivisionError("nobody thought of this")

    with monkeypatch.context() as patched:
        patched.setattr(FakeDriver, "create", fails)
        said = await served.create("c1")
    assert (said.status, said.out) == (1, "")
    assert "internal error" in said.err
    assert served.house.supervisor.guests == {}
    assert (await served.create("c1")).status == 0
    await served.call("delete", "--force", "c1")


async def test_a_verb_that_waits_holds_up_its_own_container_only(served: Served) -> None:
    for name in ("c1", "c2"):
        assert (await served.create(name)).status == 0
    one = served.house.supervisor.guests["c1"]
    async with one.verb():
        waiting = asyncio.create_task(served.call("start", "c1"))
        assert (await served.call("start", "c2")).status == 0
        assert await served.status("c1") == "created"
        assert not waiting.done()
    assert (await waiting).status == 0
    for name in ("c1", "c2"):
        assert (await served.call("delete", "--force", name)).status == 0


async def test_a_client_that_is_killed_leaves_the_container_to_its_engine(served: Served) -> None:
    """Its init process lives on, as the engine has asked for it; whoever deletes it finds it."""
    assert (await served.create("c1")).status == 0
    guest = served.house.supervisor.guests["c1"]
    await start.start(guest)
    os.kill(guest.record.pid, 9)
    await settled(guest)
    assert guest.record.status is Status.STOPPED
    assert await served.told(guest.record.pid) == -9
    assert (await served.call("delete", "c1")).status == 0


class Crowded:
    """A listener of a process that has no descriptors left, for once."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.refused = 0

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        if not self.refused:
            self.refused += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._listener.accept()


async def test_without_descriptors_clients_wait(tmp_path: Path, supervisor: Supervisor, clock: FakeClock) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.setblocking(False)
        crowded = Crowded(listener)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Server(supervisor).serve, cast("socket.socket", crowded), tasks)
            caller.connect(str(tmp_path / "socket"))
            await until(lambda: crowded.refused, "the first try")
            await until(lambda: REST in clock.waits, "a rest")
            clock.advance(REST)
            with open("/dev/null") as null:
                socket.send_fds(caller, [wire.request(b"/", [], [b"version"])], [null.fileno()] * 3)
            caller.setblocking(False)
            answer = await asyncio.get_running_loop().sock_recv(caller, 1 << 16)
            assert answer[:1] == wire.OUT
            tasks.cancel_scope.cancel()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def supervisor(tmp_path: Path, clock: FakeClock) -> Supervisor:
    (tmp_path / "run").mkdir()
    return clikit.supervisor(Config(), tmp_path / "run", clock)


STUCK: Final = """
import anyio
from runphi_async.supervisor.daemon import leave_within

async def main():
    async with anyio.create_task_group() as tasks:
        leave_within(0.2)
        with anyio.CancelScope(shield=True):
            await anyio.sleep_forever()

anyio.run(main)
"""


def test_a_task_that_cannot_be_cancelled_does_not_keep_the_supervisor() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], cwd=ROOT, timeout=PATIENCE, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
