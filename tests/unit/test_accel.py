# SPDX-License-Identifier: Apache-2.0
"""KVM is used where it did a kernel's work faster than software, and that is found out once a boot and machine."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import re
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from backends.qemu import accel
from backends.qemu.accel import Accel, Question, cache, decide, linuxproof, proof
from backends.qemu.accel.decide import Mark, Run, Unfinished
from runphi_async.errors import BackendError
from runphi_async.host import files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STEPS = decide.STEPS["x86_64"]
KVM = Accel("kvm", "proven")
TCG = Accel("tcg", "hung")


def x86_uname() -> os.uname_result:
    """A machine of x86-64, whatever this one is."""
    return os.uname_result(("Linux", "host", "6.1", "#1", "x86_64"))


def run(status: int | None = 0, seconds: float = 0.1, loop: float = 0.05, upto: str = "", stderr: str = "") -> Run:
    """A run of the probe; ``upto``: the last step that it began, and what it said then."""
    last, _, word = upto.partition(" ")
    names = STEPS[: STEPS.index(last) + 1] if last else STEPS
    behind = names.index(decide.AFTER_STRETCH) if decide.AFTER_STRETCH in names else len(names)
    marks = [Mark(name, 0.01 + (loop if at >= behind else 0)) for at, name in enumerate(names)]
    return Run(status, seconds, (*marks, *([Mark(word, 0.1)] if word else [])), stderr)


# Section: what runs mean


@pytest.mark.parametrize(
    ("kvm", "name", "reason"),
    [
        (run(seconds=0.06, loop=0.002), "kvm", "KVM is proven.* 2 ms on KVM and 50 ms in software.* 60 ms and 100 ms"),
        (run(seconds=0.06, loop=0.06), "tcg", "works but is not faster.* 60 ms on KVM and 50 ms"),
        (run(seconds=0.2, loop=0.002), "tcg", "works but is not faster.* 200 ms and 100 ms"),
        (run(None, 0.3, upto="page-tables"), "tcg", "no end after 0.30 s in step 'page-tables'; in software .* 0.10 s"),
        (Run(None, 0.3), "tcg", "no end after 0.30 s before its first step"),
        (run(None, 0.3), "tcg", "no end after 0.30 s in step 'reset'"),
        (run(43, upto="exchange wrong"), "tcg", "a wrong result in step 'exchange'"),
        (run(43, upto="sse trap"), "tcg", "an exception nobody asked for in step 'sse'"),
        (run(None, upto="sse", stderr="KVM internal error. Suberror: 1\nRAX"), "tcg", "Suberror: 1 in step 'sse'"),
        (run(-6, upto="start", stderr="x\nkvm: Assertion\n"), "tcg", "signal 6 in step 'start': kvm: Assertion"),
        (Run(1, 0.1, (), "failed to initialize kvm\n"), "tcg", "status 1 before its first step: failed to init"),
        (Run(0, 0.1, (Mark("start", 0), Mark("reset", 0))), "tcg", "it ended without step 'long-mode'"),
        (Run(0, 0.1), "tcg", "it ended before its first step"),
        (run(0, upto="sse"), "tcg", "it ended in step 'sse'"),
        (run(85), "tcg", "status 85 in step 'reset'"),
    ],
)
def test_judge(kvm: Run, name: str, reason: str) -> None:
    found = decide.judge(run(), kvm, "x86_64")
    assert found.name == name
    assert re.search(reason, found.reason), found.reason
    assert found.tcg == 0.1
    assert (found.kvm is not None) == (not decide.fault(kvm, STEPS))


@pytest.mark.parametrize("tcg", [run(None, upto="sse"), run(1, upto="sse wrong"), Run(1, 0.1, (), "no such machine")])
def test_without_software_there_is_nothing_to_compare_with(tcg: Run) -> None:
    with pytest.raises(Unfinished, match="not proven"):
        decide.judge(tcg, run(), "x86_64")


def kernel(status: int | None = 0, seconds: float = 3.0, said: str = "exit 127") -> Run:
    return Run(status, seconds, (Mark("error no such file", 1.0), Mark(said, 1.0)), "")


@pytest.mark.parametrize(
    ("tcg", "kvm", "name", "reason"),
    [
        (None, kernel(seconds=0.5), "kvm", "came to our init and ended in 0.50 s; in software: no end by then"),
        (kernel(), kernel(seconds=2.5), "kvm", "in 2.50 s; in software: 3.00 s"),
        (kernel(1, said="panic"), kernel(seconds=2.5), "kvm", "in software: QEMU ended with status 1"),
        (kernel(), None, "tcg", "ended in 3.00 s in software, on KVM not by then; its last line: Memory: 200M"),
        (None, kernel(-6), "tcg", "not the guest kernel: QEMU ended with signal 6"),
        (None, kernel(said="exit 3"), "tcg", "it ended in step 'exit 3'"),
        (None, Run(1, 0.1, (), "KVM internal error. Suberror: 1"), "tcg", "KVM internal error"),
    ],
)
def test_judge_the_start_of_a_kernel(tcg: Run | None, kvm: Run | None, name: str, reason: str) -> None:
    found = decide.judge_linux(tcg, kvm, "Memory: 200M")
    assert found.name == name
    text = found.reason.replace("it came to our init and ended in 3.00 s", "ended in 3.00 s")
    assert reason in text or reason.replace("ended in 3.00 s in software", "in software ended in 3.00 s") in text, text


def test_a_kernel_that_starts_nowhere_proves_nothing() -> None:
    for tcg in (None, kernel(None)):
        with pytest.raises(Unfinished, match="not proven for Linux"):
            decide.judge_linux(tcg, kernel(None))


def test_choose() -> None:
    assert decide.choose("auto", KVM) == decide.choose("kvm", KVM) == KVM
    assert decide.choose("auto", TCG) == TCG
    assert decide.choose("tcg", KVM).name == "tcg"
    with pytest.raises(BackendError, match="cannot use KVM: hung; set accel"):
        decide.choose("kvm", TCG)


def test_a_real_command_line_becomes_one_of_a_proof() -> None:
    words = [
        *("q", "-chardev", "pipe,id=con,path=con", "-chardev", "pipe,id=ev,path=ev", "-mon", "chardev=ev,mode=control"),
        *("-chardev", "socket,id=qmp,fd=10,server=on,wait=off", "-mon", "chardev=qmp,mode=control", "-smp", "1"),
        *("-chardev", "ringbuf,id=klog,size=65536", "-serial", "chardev:klog", "-device", "virtio-serial-pci,id=vser"),
        *("-chardev", "pipe,id=ctl,path=ctl", "-chardev", "socket,id=fs,path=fs.sock"),
        *("-device", "vhost-user-fs-pci,chardev=fs,tag=rootfs", "-no-reboot", "-S"),
    ]
    assert linuxproof.adapted(words) == [
        *("q", "-chardev", "null,id=con", "-smp", "1", "-chardev", "file,id=klog,path=kernel.log"),
        *("-serial", "chardev:klog", "-device", "virtio-serial-pci,id=vser"),
        *("-chardev", "stdio,id=ctl,signal=off", "-no-reboot"),
    ]


# Section: running


async def test_a_hanging_guest_is_ended_at_the_deadline() -> None:
    found = await proof.run([sys.executable, "-c", "import time; print('start', flush=True); time.sleep(60)"], 1.0)
    assert found.status is None
    assert [mark.name for mark in found.marks] == ["start"]
    assert 1.0 <= found.seconds < 5


async def test_a_flood_is_bounded() -> None:
    flood = "import os\nwhile True: os.write(1, b'x\\n' * 4096); os.write(2, b'y' * 4096)"
    found = await proof.run([sys.executable, "-c", flood], 0.5)
    assert found.status is None
    assert len(found.marks) <= 2 * proof.MAX_MARKS
    assert len(found.stderr) <= 2 * proof.MAX_STDERR


async def test_marks_have_times_of_the_host() -> None:
    # a second, of which a busy machine may be late for the first mark by most
    argv = [sys.executable, "-c", "import time; print('a', flush=True); time.sleep(1); print('b', flush=True)"]
    first, second = (await proof.run(argv, 20)).marks
    assert second.at - first.at > 0.1


async def test_a_cancelled_run_leaves_no_process(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    os.mkfifo(pid_file)
    fd = os.open(pid_file, os.O_RDWR | os.O_NONBLOCK)
    try:
        ready = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, ready.set)
        task = asyncio.create_task(proof.run(["/bin/sh", "-c", f"echo $$ > {pid_file}; exec sleep 60"], 30))
        await ready.wait()
        asyncio.get_running_loop().remove_reader(fd)
        pid = int(os.read(fd, 100))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        os.close(fd)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_run_that_is_cancelled_while_it_ends_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """As both sides of a race of kernels come to their limit: the one cancels the other, which was just killed."""
    here: list[asyncio.Task[Run]] = []
    kill = os.killpg

    def cancelled_meanwhile(pid: int, number: int) -> None:
        kill(pid, number)
        here[0].cancel()

    monkeypatch.setattr(os, "killpg", cancelled_meanwhile)
    here.append(asyncio.create_task(proof.run(["/bin/sleep", "60"], 0.05)))
    with pytest.raises(asyncio.CancelledError):
        await here[0]
    here.clear()
    gc.collect()  # a transport that was not closed warns, which is an error here


async def test_no_qemu() -> None:
    found = await proof.run(["/nonexistent/qemu"], 20)
    assert found.status == 127  # the word of setpriv, which goes in front
    assert "/nonexistent/qemu" in decide.fault(found, STEPS)


async def test_a_busy_host_gets_a_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast, wrong = run(seconds=0.2, loop=0.01), run(seconds=0.06, loop=0.01), run(43, upto="sse wrong")
    for on_kvm, name, tries in (
        ([fast], "kvm", 1),
        ([slow, fast], "kvm", 2),
        ([slow, slow, fast], "kvm", 3),
        ([slow, slow, slow, fast], "tcg", 3),
        ([wrong, fast], "tcg", 1),
        ([slow, wrong, fast], "tcg", 2),
    ):
        left = list(on_kvm)

        async def fake(command: Sequence[str], limit: float, left: list[Run] = left) -> Run:
            return left.pop(0) if "kvm" in command else run()

        monkeypatch.setattr(proof, "run", fake)
        monkeypatch.setattr(os, "uname", x86_uname)
        assert (await proof.prove("q")).name == name
        assert len(on_kvm) - len(left) == tries


# Section: what is kept


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where proofs are kept, on a machine that seems to have a KVM."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "proofs"))
    monkeypatch.setenv(proof.DEVICE_VARIABLE, "/dev/null")
    monkeypatch.setattr(cache, "_own", None)
    monkeypatch.setattr(accel, "_unfinished", {})
    return tmp_path / "proofs"


@pytest.fixture
def binary(tmp_path: Path) -> str:
    path = tmp_path / "qemu"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


class Provers:
    """Count proofs, which answer what they are told to."""

    def __init__(self) -> None:
        self.bare: Accel | Exception = KVM
        self.linux: Accel | Exception = KVM
        self.calls: list[str] = []

    async def prove(self, binary: str) -> Accel:
        self.calls.append("bare")
        if isinstance(self.bare, Exception):
            raise self.bare
        return self.bare

    async def prove_linux(self, binary: str, kernel: str, initrd: str) -> Accel:
        self.calls.append("linux")
        if isinstance(self.linux, Exception):
            raise self.linux
        return self.linux


@pytest.fixture
def provers(place: Path, monkeypatch: pytest.MonkeyPatch) -> Provers:
    made = Provers()
    monkeypatch.setattr(proof, "prove", made.prove)
    monkeypatch.setattr(linuxproof, "prove", made.prove_linux)
    return made


async def test_an_answer_holds_for_this_boot_and_these_files(
    provers: Provers, place: Path, binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question(binary)
    assert await accel.find("tcg", question) == Accel("tcg", "the configuration says so")
    assert provers.calls == []
    assert await accel.find("auto", question) == KVM
    assert await accel.find("kvm", question) == KVM
    assert provers.calls == ["bare"]
    assert stat.S_IMODE((place / cache.FILE).stat().st_mode) == 0o600
    # whatever changes is proven anew: the program, the boot, the device
    os.utime(binary, (1, 1))
    await accel.find("auto", question)
    assert len(provers.calls) == 2
    monkeypatch.setattr(files, "boot_id", lambda: "another boot")
    await accel.find("auto", question)
    assert len(provers.calls) == 3
    (tmp_path / "kvm").touch()
    monkeypatch.setenv(proof.DEVICE_VARIABLE, str(tmp_path / "kvm"))
    await accel.find("auto", question)
    assert len(provers.calls) == 4


async def test_a_linux_guest_needs_both_proofs(provers: Provers, binary: str, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinux", tmp_path / "initrd"
    kernel.touch()
    initrd.touch()
    question = Question(binary, str(kernel), str(initrd))
    provers.linux = TCG
    assert await accel.find("auto", question) == TCG
    assert await accel.find("auto", Question(binary)) == KVM
    assert provers.calls == ["bare", "linux"]
    with pytest.raises(BackendError, match="cannot use KVM: hung"):
        await accel.find("kvm", question)
    provers.linux = KVM
    kernel.write_text("another")
    assert await accel.find("auto", question) == KVM
    assert provers.calls == ["bare", "linux", "linux"]
    provers.bare = TCG
    os.utime(binary, (1, 1))
    assert await accel.find("auto", question) == TCG
    assert provers.calls[3:] == ["bare"]


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"boot_id": 5}', b"\xff\xff", b"[" * 100_000, b" " * 300_000])
async def test_a_damaged_file_is_no_answer(provers: Provers, place: Path, binary: str, damaged: bytes) -> None:
    await accel.find("auto", Question(binary))
    (place / cache.FILE).write_bytes(damaged)
    assert await accel.find("auto", Question(binary)) == KVM
    assert len(provers.calls) == 2
    await accel.find("auto", Question(binary))
    assert len(provers.calls) == 2


async def test_an_unknown_name_in_the_file_is_not_believed(provers: Provers, place: Path, binary: str) -> None:
    await accel.find("auto", Question(binary))
    path = place / cache.FILE
    path.write_text(path.read_text().replace('"kvm"', '"magic"', 1))
    await accel.find("auto", Question(binary))
    assert len(provers.calls) == 2


@pytest.mark.parametrize("what", ["directory", "file", "link", "absent"])
async def test_what_others_could_write_is_not_believed(
    provers: Provers, place: Path, binary: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await accel.find("auto", Question(binary))
    if what == "directory":
        place.chmod(0o777)
    elif what == "file":
        (place / cache.FILE).chmod(0o666)
    elif what == "link":
        place.rename(place.with_name("elsewhere"))
        place.symlink_to("elsewhere")
    else:
        monkeypatch.setenv(cache.VARIABLE, str(place / "no" / "where"))
    assert await accel.find("auto", Question(binary)) == KVM
    assert len(provers.calls) == 2
    # where nothing can be kept for all, this process still knows
    await accel.find("auto", Question(binary))
    assert len(provers.calls) == 2


async def test_the_file_does_not_grow_without_end(provers: Provers, place: Path, binary: str) -> None:
    for second in range(cache.MOST + 10):
        os.utime(binary, (second, second))
        await accel.find("auto", Question(binary))
        accel.distrust(f"/opt/qemu-{second}", "x" * 5000)
    book = json.loads((place / cache.FILE).read_text())
    assert len(book["answers"]) == len(book["distrusted"]) == cache.MOST
    assert (place / cache.FILE).stat().st_size < cache.MAX_BYTES
    await accel.find("auto", Question(binary))
    assert len(provers.calls) == cache.MOST + 10


async def test_kvm_that_failed_a_guest_is_not_trusted_again(provers: Provers, binary: str, tmp_path: Path) -> None:
    assert await accel.find("auto", Question(binary)) == KVM
    link = tmp_path / "link"
    link.symlink_to(binary)
    await asyncio.to_thread(accel.distrust, str(link), "KVM internal error")
    for question in (Question(binary), Question(str(link)), Question(binary, binary, binary)):
        found = await accel.find("auto", question)
        assert (found.name, found.reason) == ("tcg", "KVM failed in a guest on this boot: KVM internal error")
        with pytest.raises(BackendError, match="cannot use KVM: KVM failed in a guest"):
            await accel.find("kvm", question)
    # a proof that was under way meanwhile does not bring it back
    os.utime(binary, (1, 1))
    assert (await accel.find("auto", Question(binary))).name == "tcg"
    assert provers.calls == ["bare"]
    other = tmp_path / "other"
    other.write_bytes(b"")
    other.chmod(0o755)
    assert await accel.find("auto", Question(str(other))) == KVM


async def test_distrust_while_a_proof_is_under_way(
    provers: Provers, binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prove(path: str) -> Accel:
        await asyncio.to_thread(accel.distrust, path, "it stopped")
        return KVM

    monkeypatch.setattr(proof, "prove", prove)
    assert (await accel.find("auto", Question(binary))).reason.endswith("it stopped")


async def test_a_proof_that_does_not_get_done_is_no_answer_for_ever(
    provers: Provers, place: Path, binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provers.bare = Unfinished("too busy")
    for _ in range(3):  # no create waits for it once more
        assert await accel.find("auto", Question(binary)) == Accel("tcg", "too busy")
    assert provers.calls == ["bare"]
    assert not (place / cache.FILE).exists()
    monkeypatch.setattr(accel, "RETRY", 0.0)
    provers.bare = KVM
    assert await accel.find("auto", Question(binary)) == KVM


async def test_one_proves_and_the_others_wait_for_its_answer(provers: Provers, binary: str) -> None:
    found = await asyncio.gather(*(accel.find("auto", Question(binary)) for _ in range(10)))
    assert found == [KVM] * 10
    assert provers.calls == ["bare"]


async def test_supervisors_wait_for_each_other(provers: Provers, place: Path, binary: str) -> None:
    """Another process proves: we wait, and take its answer."""
    place.mkdir(mode=0o700)
    held = os.open(place / "accel.bare.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    waiting = [asyncio.create_task(accel.find("auto", Question(binary))) for _ in range(20)]
    done, _ = await asyncio.wait(waiting, timeout=0.2)
    assert not done
    waiting[0].cancel()  # who is cancelled while it waits lets the lock go when it gets it
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    key, _ = accel._look_up(Question(binary))
    cache.change(lambda book: book.remember(key, TCG))
    os.close(held)
    async with asyncio.timeout(10):
        assert await asyncio.gather(*waiting[1:]) == [TCG] * 19
    assert provers.calls == []


def test_no_kvm_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(proof.DEVICE_VARIABLE, "/nonexistent/kvm")
    assert proof.obstacle("/bin/true") == "cannot open /nonexistent/kvm: no such file or directory"
    monkeypatch.setenv(proof.DEVICE_VARIABLE, "/dev/null")
    assert "cannot run /nonexistent/qemu" in proof.obstacle("/nonexistent/qemu")
    assert proof.obstacle("/bin/true") == ""
