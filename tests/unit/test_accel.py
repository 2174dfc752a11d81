# SPDX-License-Identifier: Apache-2.0
"""KVM is used after a guest really ran on it, and the proof is made once a boot."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from backends.qemu import accel
from backends.qemu.accel import Accel, Outcome
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

KVM = Accel("kvm", "ran")
TCG = Accel("tcg", "hung")


@pytest.mark.parametrize(
    ("outcome", "name", "reason"),
    [
        (Outcome(85, 0.1), "kvm", "a guest ran on KVM in 0.10 s"),
        (Outcome(None, 1.5), "tcg", "a guest did not get anywhere in 1.5 s"),
        (Outcome(0, 0.1), "tcg", "ended with status 0"),
        (Outcome(1, 0.1, "qemu: no KVM\nmore\n"), "tcg", "ended with status 1: qemu: no KVM"),
        (Outcome(-6, 0.1), "tcg", "ended with signal 6"),
    ],
)
def test_judge(outcome: Outcome, name: str, reason: str) -> None:
    found = accel.judge(outcome)
    assert found.name == name
    assert found.reason.endswith(reason)


def test_choose() -> None:
    assert accel.choose("auto", KVM) == accel.choose("kvm", KVM) == KVM
    assert accel.choose("auto", TCG) == TCG
    assert accel.choose("tcg", KVM).name == "tcg"
    with pytest.raises(BackendError, match="cannot use KVM: hung; set accel"):
        accel.choose("kvm", TCG)


async def test_a_hanging_probe_is_ended_at_the_deadline() -> None:
    outcome = await accel.run_probe([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)
    assert outcome.status is None
    assert 0.2 <= outcome.seconds < 5


async def test_a_cancelled_probe_leaves_no_process(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    os.mkfifo(pid_file)
    fd = os.open(pid_file, os.O_RDWR | os.O_NONBLOCK)
    try:
        ready = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, ready.set)
        task = asyncio.create_task(accel.run_probe(["/bin/sh", "-c", f"echo $$ > {pid_file}; exec sleep 60"], 30))
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


async def test_the_answer_is_kept_for_this_boot_and_this_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[str] = []

    async def probe(binary: str, timeout: float) -> Accel:
        probes.append(binary)
        return KVM

    monkeypatch.setattr(accel, "probe", probe)
    run_dir = str(tmp_path)
    assert await accel.find("tcg", "q", run_dir) == Accel("tcg", "the configuration says so")
    assert probes == []
    assert await accel.find("auto", "q", run_dir) == KVM
    assert await accel.find("kvm", "q", run_dir) == KVM
    assert probes == ["q"]
    assert os.listdir(run_dir) == [accel.CACHE]
    await accel.find("auto", "other", run_dir)
    assert probes == ["q", "other"]
    monkeypatch.setattr(accel, "_boot_id", lambda: "another boot")
    await accel.find("auto", "other", run_dir)
    assert len(probes) == 3
    for damaged in (b"", b"{", b'{"boot_id": 5}', b"\xff\xff"):
        (tmp_path / accel.CACHE).write_bytes(damaged)
        await accel.find("auto", "other", run_dir)
    assert len(probes) == 7


async def test_a_cache_that_cannot_be_written_costs_only_a_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probe(binary: str, timeout: float) -> Accel:
        return TCG

    monkeypatch.setattr(accel, "probe", probe)
    assert await accel.find("auto", "q", str(tmp_path / "absent")) == TCG


def test_an_unknown_name_in_the_cache_is_not_believed(tmp_path: Path) -> None:
    entry = {"boot_id": "b", "binary": "q", "accel": {"name": "magic", "reason": ""}}
    (tmp_path / accel.CACHE).write_bytes(msgspec.json.encode(entry))
    assert accel.cached(str(tmp_path), "b", "q") is None


async def test_no_kvm_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "DEVICE", "/nonexistent/kvm")
    found = await accel.probe("q")
    assert found.name == "tcg"
    assert "cannot open /nonexistent/kvm" in found.reason or "no KVM probe" in found.reason


async def test_no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "DEVICE", "/dev/null")
    found = await accel.probe("/nonexistent/qemu")
    assert found.name == "tcg"
    assert "cannot run /nonexistent/qemu" in found.reason or "no KVM probe" in found.reason
