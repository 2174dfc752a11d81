# SPDX-License-Identifier: Apache-2.0
"""Places whose KVM lies: a QEMU before the real one, which was trusted once and fails its guests now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest import mock

from backends.qemu import accel
from backends.qemu.accel import cache, proof
from backends.qemu.settings import ACCEL_VARIABLE, Qemu
from runphi_async.testing import liarqemu
from tests.system.place import Place

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds for a kernel to reach init on the liar, and in software. A frozen one costs a test as much.
KVM_SECONDS = 3
TCG_SECONDS = 60


def config(program: Path, wish: str = "auto", kvm: float = KVM_SECONDS, tcg: float = TCG_SECONDS) -> str:
    """A configuration whose QEMU is the liar; its signals have short deadlines."""
    return (
        f'[qemu]\naccel = "{wish}"\nx86_64 = "{program}"\nstop_seconds = 2\n'
        f"[qemu.init_seconds]\nkvm = {kvm}\ntcg = {tcg}\n"
    )


def trust(place: Place, program: Path) -> None:
    """Let the place believe that KVM is good, as if the liar had been honest when it was tried."""
    env = {cache.VARIABLE: str(place.path / "proofs"), proof.DEVICE_VARIABLE: "/dev/null"}
    place.env.pop(ACCEL_VARIABLE, None)
    place.env |= env
    qemu = Qemu()
    answer = accel.Accel("kvm", "it was honest once")
    with mock.patch.dict(os.environ, env):
        accel.keep(accel.Question(str(program)), answer)
        accel.keep(accel.Question(str(program), qemu.kernel, qemu.initrd), answer)


def lying(directory: Path, inmates: Path, role: str, **settings: float | str) -> Place:
    """Make a place where guests on KVM meet a role of ``liarqemu``."""
    program = liarqemu.install(directory / "liar", role)
    made = Place(inmates, config(program, **settings))  # type: ignore[arg-type]
    trust(made, program)
    return made
