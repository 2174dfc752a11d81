# SPDX-License-Identifier: Apache-2.0
"""The settings of a serial port as people write them: ``/dev/ttyUSB0,115200n8,rtscts``.

Pure: nothing is opened here, so that a wrong word is refused long before anybody touches the port.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from runphi_async.errors import RunphiError

#: Speeds the kernel may be asked for; a port that cannot do one refuses it when it is opened.
SLOWEST: Final = 50
FASTEST: Final = 12_000_000
_PARITIES: Final = {"n": "none", "e": "even", "o": "odd", "m": "mark", "s": "space"}
_STOPS: Final = {"1": 1.0, "1.5": 1.5, "2": 2.0}
#: 115200, 115200n8, 115200n8r as on a kernel's command line
_LINE: Final = re.compile(r"([0-9]{1,15})(?:([a-z])(?:([0-9])(r?))?)?")
#: 8n1
_FRAME: Final = re.compile(r"([0-9])([a-z])([0-9](?:\.[0-9])?)")


class SerialSettings(NamedTuple):
    """How to open a serial port."""

    path: str
    speed: int = 115200
    bits: int = 8
    #: n, e, o, m or s
    parity: str = "n"
    stop: float = 1.0
    rtscts: bool = False
    xonxoff: bool = False

    def text(self) -> str:
        """Return the settings as they are written."""
        words = [self.path, f"{self.speed}{self.parity}{self.bits}"]
        if self.stop != 1:
            words.append(f"{self.bits}{self.parity}{self.stop:g}")
        words += [word for word in ("rtscts", "xonxoff") if getattr(self, word)]
        return ",".join(words)


class SettingError(RunphiError, ValueError):
    """Raised for a word that cannot be understood.

    :param at: offset of the word in the text.
    """

    def __init__(self, at: int, problem: str) -> None:
        super().__init__(problem)
        self.at = at


def parse_serial(text: str) -> SerialSettings:
    """Read ``PATH[,SPEED[PARITY[BITS]]][,BITS PARITY STOP][,rtscts][,xonxoff]``.

    :raises SettingError: what is wrong and where.
    """
    path, *words = text.split(",")
    if not path.startswith("/"):
        raise SettingError(0, f"{path!r} is not an absolute path" if path else "the device is missing")
    settings, at = SerialSettings(path), len(path) + 1
    seen: set[str] = set()
    for word in words:
        settings, kind = _with(settings, word.strip().lower(), at)
        if kind in seen:
            raise SettingError(at, f"{word!r} says the {kind} a second time")
        seen.add(kind)
        at += len(word) + 1
    return settings


def _with(settings: SerialSettings, word: str, at: int) -> tuple[SerialSettings, str]:
    if word == "rtscts":
        return settings._replace(rtscts=True), word
    if word == "xonxoff":
        return settings._replace(xonxoff=True), word
    if found := _FRAME.fullmatch(word):
        bits, parity, stop = found.groups()
        if stop not in _STOPS:
            raise SettingError(at, f"{word!r}: there are 1, 1.5 or 2 stop bits, not {stop}")
        return settings._replace(bits=_bits(bits, at), parity=_parity(parity, at), stop=_STOPS[stop]), "frame"
    if found := _LINE.fullmatch(word):
        speed, parity, bits, flow = found.groups()
        if not SLOWEST <= int(speed) <= FASTEST:
            raise SettingError(at, f"{word!r}: a speed lies between {SLOWEST} and {FASTEST}")
        settings = settings._replace(speed=int(speed), rtscts=settings.rtscts or bool(flow))
        if parity:
            settings = settings._replace(parity=_parity(parity, at))
        return settings._replace(bits=_bits(bits, at)) if bits else settings, "speed"
    raise SettingError(at, f"{word!r} is none of a speed such as 115200n8, a frame such as 8n1, rtscts, xonxoff")


def _parity(letter: str, at: int) -> str:
    if letter not in _PARITIES:
        known = ", ".join(f"{key} ({value})" for key, value in _PARITIES.items())
        raise SettingError(at, f"{letter!r} is no parity: {known}")
    return letter


def _bits(digit: str, at: int) -> int:
    if digit not in "5678":
        raise SettingError(at, f"there are 5 to 8 data bits, not {digit}")
    return int(digit)
