# SPDX-License-Identifier: Apache-2.0
"""The Xen driver on a fake Xen: the suite of all drivers, and what goes wrong only with Xen."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sys
import termios
import uuid
from typing import TYPE_CHECKING

import pytest

from backends.base import Level
from backends.xen import examine, settings
from backends.xen.backend import XenBackend
from backends.xen.hypervisor import Hypervisor
from backends.xen.plan import XenPlan
from backends.xen.words import Words
from backends.xen.xl import Xl
from runphi_async.errors import BackendError, PlanError
from runphi_async.host.processes import Process
from runphi_async.partition.spec import GuestKind, GuestSpec, ProcessSpec
from runphi_async.testing.conformance import WatchesByTask
from runphi_async.testing.life import PATIENCE, Life, not_thought_of
from runphi_async.testing.xen import FakeXen
from tests.unit.configkit import config as configured
from tests.unit.consolekit import until
from tests.unit.imagekit import pvh_image
from tests.unit.wishkit import annotated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backends.base import Backend
    from backends.xen.driver import XenDriver


#: An ELF of 64 bits for x86 with a PVH note and nothing to run: the fake looks no further.
def image() -> bytes:
    return pvh_image()


@pytest.fixture
async def xen(tmp_path: Path) -> AsyncIterator[FakeXen]:
    directory = tmp_path / "xen"
    directory.mkdir()
    async with FakeXen(directory) as fake:
        yield fake


@pytest.fixture
def inmate(tmp_path: Path) -> str:
    path = tmp_path / "inmate.elf"
    path.write_bytes(image())
    return str(path)


@pytest.fixture
def spec(inmate: str, tmp_path: Path) -> GuestSpec:
    return GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs=str(tmp_path), inmate=inmate)


def backend_of(xen: FakeXen, tmp_path: Path, **more: object) -> XenBackend:
    section = settings.Xen(
        xl=xen.xl,
        xenstore=xen.socket,
        libxenctrl=False,
        image_dir=str(tmp_path / "images"),
        **more,  # type: ignore[arg-type]
    )
    return XenBackend(configured(section))


class TestOnFakeXen(WatchesByTask):
    killed = "destroyed from outside"

    @pytest.fixture
    async def backend(self, xen: FakeXen, tmp_path: Path) -> Backend:
        self.xen = xen
        return backend_of(xen, tmp_path)

    @pytest.fixture
    def spec(self, inmate: str, tmp_path: Path) -> GuestSpec:
        return GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs=str(tmp_path), inmate=inmate)

    async def machine_made(self, life: Life) -> None:
        assert self.xen.domains

    async def kill_machine(self, life: Life) -> None:
        for domid in list(self.xen.domains):
            await self.xen.destroy(domid)

    async def machine_ended(self, life: Life) -> None:
        await until(lambda: all(domain.reason is not None for domain in self.xen.domains.values()))

    async def break_watch(self, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Hypervisor, "look", not_thought_of)
        self.xen.put("@releaseDomain", b"")

    async def test_a_watch_that_fails_ends_the_guest(self, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
        await super().test_a_watch_that_fails_ends_the_guest(life, monkeypatch)
        assert self.xen.domains == {}, "a domain that nobody watches must not go on"

    async def taken(self, life: Life) -> None:
        await until(lambda: fcntl.ioctl(life.input, termios.FIONREAD, bytes(4)) == bytes(4))

    async def test_the_machine_is_the_stubs_child(self, life: Life) -> None:
        assert life.driver.command == ()
        life.kill()
        await life.end()
        assert self.xen.domains == {}


async def made(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> Life:
    directory = tmp_path / "record"
    directory.mkdir()
    life = Life(backend_of(xen, tmp_path), directory)
    await life.create(spec)
    return life


async def prepared(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> XenDriver:
    """A driver before its first step, with what `create` puts into the record."""
    backend = backend_of(xen, tmp_path)
    directory = tmp_path / "alone"
    directory.mkdir()
    for name in ("con.in", "con.out"):
        os.mkfifo(directory / name)
    return backend.driver(await backend.plan(spec), str(directory))


async def test_a_failed_create_is_put_into_words(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    driver = await prepared(xen, tmp_path, spec)
    xen.fail["create"] = (3, "xc: error: panic: xg_dom_boot.c:119: xc_dom_boot_mem_init: can't allocate low memory\n")
    with pytest.raises(BackendError, match="cannot create the domain: Xen has not enough free memory"):
        await driver.create()
    await driver.bury()
    assert xen.domains == {}


async def test_a_cancelled_create_leaves_no_domain(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    driver = await prepared(xen, tmp_path, spec)
    xen.late.add("create")
    task = asyncio.ensure_future(driver.create())
    await until(lambda: xen.domains)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert xen.domains, "xl does not clean up behind itself"
    await driver.bury()
    assert xen.domains == {}


async def test_a_create_that_says_yes_and_makes_nothing(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    driver = await prepared(xen, tmp_path, spec)
    xen.fail["create"] = (0, "")
    with pytest.raises(BackendError, match="Xen knows of none that waits"):
        await driver.create()
    await driver.bury()


async def test_a_guest_nobody_adopts_is_buried(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    life = await made(xen, tmp_path, spec)
    assert xen.domains
    await life.supervisor_dies()
    assert xen.domains, "guests outlive a supervisor"
    await life.backend.recall(life.memory, str(life.directory)).bury()
    assert xen.domains == {}
    life.driver = life.backend.recall(life.memory, str(life.directory))
    life.connect()
    assert await life.driver.adopt(life.told()) is None
    await life.close()


async def test_pauses_of_others_do_not_hold_a_guest_back(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    life = await made(xen, tmp_path, spec)
    (domain,) = xen.domains.values()
    domain.pauses = 3
    await life.start()
    await life.prompt()
    await life.driver.suspend()
    await life.driver.suspend()
    assert domain.pauses == 1, "a domain that stands still is not paused again"
    await life.driver.resume()
    assert domain.pauses == 0
    await life.close()


async def test_a_pause_that_does_nothing_is_an_error(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    life = await made(xen, tmp_path, spec)
    await life.start()
    xen.fail["pause"] = (0, "libxl: error: libxl_domain.c:630: Domain 1:Pausing domain: Invalid argument\n")
    with pytest.raises(BackendError, match="cannot pause the domain: it goes on"):
        await life.driver.suspend()
    del xen.fail["pause"]
    await life.close()


async def test_a_guest_that_listens_is_asked(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    life = await made(xen, tmp_path, spec)
    await life.start()
    await life.prompt()
    asked = life.driver.abilities.stops
    assert asked is not None
    assert not await asked.stop()
    (domain,) = xen.domains.values()
    xen.put(f"/local/domain/{domain.domid}/control/feature-poweroff", b"1")
    assert await asked.stop()
    assert (await life.end()).code == 0
    assert ["shutdown", str(domain.domid)] in xen.calls
    await life.close()


async def test_exit_codes_that_no_reason_can_carry(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    life = await made(xen, tmp_path, spec)
    await life.start()
    await life.prompt()
    life.type(b"exit 3\n")
    verdict = await life.end()
    assert verdict == (3, "exited with 3")
    await life.close()


async def test_a_reboot_of_the_machine_is_no_other_guest(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    """Domains with our number but not our uuid are strangers."""
    life = await made(xen, tmp_path, spec)
    (domain,) = xen.domains.values()
    await life.supervisor_dies()
    domain.uuid = "99999999-9999-9999-9999-999999999999"
    life.connect()
    life.driver = life.backend.recall(life.memory, str(life.directory))
    assert await life.driver.adopt(life.told()) is None
    assert (await life.end()).code == 137
    assert list(xen.domains) == [domain.domid]
    await life.close()


async def test_a_domain_that_cannot_be_destroyed_still_ends(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    life = await made(xen, tmp_path, spec)
    await life.start()
    await life.prompt()
    xen.fail["destroy"] = (1, "libxl: error: libxl_domain.c:1183: destroy failed (rc=-3)\n")
    life.kill()
    assert (await life.end()).code == 137
    del xen.fail["destroy"]
    await life.close()


@pytest.mark.parametrize("step", ["watch.exit_code", "console.Bridge.drain", "hypervisor.Hypervisor.destroy"])
async def test_a_supervisor_that_ends_while_it_takes_an_end_down(
    xen: FakeXen, tmp_path: Path, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The domain is all that knows its exit code and its last words: it must stay for the next supervisor."""
    reached = asyncio.Event()

    async def hang(*given: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    life = await made(xen, tmp_path, spec)
    await life.start()
    await life.prompt()
    with monkeypatch.context() as patched:
        patched.setattr(f"backends.xen.{step}", hang)
        life.type(b"echo last words\n")
        life.type(b"exit 3\n")
        await reached.wait()
        await life.supervisor_dies()
    assert len(xen.domains) == 1
    assert await life.adopt() is None
    await life.expect(b"\nlast words\r\n")
    assert await life.end() == (3, "exited with 3")
    assert xen.domains == {}
    await life.close()


async def test_words_that_cannot_be_told_end_the_guest(
    xen: FakeXen, tmp_path: Path, inmate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that tells a Linux guest's init is not the one that watches, and no less needed."""
    life = await made_linux(xen, tmp_path, inmate)
    await life.start()
    monkeypatch.setattr(Words, "tell", not_thought_of)
    signals = life.driver.abilities.signals
    assert signals is not None
    assert await signals.deliver(15)
    assert await life.end() == (
        125,
        "internal error in the telling of the guest's init: RuntimeError('not thought of')",
    )
    assert xen.domains == {}
    await life.close()


async def test_a_guest_that_could_not_be_adopted_can_be_destroyed(
    xen: FakeXen, tmp_path: Path, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = await made(xen, tmp_path, spec)
    await life.start()
    await life.prompt()
    await life.supervisor_dies()
    with monkeypatch.context() as patched:
        patched.setattr(xen, "socket", "/nonexistent")
        patched.setattr(life, "backend", backend_of(xen, tmp_path))
        with pytest.raises(BackendError):
            await life.adopt()
    life.kill(15)
    assert (await life.end()).code == 143
    assert xen.domains == {}
    await life.close()


async def made_linux(xen: FakeXen, tmp_path: Path, inmate: str) -> Life:
    (tmp_path / "initrd").write_bytes(b"initrd")
    life = Life(backend_of(xen, tmp_path, kernel=inmate, initrd=str(tmp_path / "initrd")), tmp_path)
    (tmp_path / "rootfs").mkdir()
    await life.create(
        GuestSpec(
            id="l1",
            kind=GuestKind.LINUX,
            rootfs=str(tmp_path / "rootfs"),
            process=ProcessSpec(args=("sh",)),
            **annotated({"rootfs": "ramdisk"}, machine="pvh"),
        )
    )
    return life


async def test_a_lost_xenstored_still_shows_the_end(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    life = await made(xen, tmp_path, spec)
    await life.start()
    await life.prompt()
    for writer, _, _ in tuple(xen._watches):
        writer.close()
    (domain,) = xen.domains.values()
    domain.reason = 9
    assert (await life.end()) == (9, "exited with 9")
    await life.close()


@pytest.mark.skipif(shutil.which("mke2fs", path="/sbin:/usr/sbin") is None, reason="needs e2fsprogs")
@pytest.mark.parametrize("how", ["ramdisk", "disk"])
async def test_a_linux_guest_and_its_control_lines(xen: FakeXen, tmp_path: Path, inmate: str, how: str) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    (rootfs / "file").write_text("x" * 5000)
    (tmp_path / "initrd").write_bytes(b"initrd")
    life = Life(backend_of(xen, tmp_path, kernel=inmate, initrd=str(tmp_path / "initrd")), tmp_path)
    spec = GuestSpec(
        id="l1", kind=GuestKind.LINUX, rootfs=str(rootfs), process=ProcessSpec(args=("sh",)),
        **annotated({"rootfs": how}, machine="pvh"),
    )  # fmt: skip
    await life.create(spec)
    settings = (tmp_path / "xl.cfg").read_text()
    (domain,) = xen.domains.values()
    home = f"/local/domain/{domain.domid}/data/runphi"
    assert (f'disk = [ "{tmp_path}/images/{domain.uuid}.img,raw,xvda,rw" ]' in settings) == (how == "disk")
    assert 'ramdisk = "' in settings
    assert not os.listdir(tmp_path / "images") if how == "disk" else not (tmp_path / "initrd.new").exists()
    await life.start()
    able = life.driver.abilities
    assert able.resizes is not None
    assert able.signals is not None
    assert able.takes_eof is not None
    able.resizes.resize(24, 80)
    assert await able.signals.deliver(15)
    able.takes_eof.end_of_input(12)
    await until(lambda: len([node for node in xen.nodes if node.startswith(home + "/to-guest/")]) == 3)
    assert xen.nodes[f"{home}/to-guest/000000"] == b"winsize 24 80"
    assert xen.nodes[f"{home}/to-guest/000001"] == b"signal 15"
    assert xen.nodes[f"{home}/to-guest/000002"] == b"eof 12"
    xen.put(f"{home}/to-host/000000", b"ready")
    xen.put(f"{home}/to-host/000001", b"written 0")
    xen.put(f"{home}/to-host/000002", b"exit 23")
    assert (await life.end()) == (23, "exited with 23")
    await life.close()


async def test_plans_say_what_is_missing(xen: FakeXen, tmp_path: Path, spec: GuestSpec) -> None:
    backend = backend_of(xen, tmp_path)
    plan = await backend.plan(spec)
    assert isinstance(plan, XenPlan)
    xen.free_mib = 30
    with pytest.raises(PlanError, match="cannot give the guest 32 MiB: Xen has 30 MiB left"):
        await backend.plan(spec)


async def test_a_machine_without_xl(tmp_path: Path, spec: GuestSpec) -> None:
    section = settings.Xen(xl="/nonexistent/xl", libxenctrl=False)
    backend = XenBackend(configured(section))
    with pytest.raises(BackendError, match="cannot run /nonexistent/xl: no such file or directory"):
        await backend.probe()


async def test_probe_tells_version_and_kinds(xen: FakeXen, tmp_path: Path) -> None:
    found = await backend_of(xen, tmp_path).probe()
    assert found.summary == "Xen 4.17, credit2: pv, pvh, hvm"


async def test_a_create_ends_with_its_supervisor(tmp_path: Path) -> None:
    program, word = tmp_path / "xl", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ >{word}.new; mv {word}.new {word}; exec sleep 1000\n")
    program.chmod(0o755)
    code = f"import asyncio\nfrom backends.xen.xl import Xl\nasyncio.run(Xl({str(program)!r}).create('xl.cfg', '/'))"
    supervisor = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    await until(word.exists)
    child = Process(int(word.read_text()))
    gone = asyncio.Event()
    child.watch(gone.set)
    supervisor.kill()
    await supervisor.wait()
    async with asyncio.timeout(PATIENCE):
        await gone.wait()
    child.close()


async def test_doctor_looks_at_everything(xen: FakeXen, tmp_path: Path) -> None:
    found = await backend_of(xen, tmp_path, kernel="/nonexistent/kernel", initrd=xen.xl).examine()
    texts = [finding.text for finding in found]
    assert texts[0] == "Xen 4.17, credit2: pv, pvh, hvm"
    assert "1 GiB of memory are free for guests" in texts
    assert "cpupools: Pool-0 (credit2, 2 CPUs)" in texts
    assert "no kernel for Linux guests at /nonexistent/kernel" in texts
    xen.fail["info"] = (1, "ERROR:  Can't find hypervisor information in sysfs!\n")
    (only,) = await backend_of(xen, tmp_path).examine()
    assert (only.level, only.area) == (Level.WARNING, "xen")
    assert "does not run Xen" in only.text


def test_doctor_on_a_machine_without_xen() -> None:
    assert not examine.runs_xen("/nonexistent")
    assert examine.judge_consoles(None).level is Level.WARNING
    assert examine.judge_consoles(examine.Daemon((b"xenconsoled", b"--log=hv"))).mend == (
        "start it with --overflow-data=keep"
    )
    assert examine.judge_consoles(examine.Daemon((b"xenconsoled", b"--overflow-data=keep"))).level is Level.OK
    assert examine.judge_memory(10 << 20).level is Level.WARNING


class FakeXc:
    """libxenctrl's module with one domain; ``trouble`` is raised instead of an answer."""

    uuid = "879c44ef-2494-4d63-ad47-ec714d04f38c"

    def __init__(self) -> None:
        self.pauses = 2
        self.trouble: Exception | None = None

    def domain_getinfo(self, first: int, most: int) -> list[dict[str, object]]:
        if self.trouble is not None:
            raise self.trouble
        if first > 7:
            raise RuntimeError(3, "No such process")
        handle = list(uuid.UUID(self.uuid).bytes)
        state = {"domid": 7, "dying": 0, "crashed": 0, "shutdown": 0, "paused": int(self.pauses > 0)}
        return [{**state, "shutdown_reason": 255, "cpu_time": 0, "handle": handle}][:most]

    def domain_pause(self, domid: int) -> None:
        self.pauses += 1

    def domain_unpause(self, domid: int) -> None:
        self.pauses -= 1

    def physinfo(self) -> dict[str, int]:
        return {"free_memory": 2048}


async def test_libxenctrls_module_answers_in_its_own_way() -> None:
    xc = FakeXc()
    xen = Hypervisor(Xl("/nonexistent/xl"), xc)
    assert [domain.domid for domain in await xen.domains()] == [7]
    assert await xen.look(3, xc.uuid) is None, "the next one up is another domain"
    assert await xen.look(7, "99999999-9999-9999-9999-999999999999") is None
    assert await xen.look(8, xc.uuid) is None
    assert await xen.free_memory() == 2 << 20
    await xen.unpause(7, xc.uuid)
    assert xc.pauses == 0
    await xen.pause(7, xc.uuid)
    await xen.pause(7, xc.uuid)
    assert xc.pauses == 1
    xc.trouble = RuntimeError(1, "Operation not permitted")
    with pytest.raises(BackendError, match=r"cannot list the domains: .*not permitted"):
        await xen.look(7, xc.uuid)  # an error is not the end of a domain
