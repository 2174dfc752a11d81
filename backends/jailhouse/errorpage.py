# SPDX-License-Identifier: Apache-2.0
"""Every recorded failure of Jailhouse's tool, beside what a person is told: docs/reference/jailhouse-errors.md.

``python -m backends.jailhouse.errorpage`` prints the page; a test keeps it current, so a changed sentence is seen there
row by row, and another test finds every error of the recorded sessions in it.
"""

from __future__ import annotations

import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backends.jailhouse.errortext import NOT_ENABLED, NOT_LOADED, Action, Answer, Condition, Facts, explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Row(NamedTuple):
    """A failure: when, of what, and what is known besides."""

    situation: str
    command: str
    action: Action
    stderr: str
    facts: Mapping[str, Any] = MappingProxyType({})


class Silent(NamedTuple):
    """A failure that the tool does not report, or that must not be tried, and who notices it."""

    situation: str
    command: str
    happens: str
    told: str


A: Final = Action
_EINVAL: Final = "Invalid argument"
_ENOENT: Final = "No such file or directory"
_EPERM: Final = "Operation not permitted"
_EBUSY: Final = "Device or resource busy"
_DEVICE: Final = "opening /dev/jailhouse: "
_LOADED: Final = {"condition": Condition.LOADED}
#: On a cell: action, command, and the prefix of its errors. A shutdown is a load of nothing, and says so.
_ON_CELLS: Final = (
    (A.LOAD, "cell load", "JAILHOUSE_CELL_LOAD"),
    (A.START, "cell start", "JAILHOUSE_CELL_START"),
    (A.SHUTDOWN, "cell shutdown", "JAILHOUSE_CELL_LOAD"),
    (A.DESTROY, "cell destroy", "JAILHOUSE_CELL_DESTROY"),
)


def rows() -> Iterator[Row]:
    """Return every failure that the tool puts into words."""
    absent = f"{_DEVICE}{_ENOENT}"
    yield Row("module not loaded", "enable", A.ENABLE, absent, {"condition": Condition.ABSENT})
    yield Row("module not loaded", "disable", A.DISABLE, absent, {"condition": Condition.ABSENT})
    yield Row("module not loaded", "cell create", A.CREATE, absent, {"condition": Condition.ABSENT})
    for action, command, _ in _ON_CELLS:
        yield Row("module not loaded", command, action, absent, {"condition": Condition.ABSENT})
    yield Row("module not loaded", "console", A.CONSOLE, absent, {"condition": Condition.ABSENT})
    yield Row("not enabled", "disable", A.DISABLE, f"JAILHOUSE_DISABLE: {_EINVAL}", _LOADED)
    yield Row("not enabled", "cell create", A.CREATE, f"JAILHOUSE_CELL_CREATE: {_EINVAL}", _LOADED)
    for action, command, prefix in _ON_CELLS:
        yield Row("not enabled", command, action, f"{prefix}: {_EINVAL}", _LOADED)
    yield Row(
        "never enabled since the module was loaded", "console", A.CONSOLE,
        "read(console): Resource temporarily unavailable", _LOADED,
    )  # fmt: skip
    yield from _enable()
    yield from _create()
    yield from _cells()
    yield from _others()


def _enable() -> Iterator[Row]:
    yield Row("already enabled", "enable", A.ENABLE, f"JAILHOUSE_ENABLE: {_EBUSY}")
    for situation, reason in (
        ("a cell's file, or any other", "Not a system configuration"),
        ("a file of another revision", "Configuration revision mismatch"),
        ("a file for another architecture", "Configuration architecture mismatch"),
    ):
        yield Row(situation, "enable", A.ENABLE, f"JAILHOUSE_ENABLE: {_EINVAL}", {**_LOADED, "reason": reason})
    for situation in ("a truncated system configuration", "it lists more CPUs than are online"):
        yield Row(situation, "enable", A.ENABLE, f"JAILHOUSE_ENABLE: {_EINVAL}", _LOADED)
    yield Row("no hypervisor image in /lib/firmware", "enable", A.ENABLE, f"JAILHOUSE_ENABLE: {_ENOENT}", _LOADED)
    yield Row("the file is missing", "enable", A.ENABLE, f"opening /nonexistent.cell: {_ENOENT}")
    yield Row("it is a directory", "enable", A.ENABLE, "reading /root: Is a directory")
    yield Row("not root", "enable", A.ENABLE, f"{_DEVICE}Permission denied")


def _create() -> Iterator[Row]:
    def row(situation: str, error: str, reason: str = "") -> Row:
        return Row(situation, "cell create", A.CREATE, f"JAILHOUSE_CELL_CREATE: {error}", {"reason": reason})

    yield Row("the file is missing", "cell create", A.CREATE, f"opening /nonexistent.cell: {_ENOENT}")
    yield Row("it is a directory", "cell create", A.CREATE, "reading /root: Is a directory")
    yield Row("not root", "cell create", A.CREATE, f"{_DEVICE}Permission denied")
    yield row("a cell has that name", "File exists")
    yield row("a CPU is another cell's, or not the root cell's", _EBUSY)
    yield row("another signature: a system configuration, an empty file, …", _EINVAL, "Not a cell configuration")
    yield row("another revision", _EINVAL, "Configuration revision mismatch")
    yield row("nobody said why", _EINVAL)
    yield row("CPU 0 on x86", _EINVAL, "Cannot assign CPU 0 to other cells")
    yield row("another cell is locked", _EPERM)
    yield Row("another cell is locked", "cell destroy", A.DESTROY, f"JAILHOUSE_CELL_DESTROY: {_EPERM}", {"locked": "x"})
    yield row("larger than the hypervisor maps", "Argument list too long")
    yield row("no page left in the hypervisor", "Cannot allocate memory")


def _cells() -> Iterator[Row]:
    for action, command, prefix in _ON_CELLS:
        yield Row("no such cell, by name or id", command, action, f"{prefix}: {_ENOENT}")
    for action, command, prefix in _ON_CELLS:
        yield Row(
            'the root cell: id 0, its name, or ""', command, action, f"{prefix}: {_EINVAL}", {"is_root": True}
        )  # fmt: skip
    yield Row("a number below zero is a name", "cell shutdown", A.SHUTDOWN, f"JAILHOUSE_CELL_LOAD: {_ENOENT}")
    yield Row("an image is missing", "cell load", A.LOAD, f"opening /nonexistent.bin: {_ENOENT}")
    yield Row(
        "an image does not fit, crosses the end of a region, or lies in none that is LOADABLE and writable",
        "cell load", A.LOAD, f"JAILHOUSE_CELL_LOAD: {_EINVAL}",
    )  # fmt: skip
    for action, command, prefix in _ON_CELLS:
        yield Row("the guest refuses to stop", command, action, f"{prefix}: {_EPERM}")
    yield Row("the call is interrupted", "cell start", A.START, "JAILHOUSE_CELL_START: Interrupted system call")


def _others() -> Iterator[Row]:
    yield Row("a cell refuses to stop", "disable", A.DISABLE, f"JAILHOUSE_DISABLE: {_EPERM}")
    yield Row("a CPU of the root cell is offline", "disable", A.DISABLE, f"JAILHOUSE_DISABLE: {_EBUSY}")
    for option in ("console", "console -f"):
        yield Row("the system has no VIRTUAL_DEBUG_CONSOLE", option, A.CONSOLE, f"read(console): {_EPERM}")
    yield Row("not root", "console", A.CONSOLE, f"{_DEVICE}Permission denied")
    yield Row("no such cell", "cell stats", A.STATS, f"reading stats: {_ENOENT}")
    yield Row("no terminal", "cell stats", A.STATS, "_curses.error: setupterm: could not find terminal")
    yield Row("no device tree is named", "cell linux", A.LINUX, "No device tree specified")
    yield Row("the cell's RAM is too small", "cell linux", A.LINUX, "No space found to load all images")
    yield Row("no cell's file", "cell linux", A.LINUX, "Not a cell configuration: x.cell")
    yield Row("Jailhouse is enabled", "rmmod jailhouse", A.REMOVE, "rmmod: ERROR: Module jailhouse is in use")
    yield Row("it is not loaded", "rmmod jailhouse", A.REMOVE, "rmmod: ERROR: Module jailhouse is not currently loaded")
    yield Row(
        "it is not installed", "modprobe jailhouse", A.INSERT,
        "modprobe: FATAL: Module jailhouse not found in directory /lib/modules/6.1.192",
    )  # fmt: skip
    yield Row(
        "it is of another kernel", "modprobe jailhouse", A.INSERT,
        "modprobe: ERROR: could not insert 'jailhouse': Exec format error",
    )  # fmt: skip


#: What the tool says nothing of; a test looks at each of these sentences where it comes from.
SILENT: Final = (
    Silent("module not loaded", "cell list", "nothing is printed, status 0", f"cannot use Jailhouse: {NOT_LOADED[0]}"),
    Silent("not enabled", "cell list", "nothing is printed, status 0", f"cannot use Jailhouse: {NOT_ENABLED[0]}"),
    Silent("another architecture", "cell create", "status 0, and no cell",
           "the tool would report success and make no cell"),
    Silent("a truncated cell", "cell create", "the whole machine hangs", "the file ends here"),
    Silent("no CPU", "cell create", "status 0, a cell in which nothing runs", "no CPU"),
    Silent("RAM of another cell", "cell create", "status 0, they overwrite each other", "Jailhouse does not notice"),
    Silent("RAM that is not the root cell's", "cell load", "the driver hangs for good",
           "loading an image hangs the board"),
    Silent("an active cell without msg_reply_timeout", "cell shutdown", "the root cell hangs",
           "an active communication region and no reply timeout"),
    Silent("an empty name", "cell shutdown \"\"", "taken for id 0", "the tool takes an empty name for the root cell"),
    Silent("a name that is a number", "cell shutdown 42", "taken for an id", "unless told --name"),
    Silent("a name of more than 31 bytes", "cell destroy", "cut, so another cell is destroyed",
           "the name has more than 31 bytes"),
    Silent("an empty image", "cell load", "status 0, nothing is written", "it is empty"),
)  # fmt: skip


def told(row: Row) -> str:
    """Return what a person is told."""
    about = row.action not in (A.DISABLE, A.CONSOLE, A.LINUX, A.INSERT, A.REMOVE)
    fields = {"target": "demo" if about else "", "condition": Condition.ENABLED, **row.facts}
    return str(explain(row.action, Answer(1, "", f"{row.stderr}\n"), Facts(**fields)))


def page() -> str:
    """Return the page, in Markdown."""
    lines = [
        "# What Jailhouse's tool says, and what runPHI says",
        "",
        "<!-- made by `python -m backends.jailhouse.errorpage` -->",
        "",
        "The tool ends with status 1 and one coarse line: `Invalid argument` means many things. runPHI looks at sysfs",
        "and at the kernel's log, says which one it was, and how to mend it.",
        "",
        "| when | command | the tool | runPHI |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.situation} | `{row.command}` | `{row.stderr}` | {told(row)} |" for row in rows()]
    lines += [
        "",
        "## What the tool does not say",
        "",
        "It reports success, or the board hangs. runPHI finds these before it calls the tool, or looks behind it.",
        "",
        "| when | command | what happens | runPHI |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.situation} | `{row.command}` | {row.happens} | … {row.told} … |" for row in SILENT]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
