# SPDX-License-Identifier: Apache-2.0
"""docs/how-to/partitioned-containers-on-xen.md, followed word for word in dom0: its blocks are what is run.

Left out is what needs a network or a compiler, ``bin/prepare-guest`` and ``bin/build-inmates``: what they make came
with the tests. ``ctr run`` has a test of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

from tests.system.place import ended
from tests.xen.dom0 import page
from tests.xen.dom0.kit import INMATE
from tests.xen.install import HOME

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(900)

RUN_DIR = Path("/run/runPHI")
INMATES = Path("/var/lib/runphi/inmates")
PROMPT = "dom0-of-the-page# "
ANSWER = 240


@pytest.fixture
def checkout() -> Iterator[Path]:
    """The checkout, on a machine where nobody has used runPHI yet."""
    INMATES.mkdir(parents=True)
    shutil.copy(INMATE, INMATES)
    try:
        yield Path(HOME)
    finally:
        shutil.rmtree(Path(HOME) / "demo", ignore_errors=True)
        shutil.rmtree(INMATES)
        shutil.rmtree("/etc/runphi", ignore_errors=True)
        if (RUN_DIR / "supervisor.pid").exists():
            pid = int((RUN_DIR / "supervisor.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            ended(pid)
        subprocess.run(["xl", "cpupool-destroy", "quiet"], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["xl", "cpupool-cpu-add", "Pool-0", "1"], check=True)


class Shell:
    """A terminal of dom0's, as the reader has one."""

    def __init__(self, checkout: Path) -> None:
        env = {"PATH": os.environ["PATH"], "HOME": "/root", "TERM": "dumb", "PS1": PROMPT}
        self.child = pexpect.spawn("bash", ["--norc", "--noprofile"], cwd=str(checkout), env=env, timeout=ANSWER,
                                   encoding="utf-8", dimensions=(50, 200))  # fmt: skip

    def run(self, block: page.Block, script: Path) -> str:
        """Run a block from a file; return what it printed. The first command that fails is the end of it."""
        script.write_text(block.text)
        self.child.expect_exact(PROMPT)
        self.child.sendline(f"bash -e {script}; echo status $? end")
        found = self.child.expect([r"status (\d+) end\r\n", pexpect.EOF])
        said = str(self.child.before)
        assert found == 0, (block.text, said)
        assert self.child.match[1] == "0", (block.text, said)
        return said

    def play(self, block: page.Block) -> None:
        """Type what stands behind a prompt, and expect what the page shows."""
        for line in block.text.splitlines():
            if line.startswith("# "):
                self.child.expect_exact(PROMPT)
                self.child.sendline(line[2:])
            elif line.startswith("> "):
                self.child.expect_exact("> ")
                self.child.send(line[2:] + "\r")
                self.child.expect_exact(line[2:] + "\r\n")
            else:
                self.child.expect_exact(line + "\r")


def test_the_page(checkout: Path, tmp_path: Path) -> None:
    found = page.blocks()
    assert [block.language for block in found] == ["sh", "sh", "sh", "console", "sh", "console", "ctr", "sh"]
    first, second = Shell(checkout), Shell(checkout)
    printed = []
    for block in found:
        if block.language == "console":
            first.play(block)
        elif block.language == "sh":
            printed.append((second if block.words else first).run(block, tmp_path / "block.sh"))
    listed, looked, pools = printed[1], printed[3], printed[4]
    assert "Domain-0" in listed
    assert "of memory are free for guests" in listed
    assert re.search(r"^first\.[0-9a-f]{8} ", looked, re.MULTILINE), looked
    assert 'kernel = "' in looked
    assert "boot: a pvh guest" in looked
    assert "runPHI demo inmate, x86_64 (Xen)" in looked
    assert re.search(r"^quiet +1\r$", pools, re.MULTILINE), pools
    for shell in (first, second):
        shell.child.expect_exact(PROMPT)
        shell.child.sendline("exit")
        shell.child.expect(pexpect.EOF)
        shell.child.close()
