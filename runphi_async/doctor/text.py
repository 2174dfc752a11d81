# SPDX-License-Identifier: Apache-2.0
"""Making strangers' text fit for a report: bounded, without control characters, without secrets. Pure.

Logs, events and consoles hold what guests, images and tools chose to print. In a report nothing of it may act on a
terminal, look like a heading of ours, or tell a credential to whoever reads the bug.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async.operations.timeline import safe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Longest line of a report, in characters; what is longer was not written for people.
LINE_MAX: Final = 400
#: Characters of a line that are searched for credentials.
SEARCHED: Final = 2000
#: Bytes of a whole report, headings and all: it goes through a supervisor's socket and into a bug tracker.
REPORT_MAX: Final = 1 << 20
MASK: Final = "[masked]"
#: Shorter values of an environment are no secrets, and hiding them would hide the report.
SECRET_MIN: Final = 4
#: Variables whose values a report needs: they say what is booted, or are the same everywhere.
PLAIN_VARIABLES: Final = frozenset(
    {
        *("INMATE", "LINUX", "KERNEL", "RAMDISK", "PATH", "HOME", "HOSTNAME", "TERM", "LANG", "LC_ALL", "PWD"),
        *("SHELL", "container"),
    }
)
#: Values that are no secret in whatever variable.
PLAIN_VALUES: Final = frozenset({"true", "false", "none", "null", "auto", "root", "info", "debug", "warning", "error"})
_WORDS: Final = r"pass(?:word|wd|phrase)?|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|auth"
#: What is a credential by its looks; the first group stays.
_LOOKS: Final = (
    re.compile(r"(?i)(\b(?:proxy-)?authorization\s*[:=]\s*)\S.*"),
    re.compile(r"(?i)(\bbearer\s+)\S+"),
    re.compile(
        rf"(?i)([\w.-]{{0,40}}(?:{_WORDS})[\w.-]{{0,40}}[\"']?\s*(?:=|:(?!//))\s*)(?:\"[^\"]*\"|'[^']*'|[^\s,;]+)"
    ),
    re.compile(rf"(?i)(--?[\w-]{{0,40}}(?:{_WORDS})[\w-]{{0,40}}\s+)(?!-)\S+"),
    re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://)[^\s/@]+@"),
    re.compile(r"()\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"),
    re.compile(r"()\b(?:gh[a-z]_|github_pat_|glpat-|xox[a-z]-|AKIA|ASIA)[\w-]{10,}"),
    # a line of a key's base64; digests are hexadecimal and stay
    re.compile(r"^(\s*)(?![0-9a-f]+\s*$)[A-Za-z0-9+/]{60,}={0,2}\s*$"),
)
_KEY_BEGINS: Final = re.compile(r"-----BEGIN [A-Z ]*(?:PRIVATE KEY|CERTIFICATE)")
_KEY_ENDS: Final = re.compile(r"-----END ")


class Section(NamedTuple):
    """A part of a report.

    :ivar lines: of whoever; not yet fit to be shown.
    :ivar foreign: containers had a hand in it: values of their environments are hidden.
    :ivar last: when there are too many lines the last ones are shown, not the first.
    :ivar limit: bytes of the section.
    """

    title: str
    lines: tuple[str, ...]
    foreign: bool = False
    last: bool = False
    limit: int = 32 << 10


class Secrets:
    """The values that must not be shown.

    :param values: of environments; those that are too short or are in ``PLAIN_VALUES`` are left alone.
    """

    def __init__(self, values: Iterable[str]) -> None:
        # a report is cut into lines, so a value of several must be known by each of them
        pieces = {piece for value in values for piece in (value, *value.splitlines(), safe(value))}
        wanted = sorted((piece for piece in pieces if _is_secret(piece)), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, wanted))) if wanted else None

    def hide(self, text: str) -> str:
        """Return text without them."""
        return self._pattern.sub(MASK, text) if self._pattern is not None else text


def _is_secret(value: str) -> bool:
    return len(value.strip()) >= SECRET_MIN and value.lower() not in PLAIN_VALUES


def environment(entries: Iterable[str]) -> list[str]:
    """Return the values of ``NAME=value`` entries that may be secrets."""
    pairs = (entry.partition("=") for entry in entries)
    return [value for name, _, value in pairs if name not in PLAIN_VARIABLES]


def mask(lines: Iterable[str]) -> Iterator[str]:
    """Hide what looks like a credential."""
    in_key = False
    for line in lines:
        if in_key or _KEY_BEGINS.search(line):
            in_key = not _KEY_ENDS.search(line)
            yield MASK
            continue
        for look in _LOOKS:
            line = look.sub(rf"\g<1>{MASK}", line)
        yield line


def clean(lines: Iterable[str], secrets: Secrets | None = None) -> Iterator[str]:
    """Return lines of strangers as they may be shown: one line each, without control characters and secrets."""
    single = (piece for line in lines for piece in (line.splitlines() or [""]))
    hidden = single if secrets is None else (secrets.hide(line) for line in single)
    for line in mask(map(_cut, hidden)):
        spelled = safe(line).replace("\t", "    ")
        # once more: what is spelled out may be a value that was never printable
        shown = spelled if secrets is None else secrets.hide(spelled)
        yield shown if len(shown) <= LINE_MAX else f"{shown[:LINE_MAX]}… ({len(shown)} characters)"


def _cut(line: str) -> str:
    """Shorten a line before it is searched; half a word at its end may be half a secret."""
    if len(line) <= SEARCHED:
        return line
    return re.sub(r"\S{1,200}$", "", line[:SEARCHED]) + f"… ({len(line)} characters)"


def bounded(lines: list[str], limit: int, *, last: bool) -> list[str]:
    """Return as many lines as fit into ``limit`` bytes, and say how many are left out."""
    kept: list[str] = []
    room = limit
    for line in reversed(lines) if last else lines:
        room -= len(line.encode("utf-8", "replace")) + 5  # indentation and newline
        if room < 0:
            break
        kept.append(line)
    missing = len(lines) - len(kept)
    note = [f"({missing} {'earlier' if last else 'further'} lines left out)"] if missing else []
    return note + kept[::-1] if last else kept + note


def render(head: str, sections: Iterable[Section], secrets: Secrets) -> bytes:
    """Return a report: headings of ours, and below them everything indented, so that nothing there is a heading."""
    parts = [head]
    for section in sections:
        lines = list(clean(section.lines, secrets if section.foreign else None))
        shown = bounded(lines, section.limit, last=section.last) or ["(nothing)"]
        (title,) = clean([" ".join(section.title.split())], secrets if section.foreign else None)
        parts.append(f"\n## {title}\n\n" + "".join(f"    {line}\n" for line in shown))
    data = "".join(parts).encode("utf-8", "replace")
    if len(data) <= REPORT_MAX:
        return data
    end = b"\n(the rest is left out: the report would be too long)\n"
    return data[: REPORT_MAX - len(end)].decode("utf-8", "ignore").encode() + end
