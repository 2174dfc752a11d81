# SPDX-License-Identifier: Apache-2.0
"""What client and supervisor say of a console that is shown. Loaded by the thin client only when one is.

A client that an upgrade left running may load this beside the words of an older version, so it imports nothing.
"""


class AttachStart:
    """How a console is shown: the payload of ATTACH, a byte of flags and the keys.

    :ivar terminal: the guest's console is a terminal: the person's is made raw, and its size is told.
    :ivar stdin: what is typed, or comes in at stdin, goes to the guest.
    :ivar forward: a `run`: signals are the container's.
    :ivar people: an `attach`: it is told of others, and marks what runPHI says.
    :ivar safe: control sequences are shown as text.
    :ivar escape: the key in front of commands, or b"" for none; one byte.
    :ivar detach: the keys that leave, in this order; b"": none do.
    """

    #: the flags in the order of their bits; the one that has no name says that the escape key is there
    FLAGS = ("terminal", "stdin", "forward", "", "people", "", "safe")
    ESCAPE = 8

    def __init__(
        self,
        *,
        terminal: bool = False,
        stdin: bool = False,
        forward: bool = False,
        people: bool = False,
        safe: bool = False,
        escape: bytes = b"",
        detach: bytes = b"",
    ) -> None:
        self.terminal = terminal
        self.stdin = stdin
        self.forward = forward
        self.people = people
        self.safe = safe
        self.escape = escape
        self.detach = detach

    def encode(self) -> bytes:
        """Return the payload; ValueError for an escape key that is no single byte."""
        if len(self.escape) > 1:
            raise ValueError("an escape key is one byte")
        flags = self.ESCAPE if self.escape else 0
        for bit, name in enumerate(self.FLAGS):
            if name and getattr(self, name):
                flags |= 1 << bit
        return bytes((flags,)) + self.escape + self.detach

    @classmethod
    def decode(cls, payload: bytes) -> "AttachStart":
        """Take a payload apart; ValueError when it is empty. Flags that nobody knows are left out."""
        if not payload:
            raise ValueError("nothing says how the console is shown")
        flags, keys = payload[0], payload[1:]
        named = {name: bool(flags & 1 << bit) for bit, name in enumerate(cls.FLAGS) if name}
        escape = keys[:1] if flags & cls.ESCAPE else b""
        return cls(**named, escape=escape, detach=keys[len(escape) :])


def pack_offset(offset: int) -> bytes:
    """Return the payload of CONSOLE_AT and SKIPPED."""
    return offset.to_bytes(8, "big")


def unpack_offset(payload: bytes) -> int:
    """Return the offset in such a payload."""
    return int.from_bytes(payload, "big")
