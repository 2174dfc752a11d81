# SPDX-License-Identifier: Apache-2.0
"""The option list of virtiofsd, read as libfuse does: whatever the path, it stays one value."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from backends.qemu.virtiofsd import escaped


def taken_apart(text: str) -> list[str]:
    """Read as libfuse's fuse_opt.c: a comma ends an option, a backslash takes the next character as it is, or three
    octal digits as one.
    """
    found, word, at = [], "", 0
    while at < len(text):
        if text[at] == ",":
            found.append(word)
            word, at = "", at + 1
        elif text[at] == "\\" and at + 1 < len(text):
            octal = text[at + 1 : at + 4]
            if len(octal) == 3 and octal[0] in "0123" and all(digit in "01234567" for digit in octal):
                word, at = word + chr(int(octal, 8)), at + 4
            else:
                word, at = word + text[at + 1], at + 2
        else:
            word, at = word + text[at], at + 1
    return [*found, word]


@given(st.text() | st.text(st.sampled_from("\\,=017a"), max_size=12))
@example("/run/a,b\\,c\\054source=/etc")
def test_a_path_stays_one_value(path: str) -> None:
    assert taken_apart(f"source={escaped(path)},sandbox=namespace") == [f"source={path}", "sandbox=namespace"]
