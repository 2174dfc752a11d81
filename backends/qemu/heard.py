# SPDX-License-Identifier: Apache-2.0
"""What was heard of one VMM and of its guest's init, line by line. A next supervisor hears all of it again."""

from __future__ import annotations

import msgspec

from backends.guest.initchannel import InitWords


class Heard(InitWords):
    """Both channels' evidence: the init's words, and QEMU's.

    :ivar events: (name, data) in the order QEMU sent them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, dict[str, object]]] = []

    def event(self, line: bytes) -> str:
        """Hear a line of QEMU; return the event's name, "" when it is none."""
        try:
            message = msgspec.json.decode(line, type=dict[str, object])
        except msgspec.MsgspecError:
            return ""  # a line cut short by QEMU's death
        name, data = message.get("event"), message.get("data")
        if not isinstance(name, str):
            return ""
        self.events.append((name, data if isinstance(data, dict) else {}))
        return name

    @property
    def started(self) -> bool:
        """Whether the guest was ever let go."""
        return any(name == "RESUME" for name, _ in self.events)
