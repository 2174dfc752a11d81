# SPDX-License-Identifier: Apache-2.0
"""bin/quickstart on a KVM that lies: what a proof finds out costs nothing, what it cannot know is named and mended."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from runphi_async.testing import liarqemu
from tests.engine.test_quickstart import Quick, named, quick  # noqa: F401, TC001 fixtures

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


def environment(tmp_path: Path, role: str) -> dict[str, str]:
    """A machine on which the role is KVM, and nothing was proven yet."""
    program, config, proofs = liarqemu.install(tmp_path / "liar", role), tmp_path / "config.toml", tmp_path / "proofs"
    proofs.mkdir()
    (tmp_path / "kvm").touch()
    config.write_text(f'[qemu]\nx86_64 = "{program}"\n[log]\ndir = "{tmp_path}/log"\n')
    # "auto" stands over whatever the whole suite is forced to
    return {
        "RUNPHI_CONFIG": str(config), "RUNPHI_PROOFS": str(proofs), "RUNPHI_KVM": str(tmp_path / "kvm"),
        "RUNPHI_ACCEL": "auto",
    }  # fmt: skip


@pytest.mark.parametrize("role", ["hangs", "internal-error", "aborts", "crawls"])
def test_a_liar_that_is_found_out(quick: Quick, tmp_path: Path, role: str) -> None:  # noqa: F811
    done = quick.call("--check", env=environment(tmp_path, role))
    assert done.returncode == 0, done.stdout
    assert not quick.report.exists()


def test_a_liar_that_passes_every_proof(quick: Quick, tmp_path: Path) -> None:  # noqa: F811
    begun = time.monotonic()
    done = quick.call("--check", env=environment(tmp_path, "turncoat internal-error 2"))
    assert done.returncode == 1, done.stdout
    assert time.monotonic() - begun < 180
    failed = done.stdout.partition("bare-metal guest")[2].partition("\n  Linux guest")[0]
    assert "FAILED" in failed
    assert re.search(r"the guest(?:'s QEMU)? on kvm", failed)
    assert "KVM internal error. Suberror: 1" in failed
    assert "cause: KVM of this machine cannot run this guest" in failed
    assert "RUNPHI_ACCEL=tcg" in failed
    assert not re.search("to mend it: .*prepare-guest", done.stdout)
    report = quick.report.read_text()
    assert "KVM internal error. Suberror: 1" in report
    assert "\n## Accelerator\n" in report
