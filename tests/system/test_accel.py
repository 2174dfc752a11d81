# SPDX-License-Identifier: Apache-2.0
"""The proof of an accelerator with a real QEMU: the guests of the proof, and QEMUs that lie about KVM in every way."""

from __future__ import annotations

import asyncio
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from backends import configured
from backends.guest import elf
from backends.qemu import accel
from backends.qemu.accel import Question, cache, decide, linuxproof, proof
from backends.qemu.backend import QemuBackend
from backends.qemu.settings import ACCEL_VARIABLE, Qemu
from runphi_async.config.loading import PATH_VARIABLE
from runphi_async.host.processes import children
from runphi_async.testing import liarqemu

ROOT: Final = Path(__file__).resolve().parent.parent.parent
BINARIES: Final = {arch: shutil.which(f"qemu-system-{arch}") or "" for arch in decide.STEPS}
QEMU: Final = configured.load().of(Qemu)
#: seconds for a guest in software on a busy machine
PATIENCE: Final = 40.0
#: seconds for a kernel in software to come to our init there, beside another one that only pretends
KERNEL_PATIENCE: Final = 150.0
#: seconds that a busy machine adds to the bounds of a proof: starting processes, reading what they say
LEEWAY: Final = 3.0
ON_X86: Final = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the liars are x86 machines")

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not all(BINARIES.values()), reason="needs qemu-system-x86 and qemu-system-arm"),
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Proofs of its own, on a machine that seems to have a KVM."""
    monkeypatch.delenv(ACCEL_VARIABLE, raising=False)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "proofs"))
    monkeypatch.setenv(proof.DEVICE_VARIABLE, "/dev/null")
    monkeypatch.setattr(accel, "_unfinished", {})
    # on a busy machine software may not be as fast as a proof wants it to be; how long it waits is tested elsewhere
    monkeypatch.setattr(proof, "TCG_LIMIT", PATIENCE)
    monkeypatch.setattr(linuxproof, "LIMIT", KERNEL_PATIENCE)
    return tmp_path / "proofs"


# Section: the guests


def loaded(path: Path) -> list[tuple[int, bytes]]:
    data = path.read_bytes()
    found = elf.pieces(lambda at, length: data[at : at + length], len(data), path.name)
    return [(piece.start, data[piece.offset : piece.offset + piece.filled]) for piece in found]


def test_what_is_shipped_is_what_the_sources_say(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "bin" / "build-probe", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for arch in decide.STEPS:
        assert loaded(tmp_path / f"{arch}.elf") == loaded(proof.image(arch)), f"run bin/build-probe: {arch} is older"


async def guest(arch: str, image: Path | None = None, *options: str) -> decide.Run:
    argv = proof.argv(BINARIES[arch], str(image or proof.image(arch)), arch, "tcg")
    for option in options:
        name, _, value = option.partition(" ")
        argv[argv.index(name) + 1] = value
    return await proof.run(argv, PATIENCE)


@pytest.mark.parametrize(
    ("arch", "options", "steps"),
    [
        ("x86_64", [], "no-execute exchange-16 sse avx avx2"),
        ("x86_64", ["-cpu Nehalem"], "no-execute exchange-16 sse"),
        ("x86_64", ["-cpu qemu64,-nx,-cx16"], "sse"),
        ("aarch64", [], "exclusive simd"),
        ("aarch64", ["-cpu max"], "exclusive atomics simd"),
        ("aarch64", ["-machine virt,gic-version=3"], "exclusive simd"),
        ("aarch64", ["-machine virt,gic-version=3", "-cpu max"], "exclusive atomics simd"),
    ],
)
async def test_the_guest_gets_done_in_software(arch: str, options: list[str], steps: str) -> None:
    found = await guest(arch, None, *options)
    assert decide.fault(found, decide.STEPS[arch]) == "", found
    optional = {"no-execute", "exchange-16", "sse", "avx", "avx2", "avx512", "exclusive", "atomics", "simd"}
    if arch == "aarch64":
        optional.discard("no-execute")
    names = [mark.name for mark in found.marks]
    assert [name for name in names if name in optional] == steps.split()
    assert decide.stretch(found) >= 0


#: instructions of a processor that does nothing where it should do something, and the step that must notice
NOTHING: Final = {
    "x86_64": [
        ("lock cmpxchg16b (%rdi)", "f0480fc70f", "90" * 5, "exchange-16"),
        ("lock xadd", "f00fc104", "0f1f4004", "exchange"),
        ("invlpg WINDOW", "0f013c2500002000", "90" * 8, "page-tables"),
        ("mov %rax, %cr3", "0f22d848833c25", "90" * 3 + "48833c25", "address-spaces"),
        ("rep movsb", "f3a4", "9090", "long-mode"),
        ("ud2", "0f0b", "9090", "exceptions"),
        ("int3", "cc48833c25", "9048833c25", "exceptions"),
        ("mulps", "0f59c1", "90" * 3, "sse"),
        ("sqrtsd", "f20f51d2", "90" * 4, "sse"),
        ("fxrstor", "0fae0c25", "0f1f0425", "sse"),
        ("vaddps ymm9", "c53458c9", "90" * 4, "avx"),
        ("vmulps ymm9", "c57459c9", "90" * 4, "avx"),
        ("int $0x80", "cd80", "9090", "user-mode"),
        ("swapgs", "0f01f8", "90" * 3, "user-mode"),
        ("lidt", "0f011c25", "0f1f0425", "exceptions"),
    ],
    "aarch64": [
        ("tlbi vaae1is", "628308d5", "1f2003d5", "page-tables"),
        ("clrex", "5f3f03d5", "1f2003d5", "exclusive"),
        ("fmul v16", "30dc216e", "1f2003d5", "simd"),
        ("addv", "c6b8b14e", "1f2003d5", "simd"),
        ("svc #0", "010000d4", "1f2003d5", "user-mode"),
        ("brk", "804622d4", "1f2003d5", "exceptions"),
    ],
}


@pytest.mark.parametrize(
    ("arch", "name", "right", "wrong", "step"),
    [(arch, *row) for arch, rows in NOTHING.items() for row in rows],
    ids=[f"{arch}: {row[0]}" for arch, rows in NOTHING.items() for row in rows],
)
async def test_an_instruction_that_does_nothing_is_noticed(
    tmp_path: Path, arch: str, name: str, right: str, wrong: str, step: str
) -> None:
    data = proof.image(arch).read_bytes()
    assert bytes.fromhex(right) in data, f"{name} is not in the image"
    image = tmp_path / "probe.elf"
    image.write_bytes(data.replace(bytes.fromhex(right), bytes.fromhex(wrong)))
    argv = proof.argv(BINARIES[arch], str(image), arch, "tcg")
    found = await proof.run([*argv, "-cpu", "max"], 5.0)
    assert f"in step '{step}'" in decide.fault(found, decide.STEPS[arch]), found


# Section: liars


def liar(folder: Path, role: str) -> str:
    return str(liarqemu.install(folder / "liar", role, BINARIES["x86_64"]))


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@ON_X86
@pytest.mark.parametrize(
    ("role", "reason"),
    [
        (
            "hangs",
            r"KVM is there but fails its proof: no end after \d\.\d\d s before its first step; in software .* s$",
        ),
        ("internal-error", r"fails its proof: KVM internal error. Suberror: 1 before its first step"),
        ("internal-error 20", r"fails its proof: no end after"),
        ("aborts", r"fails its proof: QEMU ended with signal 6 before its first step: qemu: kvm_init: Assertion"),
        ("refuses", r"fails its proof: QEMU ended with status 1 before its first step: .*Operation not permitted"),
        (
            "slow",
            r"KVM works but is not faster: .*\d ms on KVM and .*\d ms in software|no end after .* in step 'stretch'",
        ),
        ("crawls", r"fails its proof: no end after .*; in software the probe takes|KVM works but is not faster: "),
        ("wrong-exchange", r"fails its proof: a wrong result in step 'exchange-16'; in software the probe takes"),
    ],
)
async def test_a_liar_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, reason: str) -> None:
    least = proof.KVM_LEAST
    if "no end" not in reason.split("|")[0]:
        # a liar starts slowly on a busy machine, and shall come to its lie
        least = PATIENCE
        monkeypatch.setattr(proof, "KVM_LEAST", least)
    binary = liar(tmp_path, role)
    began = time.monotonic()
    found = await accel.find("auto", Question(binary))
    took = time.monotonic() - began
    assert found.name == "tcg"
    assert re.search(reason, found.reason), found.reason
    assert found.tcg is not None
    assert took < proof.TRIES * (found.tcg + max(least, found.tcg) + LEEWAY)
    assert not [pid for pid in children(os.getpid()) if "qemu" in command(pid)]
    # and it is asked once
    calls = tmp_path / "liar" / liarqemu.CALLS_FILE
    before = calls.read_text()
    assert await accel.find("auto", Question(binary)) == found
    with pytest.raises(Exception, match=f"cannot use KVM: {re.escape(found.reason)}"):
        await accel.find("kvm", Question(binary))
    assert calls.read_text() == before


@ON_X86
async def test_one_that_does_the_work_is_believed(tmp_path: Path) -> None:
    found = await accel.find("kvm", Question(liar(tmp_path, "honest")))
    assert found.name == "kvm", found.reason
    assert found.kvm is not None
    assert found.tcg is not None
    assert found.kvm < found.tcg


@ON_X86
@pytest.mark.timeout(KERNEL_PATIENCE + PATIENCE)
@pytest.mark.parametrize(
    ("role", "name", "reason"),
    [
        ("honest", "kvm", r"the guest kernel came to our init and ended in \d+\.\d\d s; in software: no end by then"),
        ("no-linux aborts", "tcg", "KVM runs our probe but not the guest kernel: QEMU ended with signal 6"),
        (
            "no-linux hangs",
            "tcg",
            r"slow with the guest kernel: in software it came to our init and ended in \d+\.\d\d s",
        ),
        (
            "no-linux crawls",
            "tcg",
            r"slow with the guest kernel: in software it came to our init and ended in \d+\.\d\d s, on KVM not by then",
        ),
    ],
)
async def test_a_linux_guest_is_proven_by_its_kernel(tmp_path: Path, role: str, name: str, reason: str) -> None:
    found = await linuxproof.prove(liar(tmp_path, role), QEMU.kernel, QEMU.initrd)
    assert found.name == name
    assert re.search(reason, found.reason), found.reason
    assert not [pid for pid in children(os.getpid()) if "qemu" in command(pid)]


@ON_X86
async def test_the_doctor_tells_what_was_found(tmp_path: Path) -> None:
    table = {"x86_64": liar(tmp_path, "no-linux aborts"), "accel": "auto"}
    backend = QemuBackend(configured.from_table({"qemu": table}), str(tmp_path))
    bare, linux, *_ = await backend.examine()
    assert re.search(r"QEMU with kvm: KVM is proven: a loop .* ms on KVM and .* ms in software", bare.text), bare
    assert linux.text.startswith("Linux guests with tcg: KVM runs our probe but not the guest kernel: QEMU ended with")
    await asyncio.to_thread(accel.distrust, table["x86_64"], "KVM internal error in guest demo")
    bare, linux, *_ = await backend.examine()
    for finding in (bare, linux):
        assert "tcg: KVM failed in a guest on this boot: KVM internal error in guest demo" in finding.text


@ON_X86
def test_ten_supervisors_prove_once(tmp_path: Path) -> None:
    binary = liar(tmp_path, "hangs")
    (tmp_path / "config.toml").write_text(f'[qemu]\nx86_64 = "{binary}"\nkernel = "/nonexistent"\n')
    env = {**os.environ, PATH_VARIABLE: str(tmp_path / "config.toml")}
    argv = [sys.executable, "-m", "runphi_async.doctor.prove"]
    all_of_them = [
        subprocess.Popen(argv, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(10)
    ]
    said = {process.communicate(timeout=PATIENCE)[0] for process in all_of_them}
    assert len(said) == 1
    assert "bare-metal guests run with tcg: KVM is there but fails its proof: no end after" in said.pop()
    calls = (tmp_path / "liar" / liarqemu.CALLS_FILE).read_text().splitlines()
    assert [call.split(" -accel ")[1].split()[0] for call in calls] == ["tcg", "kvm"]


@ON_X86
def test_a_prover_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    binary = liar(tmp_path, "hangs")
    words = (
        "import asyncio\nfrom backends.qemu.accel import proof\n"
        f"asyncio.run(proof.run(proof.argv({binary!r}, {str(proof.image())!r}, 'x86_64', 'kvm'), 60))"
    )
    prover = subprocess.Popen([sys.executable, "-c", words], cwd=ROOT)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := [pid for pid in children(prover.pid) if "liarqemu" in command(pid)]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (guest_pid,) = found
        pidfd = os.pidfd_open(guest_pid)
        prover.send_signal(signal.SIGKILL)
        assert select.select([pidfd], [], [], PATIENCE)[0], "it goes on without its prover"
        os.close(pidfd)
    finally:
        prover.kill()
        prover.wait()


# Section: this machine


async def test_whatever_this_machine_has_is_decided_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good KVM, none, or one that lies: the answer comes within its bounds, and a guest runs on what was decided."""
    monkeypatch.delenv(proof.DEVICE_VARIABLE)
    binary = BINARIES[os.uname().machine]
    began = time.monotonic()
    found = await accel.find("auto", Question(binary))
    took = time.monotonic() - began
    assert took < proof.TRIES * ((found.tcg or 0.0) + max(proof.KVM_LEAST, found.tcg or 0.0) + LEEWAY), found
    arch = os.uname().machine
    ran = await proof.run(proof.argv(binary, str(proof.image()), arch, found.name), PATIENCE)
    assert decide.fault(ran, decide.STEPS[arch]) == ""
