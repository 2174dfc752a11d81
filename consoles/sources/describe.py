# SPDX-License-Identifier: Apache-2.0
"""Sources as people write them in annotations and in the configuration: ``pty:/dev/pts/5``, ``unix:/run/x.sock``,
``serial:/dev/ttyUSB0,115200n8``, and, from the configuration only, ``exec:jailhouse console -f``.

A command is never taken from an annotation: annotations come with images and from whoever may start a container, and
a command runs as the supervisor. Which paths they may name is for the configuration to say (``is_allowed``).
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Final, NamedTuple

from consoles.errors import SourceError
from consoles.sources.settings import SerialSettings, SettingError, parse_serial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consoles.sources.base import Source


class Pty(NamedTuple):
    """A terminal of the host."""

    path: str


class Unix(NamedTuple):
    """A listening unix socket."""

    path: str


class Exec(NamedTuple):
    """A command."""

    argv: tuple[str, ...]


Description = Pty | Unix | SerialSettings | Exec


def parse(text: str, *, commands: bool = False) -> Description:
    """Read a description.

    :param commands: whether ``exec:`` may be used: only where the configuration speaks.
    :raises SourceError: what is wrong, and at which character.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in _KINDS:
        known = ", ".join(f"{name}:" for name in _KINDS if commands or name != "exec")
        raise SourceError(f"cannot understand source {text!r}: it must begin with one of {known}")
    if kind == "exec" and not commands:
        raise SourceError(f"cannot use source {text!r}: only the configuration may name a command")
    try:
        return _KINDS[kind](rest)
    except SettingError as exc:
        at = len(kind) + 2 + exc.at
        raise SourceError(f"cannot understand source {text!r} at character {at}: {exc}") from None


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise SettingError(0, f"{text!r} is not an absolute path" if text else "the path is missing")
    if "\0" in text:
        raise SettingError(text.index("\0"), "a path cannot hold a NUL")
    return text


def _serial(text: str) -> SerialSettings:
    settings = parse_serial(text)
    _path(settings.path)
    return settings


def _command(text: str) -> Exec:
    try:
        argv = tuple(shlex.split(text))
    except ValueError as exc:
        raise SettingError(0, str(exc).lower()) from None
    if not argv:
        raise SettingError(0, "the command is missing")
    return Exec(argv)


_KINDS: Final[dict[str, Callable[[str], Description]]] = {
    "pty": lambda text: Pty(_path(text)),
    "unix": lambda text: Unix(_path(text)),
    "serial": _serial,
    "exec": _command,
}


def is_allowed(path: str, allowed: Sequence[str]) -> bool:
    """Whether a path of the host is one of ``allowed`` or lies below one.

    Either as it is written, so that allowing /dev/serial/by-id allows the links in it, or as what it really is.
    """
    written, real = os.path.normpath(path), os.path.realpath(path)
    return any(
        _below(written, os.path.normpath(entry)) or _below(real, os.path.realpath(entry))
        for entry in allowed
    )  # fmt: skip


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def make(what: Description) -> Source:
    """Return the source; nothing is opened yet."""
    # Imported here: pyserial costs 20 ms that a supervisor without serial ports need not spend.
    match what:
        case Pty(path):
            from consoles.sources.pty import PtySource

            return PtySource(path)
        case Unix(path):
            from consoles.sources.unixsocket import UnixSource

            return UnixSource(path)
        case Exec(argv):
            from consoles.sources.process import ProcessSource

            return ProcessSource(argv, stdin=True)
        case SerialSettings():
            from consoles.sources.serial import SerialSource

            return SerialSource(what)
