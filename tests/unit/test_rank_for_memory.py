# SPDX-License-Identifier: Apache-2.0
"""The rank of a process for the kernel's out-of-memory killer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runphi_async.container.memoryrank import rank_for_memory
from runphi_async.errors import SpecError


def test_a_process_and_what_it_starts_have_the_rank() -> None:
    words = ["sh", "-c", "read go; cat /proc/self/oom_score_adj"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        rank_for_memory(process.pid, 700)
        assert process.communicate(b"go\n", timeout=30)[0] == b"700\n"
    assert Path("/proc/self/oom_score_adj").read_text() != "700\n"


def test_a_process_that_is_gone_needs_none() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    rank_for_memory(process.pid, 700)


def test_what_the_kernel_refuses_is_said() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        with pytest.raises(SpecError, match="cannot set oom_score_adj to 1001: Invalid argument"):
            rank_for_memory(process.pid, 1001)
        process.communicate(timeout=30)
