# SPDX-License-Identifier: Apache-2.0
"""How readily the kernel ends a container's processes when memory runs out."""

from __future__ import annotations

from runphi_async.errors import SpecError


def rank_for_memory(pid: int, rank: int) -> None:
    """Set how readily the kernel ends a process when memory runs out, from -1000 (never) to 1000.

    What it forks later inherits the rank. Source: proc(5), /proc/pid/oom_score_adj.
    """
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(rank))
    except (FileNotFoundError, ProcessLookupError):
        return  # it is gone: whoever watches it tells why
    except OSError as exc:
        raise SpecError(
            f"cannot set oom_score_adj to {rank}: {exc.strerror}",
            "a lower one needs CAP_SYS_RESOURCE; for containerd's CRI plugin set restrict_oom_score_adj = true",
        ) from exc
