# SPDX-License-Identifier: Apache-2.0
"""The FIFOs between supervisor, QEMU and the guest's init: events, and the control port of a Linux guest.

The init stub holds the ends that are read here, so nothing is lost while no supervisor runs.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from backends.qemu.heard import Heard
from consoles.streams.fifo import LineChannel, open_fifo
from runphi_async.errors import BackendError
from runphi_async.lifeline.stub import Fd

if TYPE_CHECKING:
    from collections.abc import Callable

_CAPABILITIES: Final = b'{"execute":"qmp_capabilities"}\n'
_NAMES: Final = ("ev.in", "ev.out", "ctl.in", "ctl.out")
#: Lines told to the guest's init before it could hear them: a second VMM has to be told them again.
TOLD: Final = "ctl.told"
_DRAIN: Final = 65536
#: QEMU may have put a link or a FIFO in the place of such a file.
_OPEN: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Wires:
    """Both channels of one guest, and what was heard on them.

    :param on_event: called with the name of each event.
    :param on_word: called with each word of the guest's init that is news, and once with "" when it is reached.
    """

    def __init__(self, dir_fd: int, on_event: Callable[[str], None], on_word: Callable[[str], None]) -> None:
        self.heard = Heard()
        self._dir_fd = dir_fd
        self._on_event = on_event
        self._on_word = on_word
        self._fds: dict[str, int] = {}
        self._channels: list[LineChannel] = []

    def make(self) -> None:
        """Make the FIFOs; QEMU's monitor of events begins to speak once it was asked to."""
        for name in _NAMES:
            os.mkfifo(name, 0o600, dir_fd=self._dir_fd)
        self.open()
        os.write(self._fds["ev.in"], _CAPABILITIES)

    def open(self) -> None:
        """Open the FIFOs."""
        for name in _NAMES:
            self._fds[name] = open_fifo(name, self._dir_fd)

    @property
    def kept(self) -> dict[Fd, int]:
        """What the stub keeps."""
        return {Fd.EVENTS: self._fds["ev.out"], Fd.CONTROL: self._fds["ctl.out"]}

    def listen(self, events_from: int = 0, control_from: int = 0) -> None:
        """Hear everything from these offsets of the channels' records on."""
        for channel, on_line, start in (("ev", self._event, events_from), ("ctl", self._word, control_from)):
            record = os.open(f"{channel}.log", os.O_RDWR | os.O_CREAT | _OPEN, 0o600, dir_fd=self._dir_fd)
            self._channels.append(LineChannel(os.dup(self._fds[f"{channel}.out"]), record, on_line, start))

    def poll(self) -> None:
        """Hear what has arrived."""
        for channel in self._channels:
            channel.poll()

    def _event(self, line: bytes) -> None:
        self._on_event(self.heard.event(line))

    def _word(self, line: bytes) -> None:
        reached = self.heard.reached
        word = self.heard.word(line)
        if self.heard.reached and not reached:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(TOLD, dir_fd=self._dir_fd)
            self._on_word("")
        if word:
            self._on_word(word)

    def tell(self, line: str, *, keep: bool) -> None:
        """Tell the guest's init a line.

        :param keep: for a second VMM, as long as init may not have heard it.
        :raises BackendError: it does not listen.
        """
        fd, data = self._fds.get("ctl.in", -1), line.encode() + b"\n"
        if fd < 0:
            return
        if keep and not self.heard.reached:
            kept = os.open(TOLD, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _OPEN, 0o600, dir_fd=self._dir_fd)
            with os.fdopen(kept, "ab") as file:
                file.write(data)
        try:
            os.write(fd, data)
        except BlockingIOError as exc:
            raise BackendError(f"cannot tell the guest {line!r}: its init does not listen") from exc

    def told(self) -> bytes:
        """Return the lines that were told and kept."""
        try:
            fd = os.open(TOLD, os.O_RDONLY | _OPEN, dir_fd=self._dir_fd)
        except FileNotFoundError:
            return b""
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def ends(self) -> tuple[int, int]:
        """Return the ends of the records."""
        events, control = self._channels
        return events.tail, control.tail

    def rewind(self) -> None:
        """The first VMM is gone: what it may have read is there again, for the second."""
        for name, data in (("ev.in", _CAPABILITIES), ("ctl.in", self.told())):
            with contextlib.suppress(BlockingIOError):
                while os.read(self._fds[name], _DRAIN):
                    pass
            if data:
                os.write(self._fds[name], data)

    def listen_anew(self, ends: tuple[int, int]) -> None:
        """Forget what was heard, and listen to the second VMM."""
        self._stop_listening()
        self.heard = Heard()
        self.listen(*ends)

    def _stop_listening(self) -> None:
        for channel in self._channels:
            channel.close()
        self._channels.clear()

    def close(self) -> None:
        """Let go of everything."""
        self._stop_listening()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
