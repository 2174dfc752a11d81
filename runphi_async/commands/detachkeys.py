# SPDX-License-Identifier: Apache-2.0
"""Detach keys as docker and podman write them: ``ctrl-p,ctrl-q``; a single letter stands for itself, "" for none."""

from __future__ import annotations

from runphi_async.errors import UsageError

_NAMED = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse(text: str) -> bytes:
    """Return the bytes of a key sequence.

    :raises UsageError: a key has no byte.
    """
    return bytes(_key(word.strip()) for word in text.split(",")) if text else b""


def parse_one(text: str) -> bytes:
    """Return the byte of a single key; "" is none.

    :raises UsageError: it is no key, or several.
    """
    keys = parse(text)
    if len(keys) > 1:
        raise UsageError(f"cannot use {text!r} as an escape key: it is more than one", "write one key like ctrl-]")
    return keys


def _key(word: str) -> int:
    if len(word) == 1 and word.isascii() and word.isprintable():
        return ord(word)
    prefix, _, key = word.lower().partition("-")
    if prefix == "ctrl" and len(key) == 1:
        if "a" <= key <= "z":
            return ord(key) - ord("a") + 1
        if key in _NAMED:
            return _NAMED[key]
    raise UsageError(f"unknown detach key {word!r}", "write keys like ctrl-p,ctrl-q or a letter")
