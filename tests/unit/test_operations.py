# SPDX-License-Identifier: Apache-2.0
"""What verbs do, without a command line and without a connection: turns, hooks, and who was faster."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import anyio
import pytest

from runphi_async.errors import BackendError, NotFoundError, SpecError, StateError, UnsupportedError
from runphi_async.host.cgroup import Limits
from runphi_async.operations.create import create
from runphi_async.operations.delete import delete
from runphi_async.operations.kill import kill
from runphi_async.operations.standstill import pause, resume
from runphi_async.operations.start import start
from runphi_async.operations.update import update
from runphi_async.record.lifecycle import Status
from tests.unit.consolekit import until
from tests.unit.containerkit import Forks, House, held, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[House]:
    async with held(tmp_path) as made:
        yield made


def hook(place: House, word: str, *, status: int = 0) -> list[dict[str, object]]:
    """A hook that leaves the state it was given in a file, and ends so."""
    return [{"path": "/bin/sh", "args": ["sh", "-c", f"cat >{place.path}/{word}; exit {status}"]}]


async def test_what_is_no_partition_is_left_to_the_ordinary_runtime(place: House) -> None:
    bundle = place.bundle("c1", annotations={"org.runphi.backend": "runc"})
    forks = Forks(place, "c1")
    assert await create(place.supervisor, forks, place.order("c1", bundle)) is None
    forks.close()
    assert place.supervisor.guests == {}


async def test_a_bundle_that_cannot_be_read(place: House) -> None:
    forks = Forks(place, "c1")
    with pytest.raises(SpecError, match="cannot read"):
        await create(place.supervisor, forks, place.order("c1", place.path / "nothing"))
    forks.close()


@pytest.mark.parametrize("status", [0, 1])
async def test_a_life_with_its_hooks(place: House, status: int) -> None:
    """Those behind start and delete may fail: it is too late for the container to care."""
    hooks = {
        "createRuntime": hook(place, "created"),
        "poststart": hook(place, "started", status=status),
        "poststop": hook(place, "stopped", status=status),
    }
    guest = await place.create("c1", hooks=hooks)
    await start(guest)
    await pause(guest)
    assert guest.record.status is Status.PAUSED
    with pytest.raises(StateError):
        await pause(guest)
    await resume(guest)
    with pytest.raises(StateError, match="not stopped: running"):
        await delete(place.supervisor, guest, force=False)
    await kill(guest, 9)
    await settled(guest)
    with pytest.raises(StateError, match="container not running"):
        await kill(guest, 9)
    await kill(guest, 9, whole=True)
    await delete(place.supervisor, guest, force=False)
    assert await place.said("c1") == 137
    told = [json.loads((place.path / word).read_text())["status"] for word in ("created", "started", "stopped")]
    assert told == ["creating", "running", "stopped"]
    assert place.supervisor.guests == {}


async def test_who_deletes_what_was_deleted_meanwhile(place: House) -> None:
    guest = await place.create("c1")
    async with guest.verb():
        deletions = [
            asyncio.ensure_future(delete(place.supervisor, guest, force=True)),
            asyncio.ensure_future(delete(place.supervisor, guest, force=True)),
        ]
        await settled(guest)  # a verb that hangs on it does not hold that up
        deletions.append(asyncio.ensure_future(delete(place.supervisor, guest, force=False)))
        await asyncio.sleep(0.01)
    *forced, last = await asyncio.gather(*deletions, return_exceptions=True)
    assert forced == [None, None]
    assert isinstance(last, NotFoundError)
    assert place.supervisor.guests == {}


async def test_verbs_on_one_container_take_turns_and_on_two_do_not(place: House) -> None:
    one, two = await place.create("c1"), await place.create("c2")
    async with one.verb() as held_by:
        assert held_by is one
        waiting = asyncio.ensure_future(start(one))
        await start(two)
        await asyncio.sleep(0.01)
        assert (one.record.status, two.record.status) == (Status.CREATED, Status.RUNNING)
    await waiting
    assert one.record.status is Status.RUNNING


async def test_a_start_that_fails_ends_the_container(place: House) -> None:
    guest = await place.create("c1", cmdline="fail-start")
    with pytest.raises(BackendError, match=r"cannot start the guest: .*fake: cannot be started"):
        await start(guest)
    assert guest.record.status is Status.STOPPED
    assert guest.running is None
    assert guest.console is None
    assert await place.said("c1") == guest.record.exit_code


async def test_limits_can_change_and_memory_cannot(place: House) -> None:
    linux = {"resources": {"memory": {"limit": 1 << 27}, "cpu": {"shares": 7}}, "namespaces": []}
    guest = await place.create("c1", linux=linux)
    applied = place.groups.limits
    assert applied[guest.record.cgroup].cpu_shares == 7
    for memory in (None, 0, 1 << 27):
        await update(guest, Limits(cpu_shares=9), memory)
    assert applied[guest.record.cgroup].cpu_shares == 9
    with pytest.raises(UnsupportedError, match="cannot change the memory"):
        await update(guest, Limits(cpu_shares=11), 1 << 26)
    assert applied[guest.record.cgroup].cpu_shares == 11
    await kill(guest, 9)
    await settled(guest)
    with pytest.raises(StateError, match="container not running"):
        await update(guest, Limits(cpu_shares=9), None)


async def test_a_verb_that_is_cancelled_leaves_its_turn(place: House) -> None:
    guest = await place.create("c1")
    with anyio.move_on_after(0.01):
        async with guest.verb():
            await anyio.sleep_forever()
    await start(guest)
    await until(lambda: guest.record.status is Status.RUNNING)
