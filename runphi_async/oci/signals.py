# SPDX-License-Identifier: Apache-2.0
"""What a signal that an engine sends means for a partition.

A partition is not a process: engines forward SIGWINCH and SIGHUP with ``kill`` as a matter of course (urunc#594), and
neither may destroy a guest.
"""

from __future__ import annotations

import signal
from enum import StrEnum
from typing import Final

from runphi_async import digits
from runphi_async.errors import UsageError


class Meaning(StrEnum):
    """What to do with a signal."""

    #: only whether the guest is there
    PROBE = "probe"
    #: destroy at once
    KILL = "kill"
    #: ask the guest to end; destroy it when it has no ear for that or does not end in time
    STOP = "stop"
    #: the terminal has another size
    RESIZE = "resize"
    PAUSE = "pause"
    RESUME = "resume"
    #: for the guest if it can take signals, else nothing
    PASS = "pass"


_MEANINGS: Final = {
    0: Meaning.PROBE,
    signal.SIGKILL: Meaning.KILL,
    signal.SIGTERM: Meaning.STOP,
    signal.SIGINT: Meaning.STOP,
    signal.SIGQUIT: Meaning.STOP,
    signal.SIGWINCH: Meaning.RESIZE,
    signal.SIGSTOP: Meaning.PAUSE,
    signal.SIGCONT: Meaning.RESUME,
}
#: the highest signal there is
LAST: Final = 64
_REALTIME: Final = frozenset(map(str, range(31)))


def meaning(number: int) -> Meaning:
    """Return what signal ``number`` means for a partition."""
    return _MEANINGS.get(number, Meaning.PASS)


def parse(text: str) -> int:
    """Return the number of a signal given as ``9``, ``KILL`` or ``SIGKILL``, in any case.

    :raises UsageError: there is no such signal.
    """
    number = digits.whole(text, LAST)
    if number is not None:
        return number
    name = text.upper()
    name = name if name.startswith("SIG") else "SIG" + name
    if name.startswith("SIGRTMIN+") and name[9:] in _REALTIME:
        return signal.SIGRTMIN + int(name[9:])
    try:
        return signal.Signals[name]
    except KeyError:
        raise UsageError(f"unknown signal {text!r}", "use a number from 0 to 64 or a name such as TERM") from None
