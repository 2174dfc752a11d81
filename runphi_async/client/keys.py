# SPDX-License-Identifier: Apache-2.0
"""What a person types on a console, told apart: bytes for the guest, keys that leave, and keys behind the escape key.

Part of the thin client: imports nothing. Bytes that only might begin the detach sequence are held back.
"""


class DetachKeys:
    """Finds the detach sequence in what is typed."""

    def __init__(self, keys: bytes) -> None:
        self.keys = keys
        self.seen = 0

    def feed(self, data: bytes) -> "tuple[bytes, bool]":
        """Return (bytes to pass on, whether the sequence is complete)."""
        if not self.keys:
            return data, False
        out = b""
        for value in data:
            held = self.keys[: self.seen] + bytes((value,))
            if held == self.keys:
                return out, True
            passed = 0
            while not self.keys.startswith(held[passed:]):
                passed += 1
            out += held[:passed]
            self.seen = len(held) - passed
        return out, False


class EscapeKey:
    """Cuts what is typed at the escape key: the byte behind it is a command, the key twice is the key itself."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.armed = False

    def feed(self, data: bytes) -> "tuple[bytes, bytes, bytes]":
        """Return (bytes for the guest, command behind them or b"", what was typed behind that)."""
        if not self.key:
            return data, b"", b""
        text = b""
        for i in range(len(data)):
            byte = data[i : i + 1]
            if self.armed:
                self.armed = False
                if byte != self.key:
                    return text, byte, data[i + 1 :]
                text += byte
            elif byte == self.key:
                self.armed = True
            else:
                text += byte
        return text, b"", b""


class Line:
    """One line typed on a raw terminal, edited by hand: the name of a file to send."""

    def __init__(self) -> None:
        self.text = b""

    def feed(self, data: bytes) -> "tuple[bytes, bytes | None, bytes]":
        """Return (what to show, the line when it is complete (b"" = given up), what was typed behind it)."""
        shown = b""
        for i in range(len(data)):
            byte = data[i : i + 1]
            if byte in (b"\r", b"\n"):
                return shown, self.text, data[i + 1 :]
            if byte in (b"\x03", b"\x1b"):
                return shown, b"", data[i + 1 :]
            if byte in (b"\x7f", b"\b"):
                if self.text:
                    self.text = self.text[:-1]
                    shown += b"\b \b"
            elif byte >= b" ":
                self.text += byte
                shown += byte
        return shown, None, b""
