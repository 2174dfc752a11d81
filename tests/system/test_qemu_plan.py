# SPDX-License-Identifier: Apache-2.0
"""Planned command lines under a real QEMU: every kind of image boots, talks and leaves its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from backends import configured
from backends.base import Verdict
from backends.guest import handed
from backends.qemu import exitcode, gathering, generator, virtiofs
from backends.qemu.settings import Qemu
from runphi_async.partition.spec import GuestKind, GuestSpec, ProcessSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.qemu.plan import QemuPlan

ROOT = Path(__file__).resolve().parent.parent.parent
BINARIES = {arch: path for arch in ("x86_64", "aarch64") if (path := shutil.which(f"qemu-system-{arch}")) is not None}
#: $RUNPHI_CONFIG may name another guest kernel
QEMU = configured.load().of(Qemu)
#: a guest under emulation on a busy machine
PATIENCE = 40.0

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(len(BINARIES) < 2, reason="needs qemu-system-x86 and qemu-system-arm"),
]


@pytest.fixture(scope="session")
def inmates(inmates_built: Path) -> Path:
    return inmates_built


class Guest:
    """A guest of a plan in its record directory, driven as the life cycle does, but without a supervisor."""

    def __init__(self, plan: QemuPlan, record: Path) -> None:
        self.plan, self.record = plan, record
        self.output = b""
        self.control = b""
        self.started = False
        self.fds: dict[str, int] = {}
        for name in ("con", "ev", "ctl"):
            for end in ("in", "out"):
                os.mkfifo(record / f"{name}.{end}")
                self.fds[f"{name}.{end}"] = os.open(record / f"{name}.{end}", os.O_RDWR | os.O_NONBLOCK)
        for name, data in plan.files.items():
            (record / name).write_bytes(data)
        handed.hand_over(plan.handed, str(record), plan.memory_bytes)
        os.write(self.fds["ev.in"], b'{"execute":"qmp_capabilities"}\n')
        self.helper = self._share(plan.share.path) if plan.share is not None else None
        with (record / "vmm.log").open("wb") as log:
            self.vmm = subprocess.Popen(plan.argv, cwd=record, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _share(self, rootfs: str) -> virtiofs.Server:
        server = virtiofs.Server(QEMU.virtiofsd, str(self.record))
        server.start(rootfs)
        return server

    def close(self) -> None:
        self.vmm.kill()
        self.vmm.wait()
        if self.helper:
            self.helper.stop()
        for fd in self.fds.values():
            os.close(fd)

    def command(self, name: str) -> None:
        os.write(self.fds["ev.in"], json.dumps({"execute": name}).encode() + b"\n")

    def start(self) -> None:
        self.command("cont")
        self.started = True

    def send(self, text: bytes, channel: str = "con") -> None:
        os.write(self.fds[f"{channel}.in"], text)

    async def read_until(self, text: bytes, channel: str = "con") -> bytes:
        """All that came out of a channel, once it holds ``text``."""
        seen = b""
        async with asyncio.timeout(PATIENCE):
            while text not in seen:
                await self._readable(channel)
                chunk = os.read(self.fds[f"{channel}.out"], 65536)
                seen += chunk
        return seen

    async def _readable(self, channel: str) -> None:
        loop, fd = asyncio.get_running_loop(), self.fds[f"{channel}.out"]
        ready = asyncio.Event()
        loop.add_reader(fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)

    async def end(self, **more: Any) -> Verdict:
        """Wait for QEMU and weigh what is left."""
        async with asyncio.timeout(PATIENCE):
            status = await asyncio.to_thread(self.vmm.wait)
        events: list[tuple[str, dict[str, Any]]] = []
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self.fds["ev.out"], 1 << 20).splitlines():
                message = json.loads(line)
                if "event" in message:
                    events.append((message["event"], message.get("data", {})))
        port = self.record / "guest.exit"
        return exitcode.verdict(
            exitcode.Evidence(
                kind=self.plan.kind,
                arch=self.plan.arch,
                vmm_status=status if status >= 0 else 128 - status,
                guest_exit=port.read_bytes() if port.exists() else b"",
                qmp_events=events,
                vmm_log_tail=(self.record / "vmm.log").read_text(),
                started=self.started,
                **more,
            )
        )


@contextlib.contextmanager
def running(record: Path, **asked: Any) -> Iterator[Guest]:
    fields: dict[str, Any] = {"id": "a,b", "kind": GuestKind.INMATE, "rootfs": "/", **asked}
    spec = GuestSpec(**fields)
    facts = gathering.gather(spec, accel="tcg", binaries=BINARIES, kernel=QEMU.kernel, initrd_path=QEMU.initrd)
    guest = Guest(generator.plan(spec, facts, QEMU), record)
    try:
        guest.start()
        yield guest
    finally:
        guest.close()


IMAGES: dict[str, dict[str, Any]] = {
    "pvh": {"inmate": "demo-x86_64.elf"},
    "q35": {"inmate": "demo-x86_64.elf", "machine": "q35"},
    "multiboot": {"inmate": "demo-x86_64-multiboot.elf"},
    "arm": {"inmate": "demo-aarch64.elf"},
    "arm-flat": {"inmate": "demo-aarch64.bin", "arch": "aarch64"},
    "arm-flat-at": {"inmate": "demo-aarch64.bin", "arch": "aarch64", "load_address": 0x4020_0000},
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize(
    ("typed", "code", "reason"),
    [
        (b"exit 0\r", 0, "exited with 0"),
        (b"exit 7\r", 7, "exited with 7"),
        (b"crash\r", 134, ""),
        (b"reset\r", 133, "guest reset (reboot or triple fault)"),
    ],
    ids=["exit0", "exit7", "crash", "reset"],
)
async def test_inmates_boot_and_leave_their_exit_code(
    inmates: Path, tmp_path: Path, image: str, typed: bytes, code: int, reason: str
) -> None:
    asked = IMAGES[image]
    shutil.copy(inmates / asked["inmate"], tmp_path / "i,1")  # a comma, as paths may hold one
    with running(tmp_path, **{**asked, "inmate": str(tmp_path / "i,1")}) as guest:
        assert b"runPHI demo inmate" in await guest.read_until(b"> ")
        guest.send(typed)
        verdict = await guest.end()
    assert verdict.code == code
    assert reason in verdict.reason


@pytest.mark.parametrize("image", ["pvh", "arm"])
async def test_limits_of_memory_and_cpus_boot_too(inmates: Path, tmp_path: Path, image: str) -> None:
    path = str(inmates / IMAGES[image]["inmate"])
    with running(tmp_path, inmate=path, memory_limit=4 << 20, cpu_quota=200_000) as guest:
        await guest.read_until(b"> ")


async def test_a_killed_vmm_is_never_success(inmates: Path, tmp_path: Path) -> None:
    with running(tmp_path, inmate=str(inmates / "demo-x86_64.elf")) as guest:
        await guest.read_until(b"> ")
        guest.vmm.kill()
        verdict = await guest.end()
    assert verdict == Verdict(137, "VMM killed by signal 9")


async def test_a_vmm_that_cannot_start_says_why(inmates: Path, tmp_path: Path) -> None:
    spec = GuestSpec(id="c", kind=GuestKind.INMATE, rootfs="/", inmate=str(inmates / "demo-x86_64.elf"))
    facts = gathering.gather(spec, accel="tcg", binaries=BINARIES)
    plan = generator.plan(spec, facts, QEMU)
    guest = Guest(msgspec.structs.replace(plan, handed=()), tmp_path)
    try:
        verdict = await guest.end()
    finally:
        guest.close()
    assert verdict.code == 125
    assert "could not" in verdict.reason


@pytest.mark.skipif(not os.path.exists(QEMU.initrd), reason="needs bin/prepare-guest")
async def test_a_linux_guest_runs_the_containers_process(tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None, "apt-get install busybox-static"
    rootfs = tmp_path / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    shutil.copy(busybox, rootfs / "bin" / "sh")
    record = tmp_path / "record"
    record.mkdir()
    process = ProcessSpec(("/bin/sh", "-c", 'echo "hello $A"; exit 5'), ("A=world",))
    with running(record, kind=GuestKind.LINUX, rootfs=str(rootfs), process=process) as guest:
        assert b"hello world" in await guest.read_until(b"\n")
        assert b"exit 5\n" in await guest.read_until(b"exit 5\n", "ctl")
        guest.send(b"poweroff\n", "ctl")
        # it stays for whoever wants the kernel's last lines
        assert b'"SHUTDOWN"' in await guest.read_until(b'"SHUTDOWN"', "ev")
        guest.command("quit")
        verdict = await guest.end(control_exit=5)
    assert verdict == Verdict(5, "exited with 5")
