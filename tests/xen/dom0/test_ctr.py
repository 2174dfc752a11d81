# SPDX-License-Identifier: Apache-2.0
"""``ctr run`` of domains: a real containerd in dom0, its shim, and a terminal."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pexpect
import pytest

from runphi_async.testing.containerd import PrivateContainerd
from tests.xen.dom0 import page
from tests.xen.dom0.kit import CONFIG
from tests.xen.install import HOME, SHARE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(900)

#: Seconds until ctr has shown something: three programs of Go start before a domain does, all of it emulated.
ANSWER: Final = 240.0


class Emulated(PrivateContainerd):
    """A containerd that is given the time it needs here."""

    def ctr(self, *args: str, timeout: float = ANSWER, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        return super().ctr(*args, timeout=max(timeout, ANSWER), stdin=stdin)


@pytest.fixture
def engine() -> Iterator[PrivateContainerd]:
    """A containerd with the demo image; fails the test when anything outlives it."""
    with tempfile.TemporaryDirectory(prefix="rp", dir="/tmp") as name:
        directory = Path(name)
        config = directory / "config.toml"
        config.write_text(CONFIG + f'\n[log]\ndir = "{directory}/log"\n')
        engine = Emulated(directory / "s", directory / "r", "xen", env={"RUNPHI_CONFIG": str(config)})
        try:
            engine.start()
            engine.import_images([Path(SHARE) / "images" / "demo.tar"])
            yield engine
        finally:
            left = engine.stop()
        assert not left, "left over:\n" + "\n".join(left)


def test_run_on_a_terminal(engine: PrivateContainerd) -> None:
    """The command is the one of docs/how-to/partitioned-containers-on-xen.md: a PV guest."""
    (command,) = (block.text for block in page.blocks() if block.language == "ctr")
    env = {**engine.client_env, "CONTAINERD_ADDRESS": str(engine.socket), "CONTAINERD_NAMESPACE": engine.namespace}
    child = pexpect.spawn("bash", ["-c", command], cwd=HOME, env=env, timeout=ANSWER, echo=False)
    try:
        child.expect_exact("runPHI demo inmate, x86_64 (Xen)")
        child.expect_exact("> ")
        assert any(line.startswith("second.") for line in xl_list())
        child.send("echo through containerd\r")
        child.expect_exact("\nthrough containerd\r")
        child.expect_exact("> ")
        child.send("exit 42\r")
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.exitstatus == 42
    assert engine.containers() == []
    assert not any(line.startswith("second.") for line in xl_list())


def xl_list() -> list[str]:
    return subprocess.run(["xl", "list"], capture_output=True, text=True, check=True).stdout.splitlines()
