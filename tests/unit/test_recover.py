# SPDX-License-Identifier: Apache-2.0
"""A supervisor that starts: whatever one record is like, all others are found, and the sick one can be deleted."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, NoReturn

import anyio
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends import detect
from runphi_async.config.schema import Config, Log
from runphi_async.container import recover
from runphi_async.container.recover import Recovery
from runphi_async.container.registry import Supervisor
from runphi_async.container.running import Running
from runphi_async.errors import StateError
from runphi_async.host.files import boot_id
from runphi_async.lifeline import stub
from runphi_async.partition.spec import PartitionPlan
from runphi_async.record.lifecycle import Status
from runphi_async.record.store import ADOPTABLE, MADE, STATE, VERSION, Record, Store
from runphi_async.testing.backend import FakeBackend, FakeDriver
from tests.unit.clikit import answer
from tests.unit.containerkit import house

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backends.base import Told


def record(path: Path, name: str, **fields: object) -> Record:
    store = Store(str(path / "run"))
    os.makedirs(store.run_dir, exist_ok=True)
    root = str(path / "root")
    assert store.claim(name, root) == name
    found = Record(
        id=name,
        name=name,
        root=root,
        bundle=str(path),
        rootfs=str(path),
        backend="qemu",
        status=Status.STOPPED,
        created=1.0,
        boot_id=boot_id(),
        exit_code=3,
        **{"version": VERSION, **fields},  # type: ignore[arg-type]
    )
    store.save(found)
    store.save_made(found)
    return found


@asynccontextmanager
async def started(path: Path) -> AsyncIterator[Supervisor]:
    """A supervisor that has recovered all it found."""
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(Config(log=Log(dir=str(path / "log"))), str(path / "run"), tasks)
        recovery = Recovery(supervisor)
        await recovery.find()
        await recovery.adopt()
        yield supervisor
        tasks.cancel_scope.cancel()


async def check(path: Path, sick: str = "sick") -> None:
    """Recover what is there: the sound ones are as they were, the sick one can be deleted."""
    async with started(path) as supervisor:
        for name in ("before", "zebra"):
            assert supervisor.guests[name].record.exit_code == 3
        if sick in supervisor.guests:
            call = await answer(supervisor, "--root", str(path / "root"), "delete", "--force", sick)
            assert (call.status, call.frames[:-1]) == (0, [])
        assert not (path / "run" / sick).exists()
        assert not os.path.lexists(path / "root" / sick) or sick not in supervisor.guests


FIELDS = msgspec.json.decode(msgspec.json.encode(Record(
    id="sick", name="sick", root="/r", bundle="/b", rootfs="/r", backend="qemu", status=Status.RUNNING, created=1.0,
    boot_id="x", pid=7, cgroup="/sick", plan=msgspec.Raw(b'{"kind":"linux","arch":"x86_64","vcpus":1,"pins":[]}'),
)))  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CHANGES = st.dictionaries(
    st.sampled_from([key for key in FIELDS if key not in ("name", "root", "cgroup")]), JSON, max_size=3
)
NAMES = st.sampled_from(
    [STATE, MADE, "ctl.log", "ev.log", "pidfile", "vmm.pid", "vmm.status", "rules.json", "net.json"]
)


@settings(max_examples=60, deadline=None)
@given(changes=CHANGES, junk=st.dictionaries(NAMES, st.binary(max_size=60), max_size=3), cut=st.integers(0, 40))
@example(changes={"pid": 1 << 70}, junk={}, cut=0)
@example(changes={"plan": "x"}, junk={}, cut=0)
@example(changes={"backend": "nosuch"}, junk={}, cut=0)
@example(changes={}, junk={STATE: b"{", MADE: b"{"}, cut=0)
@example(changes={}, junk={STATE: b"\xff", "pidfile": b"9" * 60}, cut=0)
def test_one_sick_record_hides_no_other(changes: dict[str, object], junk: dict[str, bytes], cut: int) -> None:
    async def run() -> None:
        with TemporaryDirectory() as made:
            path = Path(made)
            for name in ("before", "sick", "zebra"):
                record(path, name)
            own = {"root": str(path / "root"), "bundle": str(path), "boot_id": boot_id()}
            directory = path / "run" / "sick"
            text = msgspec.json.encode({**FIELDS, **own, **changes})
            (directory / STATE).write_bytes(text[: len(text) - cut])
            for name, data in junk.items():
                (directory / name).write_bytes(data)
            await check(path)

    anyio.run(run)


async def test_what_stands_in_a_records_place(tmp_path: Path) -> None:
    for name in ("before", "sick", "zebra"):
        record(tmp_path, name)
    directory = tmp_path / "run" / "sick"
    for name in (STATE, MADE, "events.jsonl"):
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)
    with anyio.fail_after(20):
        await check(tmp_path)


async def test_a_guest_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """Its init process has other descriptors: to take them would give an exit code to the guest, or eat one."""
    for name in ("before", "zebra"):
        record(tmp_path, name)
    with subprocess.Popen(["sleep", "1000"]) as process:
        started_at = int(Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
        older = record(tmp_path, "older", pid=process.pid, pid_start=started_at, version=min(ADOPTABLE) - 1)
        older.status = Status.RUNNING
        Store(str(tmp_path / "run")).save(older)
        async with started(tmp_path) as supervisor:
            guest = supervisor.guests["older"]
            assert (str(guest.record.status), process.poll()) == ("running", None)
            root = str(tmp_path / "root")
            call = await answer(supervisor, "--root", root, "pause", "older")
            assert "cannot drive the guest: another version of runPHI made it" in call.said(b"e")
            call = await answer(supervisor, "--root", root, "delete", "--force", "older")
            assert call.status == 0
            assert process.wait(5) == -9
        assert sorted(os.listdir(tmp_path / "run")) == ["before", "zebra"]


async def test_an_error_nobody_thought_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that lives, and a backend that fails with whatever it likes: killed and deleted all the same."""
    for name in ("before", "zebra"):
        record(tmp_path, name)
    with subprocess.Popen(["sleep", "1000"]) as process:
        started_at = int(Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
        found = record(tmp_path, "sick", pid=process.pid, pid_start=started_at)
        found.status = Status.RUNNING
        Store(str(tmp_path / "run")).save(found)

        async def fails(*_: object) -> None:
            raise ZeroDivisionError("nobody thought of this")

        monkeypatch.setattr(detect, "backend", fails)
        async with started(tmp_path) as supervisor:
            sick = supervisor.guests["sick"]
            assert str(sick.record.status) == "running"
            assert process.poll() is None
            root = str(tmp_path / "root")
            call = await answer(supervisor, "--root", root, "pause", "sick")
            assert "cannot drive the guest: nobody thought of this" in call.said(b"e")
            call = await answer(supervisor, "--root", root, "kill", "sick", "KILL")
            assert call.status == 0
            assert str(sick.record.status) == "stopped"
            assert process.wait(5) == -9
            call = await answer(supervisor, "--root", root, "delete", "sick")
            assert call.status == 0
        assert sorted(os.listdir(tmp_path / "run")) == ["before", "zebra"]


def test_a_damaged_record_is_no_missing_one(tmp_path: Path) -> None:
    """It was taken for a create that had never ended, and removed: its QEMU went on, and nobody knew of it."""
    record(tmp_path, "sick")
    store = Store(str(tmp_path / "run"))
    (tmp_path / "run" / "sick" / STATE).write_bytes(b"{")
    with pytest.raises(StateError, match=r"cannot read state\.json of the record sick"):
        store.load("sick")
    assert store.load_made("sick") is not None
    assert store.load("never") is None


@pytest.mark.parametrize(
    "fields",
    [{"name": "../other"}, {"cgroup": "/"}, {"cgroup": "/x/.."}, {"root": "x"}, {"id": "../x"}, {"root": "/\0"}],
)
def test_a_record_that_leads_elsewhere_is_damaged(tmp_path: Path, fields: dict[str, str]) -> None:
    found = record(tmp_path, "sick")
    text = msgspec.json.encode(msgspec.structs.asdict(found) | fields | {"plan": None})
    (tmp_path / "run" / "sick" / STATE).write_bytes(text)
    with pytest.raises(StateError):
        Store(str(tmp_path / "run")).load("sick")


async def test_a_guest_that_does_not_answer_keeps_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adopting one took up to a minute when its QEMU was stuck, and every verb on every other waited for it."""
    answers = anyio.Event()

    class Stuck(FakeDriver):
        async def adopt(self, told: Told) -> bool | None:
            if os.path.basename(self.directory) == "stuck":
                await answers.wait()
            return await super().adopt(told)

        def __init__(self, plan: PartitionPlan, directory: str) -> None:
            super().__init__(plan, directory)
            self.directory = directory

    def recall(self: FakeBackend, plan: msgspec.Raw, directory: str) -> Stuck:
        return Stuck(msgspec.json.decode(plan, type=PartitionPlan), directory)

    monkeypatch.setattr(FakeBackend, "recall", recall)
    monkeypatch.setenv(detect.TESTING_VARIABLE, "1")
    async with house(tmp_path) as place:
        for name in ("stuck", "well"):
            await place.leave(name)
        supervisor, recovery = place.supervisor, Recovery(place.supervisor)
        await recovery.find()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(recovery.adopt)
            with anyio.fail_after(10):
                assert (await answer(supervisor, "--root", place.root, "pause", "well")).status == 0
            waiting = asyncio.create_task(answer(supervisor, "--root", place.root, "pause", "stuck"))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            assert not supervisor.recovered.is_set()
            answers.set()
            assert (await waiting).status == 0
            with anyio.fail_after(10):
                await supervisor.recovered.wait()
            for name in ("stuck", "well"):
                assert supervisor.guests[name].record.status is Status.PAUSED
                call = await answer(supervisor, "--root", place.root, "delete", "--force", name)
                assert (call.status, call.frames[:-1]) == (0, [])
                assert await place.said(name) == 137


@pytest.mark.parametrize(
    ("status", "runs", "found"),
    [
        (Status.STARTING, True, Status.RUNNING),
        (Status.STARTING, False, Status.CREATED),
        (Status.RUNNING, True, Status.RUNNING),
        # as a version left it that had no "starting"
        (Status.RUNNING, False, Status.CREATED),
        (Status.CREATED, True, Status.RUNNING),
        (Status.PAUSED, True, Status.PAUSED),
    ],
)
async def test_a_record_that_lags_behind_its_guest(
    tmp_path: Path, status: Status, runs: bool, found: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(detect.TESTING_VARIABLE, "1")
    async with house(tmp_path) as place:
        await place.leave("c1", status, started=runs)
        recovery = Recovery(place.supervisor)
        await recovery.find()
        await recovery.adopt()
        guest = place.supervisor.guests["c1"]
        assert guest.record.status is found
        assert guest.record.booted == (found is not Status.CREATED)
        if found is Status.CREATED:
            assert (await answer(place.supervisor, "--root", place.root, "start", "c1")).status == 0
        saved = place.supervisor.store.load("c1")
        assert saved is not None
        assert saved.status is guest.record.status
        call = await answer(place.supervisor, "--root", place.root, "delete", "--force", "c1")
        assert (call.status, call.frames[:-1]) == (0, [])
        assert await place.said("c1") == 137


# Section: taking one over, step by step


async def fails(*_: object, **__: object) -> NoReturn:
    raise ZeroDivisionError("nobody thought of this")


def fails_at_once(*_: object, **__: object) -> NoReturn:
    raise ZeroDivisionError("nobody thought of this")


adopt = FakeDriver.adopt


async def does_not_answer(self: FakeDriver, told: Told) -> bool | None:
    """It is watched from now on, and does not say whether it runs."""
    await adopt(self, told)
    raise ZeroDivisionError("nobody thought of this")


#: where a supervisor that takes a guest over may fail, whether it drives it nevertheless
STEPS: Final = [
    (detect, "backend", fails, False),
    (FakeBackend, "recall", fails_at_once, False),
    (recover, "take_back", fails_at_once, False),
    (recover, "assemble", fails, False),
    (Supervisor, "enliven", fails, False),
    (Running, "begin", fails_at_once, False),
    (FakeDriver, "adopt", does_not_answer, True),
]


@pytest.mark.parametrize(("where", "name", "failing", "driven"), STEPS, ids=[step[1] for step in STEPS])
async def test_whichever_step_fails_it_can_be_killed_and_deleted(
    tmp_path: Path, where: object, name: str, failing: object, driven: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as place:
        await place.leave("c1")
        with monkeypatch.context() as broken:
            broken.setattr(where, name, failing)
            recovery = Recovery(place.supervisor)
            await recovery.find()
            await recovery.adopt()
        guest = place.supervisor.guests["c1"]
        assert guest.record.status is Status.RUNNING
        assert (guest.sick is None) == driven
        paused = await answer(place.supervisor, "--root", place.root, "pause", "c1")
        assert paused.status == (0 if driven else 1)
        if not driven:
            assert "cannot drive the guest: nobody thought of this; delete --force ends it" in paused.said(b"e")
        assert (await answer(place.supervisor, "--root", place.root, "kill", "c1", "KILL")).status == 0
        with anyio.fail_after(20):
            await guest.settled.wait()
        assert str(guest.record.status) == "stopped"
        assert await place.said("c1") in (guest.record.exit_code, -9)
        assert (await answer(place.supervisor, "--root", place.root, "delete", "c1")).status == 0
        assert os.listdir(tmp_path / "run") == []


async def test_an_end_that_was_asked_for_goes_on(tmp_path: Path) -> None:
    """The supervisor died between writing down that somebody has killed the guest and doing it."""
    async with house(tmp_path) as place:
        await place.leave("c1")
        left = place.supervisor.store.load("c1")
        assert left is not None
        left.killed_by = 15
        place.supervisor.store.save(left)
        recovery = Recovery(place.supervisor)
        await recovery.find()
        await recovery.adopt()
        assert await place.said("c1") == 128 + 15


@pytest.mark.parametrize("told", [False, True], ids=["not told", "told"])
async def test_the_init_process_of_an_ended_guest_is_told_again(tmp_path: Path, told: bool) -> None:
    async with house(tmp_path) as place:
        await place.leave("c1")
        left = place.supervisor.store.load("c1")
        assert left is not None
        left.status, left.exit_code = Status.STOPPED, 42
        place.supervisor.store.save(left)
        os.kill(stub.read_pid(str(tmp_path / "run" / "c1")) or -1, 9)
        if told:
            os.kill(left.pid, 9)
            assert await place.said("c1") == -9
        recovery = Recovery(place.supervisor)
        await recovery.find()
        await recovery.adopt()
        guest = place.supervisor.guests["c1"]
        assert guest.settled.is_set()
        if not told:
            assert await place.said("c1") == 42
        assert (await answer(place.supervisor, "--root", place.root, "delete", "c1")).status == 0


async def test_what_was_in_the_making_is_removed(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.leave("c1", Status.CREATING, started=False)
        recovery = Recovery(place.supervisor)
        await recovery.find()
        await recovery.adopt()
        assert await place.said("c1") == -9
        assert place.supervisor.guests == {}
        assert os.listdir(tmp_path / "run") == []
