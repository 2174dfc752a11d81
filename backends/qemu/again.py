# SPDX-License-Identifier: Apache-2.0
"""The second try of a Linux guest whose kernel did not come as far as our init on KVM: once more, on TCG.

Nothing of the container has run by then, so it is as if the guest had never been started. The init stub has both
command lines and starts the second when told to. What was decided lies in the record, in this order:

1. ``again.json``: decided, and why. The first VMM is ended, if it has not by itself. Whoever finds this file goes on;
   a guest that is to be destroyed loses it first.
2. ``again.json`` with the ends of both channels' records: events and words before them are the first VMM's.
3. ``first.status`` in place of ``vmm.status``: the second VMM is up to the stub. Said to it after that, and said
   again by a supervisor that cannot know whether its predecessor came to it.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

import msgspec

from backends.qemu.remains import KERNEL_LOG
from runphi_async import regular
from runphi_async.host.files import write_atomically
from runphi_async.lifeline import stub

FILE: Final = "again.json"
FIRST_STATUS: Final = "first.status"
FIRST_LOG: Final = "first.log"
FIRST_KERNEL_LOG: Final = "first.kernel.log"
#: On what the second VMM runs.
ACCEL: Final = "tcg"
#: Bytes that are read of `FILE`; a reason has the kernel's last lines, which have a bound of their own.
_MAX_BYTES: Final = 256 * 1024


class Again(msgspec.Struct, frozen=True):
    """Why the guest is started a second time."""

    reason: str
    #: the guest was running, or about to
    started: bool = False
    #: where the second VMM's part of ``ev.log`` and ``ctl.log`` begins
    events_from: int = 0
    control_from: int = 0


_decoder = msgspec.json.Decoder(Again)


def load(directory: str) -> Again | None:
    """Return what was decided, None when nothing was."""
    try:
        return _decoder.decode(regular.read(os.path.join(directory, FILE), _MAX_BYTES, links=False))
    except (OSError, msgspec.MsgspecError):
        return None


def save(directory: str, again: Again) -> None:
    """Write down what was decided."""
    write_atomically(os.path.join(directory, FILE), msgspec.json.encode(again))


def forget(directory: str) -> None:
    """The guest is to be destroyed: there is no second try."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, FILE))


def is_handed_over(directory: str) -> bool:
    """Whether the second VMM is up to the stub."""
    return os.path.exists(os.path.join(directory, FIRST_STATUS))


def hand_over(directory: str) -> None:
    """Keep what the first VMM left under other names, and tell the stub."""
    for name, kept in ((stub.VMM_LOG, FIRST_LOG), (KERNEL_LOG, FIRST_KERNEL_LOG)):
        with contextlib.suppress(FileNotFoundError):  # a predecessor came so far
            os.rename(os.path.join(directory, name), os.path.join(directory, kept))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, stub.VMM_PID))
    os.rename(os.path.join(directory, stub.VMM_STATUS), os.path.join(directory, FIRST_STATUS))
    stub.say_again(directory)
