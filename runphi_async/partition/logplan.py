# SPDX-License-Identifier: Apache-2.0
"""Which logs a container gets: the configuration's, or what its annotation ``org.runphi.log`` asks for.

The annotation comes from whoever starts the container, so it can choose among kinds, sizes and names but never reach
a file outside the directories the configuration allows. The value is a list with commas; each entry is a kind with
options behind colons::

    cri,timed
    none
    raw:max-size=10M:max-files=5,cri:path=/var/log/pods/demo/0.log
"""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from consoles.streams.sinks.logfile import KINDS
from runphi_async import units
from runphi_async.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runphi_async.config.schema import Log

#: the entry that stands for no log at all
NONE: Final = "none"
#: what the files of a container's console are called, see ``KINDS``
STEM: Final = "console"
MAX_FILES: Final = 100
_OPTIONS: Final = ("max-size", "max-files", "path")


class LogOrder(NamedTuple):
    """One entry of the annotation; None: as the configuration says."""

    kind: str
    max_bytes: int | None = None
    max_files: int | None = None
    path: str | None = None


class LogPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """One log as it is written, kept in the container's record."""

    kind: str
    directory: str
    name: str
    max_bytes: int
    max_files: int
    #: the allowed directory that a path of the annotation lies in
    beneath: str = ""

    @property
    def path(self) -> str:
        """The newest file."""
        return os.path.join(self.directory, self.name)


def parse(text: str) -> tuple[LogOrder, ...]:
    """Read the annotation; () means no log.

    :raises ValueError: it cannot be understood.
    """
    entries = [entry.strip() for entry in text.split(",")]
    if entries == [NONE]:
        return ()
    orders = tuple(_entry(entry) for entry in entries)
    kinds = [order.kind for order in orders]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"'{kind}' stands there twice")
    return orders


def _entry(text: str) -> LogOrder:
    kind, *options = text.split(":")
    if kind == NONE:
        raise ValueError("'none' stands alone or not at all")
    if kind not in KINDS:
        raise ValueError(f"'{kind}' is no kind of log: {', '.join(KINDS)} or none{_nearest(kind, KINDS)}")
    values: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if name not in _OPTIONS:
            raise ValueError(f"'{name}' is no option of a log: {', '.join(_OPTIONS)}{_nearest(name, _OPTIONS)}")
        if not equals or not value or name in values:
            raise ValueError(f"'{name}' wants one value, such as {name}={_example(name)}")
        values[name] = value
    return LogOrder(
        kind,
        _size(values["max-size"]) if "max-size" in values else None,
        _count(values["max-files"]) if "max-files" in values else None,
        _path(kind, values["path"]) if "path" in values else None,
    )


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _example(option: str) -> str:
    return {"max-size": "10M", "max-files": "5", "path": "/var/log/pods/demo.log"}[option]


def _size(text: str) -> int:
    size = units.parse_size(text)
    if size < units.KIB:
        raise ValueError(f"max-size={text} is less than 1 KiB")
    return size


def _count(text: str) -> int:
    count = units.parse_int(text)
    if not 1 <= count <= MAX_FILES:
        raise ValueError(f"max-files={count} is not between 1 and {MAX_FILES}")
    return count


def _path(kind: str, text: str) -> str:
    if kind == "raw":
        raise ValueError("raw has no path: it is what `runphi logs` reads, and stays in the configuration's log.dir")
    if not os.path.isabs(text) or "\0" in text or os.path.normpath(text) != text:
        raise ValueError(f"path={text} is not an absolute path without '.', '..' and doubled or trailing slashes")
    return text


def plan(config: Log, name: str, orders: tuple[LogOrder, ...] | None) -> tuple[LogPlan, ...]:
    """Return the logs of the container whose record is called ``name``.

    :param orders: what the annotation says, None without one.
    :raises SpecError: it asks for what the configuration does not allow.
    """
    if orders is None:
        orders = tuple(LogOrder(kind) for kind in config.sinks) if config.enabled else ()
    elif orders and not config.enabled:
        raise SpecError("cannot log as org.runphi.log asks: logging is off", "set log.enabled = true, or say none")
    return tuple(_plan(config, name, order) for order in orders)


def _plan(config: Log, name: str, order: LogOrder) -> LogPlan:
    max_bytes = int(config.max_bytes) if order.max_bytes is None else order.max_bytes
    max_files = config.max_files if order.max_files is None else order.max_files
    if (order.max_bytes, order.max_files) != (None, None):
        asked = max_bytes * max_files
        if asked > config.annotation_max_bytes or not asked:
            size = units.human(asked) if asked else "any size"
            allowed = config.annotation_max_bytes.text()
            raise SpecError(
                f"cannot log as org.runphi.log asks: {order.kind} may take {size}, "
                f"log.annotation_max_bytes allows {allowed}",
                "ask for less by max-size and max-files",
            )
    if order.path is None:
        return LogPlan(order.kind, os.path.join(config.dir, name), KINDS[order.kind].format(STEM), max_bytes, max_files)
    directory, file = os.path.split(order.path)
    beneath = _allowed(config, directory)
    if beneath is None:
        where = ", ".join(config.path_dirs) or "nowhere"
        raise SpecError(f"cannot log to {order.path}: log.path_dirs allows {where}", "leave path= out, or allow it")
    return LogPlan(order.kind, directory, file, max_bytes, max_files, beneath)


def _allowed(config: Log, directory: str) -> str | None:
    for path in config.path_dirs:
        allowed = os.path.normpath(path)
        if directory == allowed or directory.startswith(allowed + "/"):
            return allowed
    return None


def clash(plans: Iterable[LogPlan], others: Iterable[LogPlan]) -> str | None:
    """Return the path that two containers would both write to."""
    taken = {other.path for other in others}
    return next((one.path for one in plans if one.path in taken), None)
