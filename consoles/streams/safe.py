# SPDX-License-Identifier: Apache-2.0
"""Console output made harmless: control sequences become text, so that a log can be shown in any terminal.

A guest's escape sequences can move the cursor over what was printed before, set the window's title, or make a
terminal answer as if the person had typed. Loaded by the thin client only for ``--safe``.
"""

import codecs

#: Characters that reorder or hide what stands around them. Source: Unicode, Bidi_Control, and U+2028, U+2029, U+FEFF.
_HIDDEN = (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)

_TABLE: "dict[int, str]" = {
    **{value: "^" + chr(value ^ 0x40) for value in (*range(0x20), 0x7F)},
    **{value: f"\\x{value:02x}" for value in range(0x80, 0xA0)},
    **{value: f"<U+{value:04X}>" for value in _HIDDEN},
}
for _value in (0x09, 0x0A):
    del _TABLE[_value]


class Safe:
    """Neutralises a stream: ``^[`` for escape, ``\\xNN`` for bytes that are not UTF-8; CR LF becomes LF."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._return = ""

    def feed(self, data: bytes, final: bool = False) -> bytes:
        """Return what to show for ``data``; what is cut off at its end is shown with the next piece."""
        text = self._return + self._decoder.decode(data, final)
        self._return = ""
        if text.endswith("\r") and not final:
            text, self._return = text[:-1], "\r"
        return text.replace("\r\n", "\n").translate(_TABLE).encode()

    def end(self) -> bytes:
        """Return what was held back."""
        return self.feed(b"", final=True)
