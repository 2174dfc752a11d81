# SPDX-License-Identifier: Apache-2.0
"""What a guest's driver and its VMM leave in the record directory: read by the next supervisor, and by people."""

from __future__ import annotations

import contextlib
import os
from typing import Final

import msgspec

from backends.qemu import words
from backends.qemu.runstate import Clock
from runphi_async import regular
from runphi_async.host.files import write_atomically
from runphi_async.lifeline import stub

#: Why we ended QEMU.
FAILURE: Final = "vmm.failure"
#: What the guest's kernel said last, where it was asked for that.
KERNEL_LOG: Final = "kernel.log"
#: For how long the guest's kernel has run on its way to our init.
CLOCK: Final = "init.clock"
#: The bytes behind the exit code port.
GUEST_EXIT: Final = "guest.exit"
_READ_MAX: Final = 1 << 20


class Remains:
    """The files of one guest. One that cannot be written is one that nobody will read: its record is gone."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def _read(self, name: str) -> bytes:
        """Return a file's content, nothing when there is no such file or something else is in its place."""
        return regular.tail(os.path.join(self._directory, name), _READ_MAX)

    def _write(self, name: str, data: bytes) -> None:
        with contextlib.suppress(OSError):
            write_atomically(os.path.join(self._directory, name), data)

    def vmm_log(self) -> bytes:
        """Return the end of what QEMU said."""
        return self._read(stub.VMM_LOG)[-words.TAIL_BYTES :]

    def fail(self, reason: str) -> None:
        """Remember why QEMU is ended."""
        self._write(FAILURE, reason.encode())

    def failure(self) -> str | None:
        """Return why QEMU was ended, None when it was not."""
        return self._read(FAILURE).decode("utf-8", "replace") or None

    def keep_clock(self, clock: Clock) -> None:
        """Remember for how long the guest's kernel has run."""
        self._write(CLOCK, msgspec.json.encode(clock))

    def clock(self) -> Clock:
        """Return for how long it has run."""
        try:
            return msgspec.json.decode(self._read(CLOCK), type=Clock)
        except msgspec.MsgspecError:
            return Clock()

    def forget_clock(self) -> None:
        """The kernel has reached our init."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._directory, CLOCK))

    def keep_kernel_log(self, text: str) -> None:
        """Remember what the guest's kernel said last."""
        lines = words.last(text.encode("utf-8", "replace"), words.TAIL_BYTES)
        self._write(KERNEL_LOG, "".join(f"{line}\n" for line in lines).encode())

    def kernel_lines(self) -> tuple[str, ...]:
        """Return its last lines, where they are known."""
        return words.of_panic(self._read(KERNEL_LOG))
