# SPDX-License-Identifier: Apache-2.0
"""What the ``jailhouse`` tool says when it fails, in words that help.

Its errors are one ``perror`` line, and coarse: ``Invalid argument`` stands for a hypervisor that is not enabled, a
file of another revision, an address that nothing lies at, and more. What was asked, whether Jailhouse is enabled and
what the driver told the kernel log tell them apart.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Hung(BackendError):
    """Raised when the hypervisor does not answer any more: only a reset of the board helps."""


class Refused(BackendError):
    """Raised when a guest does not agree to what is to be done; it may agree later."""


class Gone(BackendError):
    """Raised when a cell that is to be driven is not there any more."""


class Action(enum.StrEnum):
    """What the tool was asked to do, as a person would say it."""

    ENABLE = "enable Jailhouse"
    DISABLE = "disable Jailhouse"
    CREATE = "create cell"
    LOAD = "load images into cell"
    START = "start cell"
    SHUTDOWN = "shut down cell"
    DESTROY = "destroy cell"
    CONSOLE = "read the hypervisor's console"
    #: with ``modprobe`` or ``insmod``, and ``rmmod``
    INSERT = "load Jailhouse's kernel module"
    REMOVE = "remove Jailhouse's kernel module"
    #: with the tool's scripts
    LINUX = "start a Linux cell"
    STATS = "show statistics of cell"
    OTHER = "run jailhouse"


class Condition(enum.StrEnum):
    """What can be done with Jailhouse at all."""

    #: the kernel module is not loaded
    ABSENT = "absent"
    #: the module is loaded, the hypervisor is not enabled
    LOADED = "loaded"
    ENABLED = "enabled"


class Facts(NamedTuple):
    """What is known besides the tool's words.

    :ivar target: name of the cell, or the file for ``enable``.
    :ivar condition: of Jailhouse after the call.
    :ivar reason: the driver's last words in the kernel log; empty: none.
    :ivar is_root: whether the target is the root cell.
    :ivar locked: name of another cell that allows no changes, "" for none.
    """

    target: str
    condition: Condition
    reason: str = ""
    is_root: bool = False
    locked: str = ""


class Answer(NamedTuple):
    """How a call of the tool ended."""

    status: int
    out: str
    err: str


#: Errors that mean one thing for an action, whatever else is known: (why, how to mend it).
_PLAIN: Final[Mapping[tuple[Action, str], tuple[str, str]]] = {
    (Action.ENABLE, "Device or resource busy"): ("it is enabled already", "disable it first, or use it as it is"),
    (Action.ENABLE, "No such file or directory"): (
        "the hypervisor's image is not in /lib/firmware",
        "install jailhouse.bin there",
    ),
    (Action.ENABLE, "No such device"): (
        "the CPU has no virtualization that Jailhouse can use",
        "look into the firmware's settings and the kernel's log",
    ),
    (Action.DISABLE, "Operation not permitted"): (
        "a cell refuses to shut down; cells before it in the list are destroyed already",
        "end what runs in the cell, then try again",
    ),
    (Action.DISABLE, "Device or resource busy"): (
        "a CPU of the root cell is offline; all other cells are destroyed already",
        "bring every CPU online, then try again",
    ),
    (Action.CREATE, "File exists"): ("Jailhouse has a cell of that name", "destroy it, or choose another name"),
    (Action.CREATE, "Device or resource busy"): (
        "a CPU of it belongs to another cell or is not the root cell's",
        "choose CPUs that the root cell has",
    ),
    (Action.CREATE, "Operation not permitted"): (
        "another cell is locked and allows no changes",
        "end what locks that cell (its state is running/locked), then try again",
    ),
    (Action.CREATE, "Argument list too long"): ("its configuration is larger than 64 KiB", "use fewer regions"),
    (Action.CREATE, "Cannot allocate memory"): (
        "the hypervisor has no memory left for it",
        "destroy cells, or give the hypervisor more memory in the system configuration",
    ),
    (Action.LOAD, "Device or resource busy"): (
        "its memory cannot be mapped",
        "check the cell with `runphi cell check --system`",
    ),
    (Action.CONSOLE, "Operation not permitted"): (
        "the system configuration does not allow it",
        "set VIRTUAL_DEBUG_CONSOLE in the system configuration",
    ),
    (Action.CONSOLE, "Resource temporarily unavailable"): (
        "Jailhouse has not been enabled since its module was loaded",
        "enable it first",
    ),
}
NOT_LOADED: Final = ("Jailhouse's kernel module is not loaded", "load it with modprobe jailhouse")
NOT_ENABLED: Final = ("Jailhouse is not enabled", "enable it with the board's system configuration")
_REFUSES: Final = ("the cell refuses to shut down", "end what runs in it, then try again")
_INTERRUPTED: Final = ("the call was interrupted", "try again")
#: The driver's words in the kernel log.
_REASONS: Final[Mapping[str, tuple[str, str]]] = {
    "Not a cell configuration": (
        "the file is no cell configuration of this Jailhouse",
        "look at it with `runphi cell dump`",
    ),
    "Not a system configuration": (
        "the file is no system configuration of this Jailhouse",
        "look at it with `runphi cell dump`",
    ),
    "Configuration revision mismatch": (
        "the file has another revision than this Jailhouse",
        "build it for the board's Jailhouse; `runphi cell dump` shows its revision",
    ),
    "Configuration architecture mismatch": (
        "the file is for another architecture",
        "build it for the board; `runphi cell dump` shows its architecture",
    ),
    "Missing hypervisor image": _PLAIN[Action.ENABLE, "No such file or directory"],
    "Cannot assign CPU 0 to other cells": ("CPU 0 cannot leave the root cell on x86", "choose other CPUs"),
    "is already assigned to a different cell": (
        "its remote processor belongs to another cell",
        "destroy that cell, or ask for another processor",
    ),
    "Failed to open Image file": (
        "the driver does not find the image for the remote processor below /lib/firmware",
        "set jailhouse.firmware to that directory",
    ),
    "Failed to set firmware": (
        "the remote processor has been loaded already: only the cell's destruction stops it",
        "destroy the cell and make it anew",
    ),
    "rcpu ID": ("the cell does not have that remote processor", "check it with `runphi cell dump`"),
    "Unable to load rcpu image": (
        "remoteproc did not load the image for the remote processor",
        "look into the kernel's log; is it an ELF file linked for memory that the processor has?",
    ),
    "request_mem_region failed": (
        "the hypervisor's memory is in use by Linux",
        "reserve it with mem= or memmap= on the kernel's command line",
    ),
}
#: What the tools of the kernel's modules say; of their sentences the end is fixed.
_MODULE: Final[Mapping[tuple[Action, str], tuple[str, str]]] = {
    (Action.INSERT, "not found in directory"): (
        "this kernel has no such module",
        "build it for this kernel and install it, then run depmod",
    ),
    (Action.INSERT, "Exec format error"): ("it was built for another kernel", "build it for this kernel"),
    (Action.INSERT, "Invalid module format"): ("it was built for another kernel", "build it for this kernel"),
    (Action.INSERT, "Operation not permitted"): ("the kernel does not allow it", "run as root, and without lockdown"),
    (Action.INSERT, "Key was rejected by service"): (
        "the kernel wants a signed module",
        "sign it, or switch off Secure Boot",
    ),
    (Action.INSERT, "Unknown symbol in module"): (
        "this kernel lacks what the module needs of it",
        "build the kernel with the patches that come with Jailhouse",
    ),
    (Action.REMOVE, "is in use"): (
        "Jailhouse is enabled, or somebody has /dev/jailhouse open",
        "disable it first, and end whoever runs `jailhouse console -f`",
    ),
    (Action.REMOVE, "is not currently loaded"): ("it is not loaded", "nothing is to be done"),
}
#: What the tool's scripts say.
_SCRIPTS: Final[Mapping[str, tuple[str, str]]] = {
    "No device tree specified": ("there is no device tree for it", "name one with -d"),
    "No space found to load all images": (
        "the cell's RAM is too small for kernel, device tree and RAM disk",
        "give the cell more memory, or use a smaller RAM disk",
    ),
    "Not a cell configuration:": _REASONS["Not a cell configuration"],
    "setupterm: could not find terminal": (
        "it wants a terminal",
        "run it in a terminal with TERM set, or read statistics/ of the cell in sysfs",
    ),
}
_ON_CELLS: Final = (Action.LOAD, Action.START, Action.SHUTDOWN, Action.DESTROY)


def explain(action: Action, answer: Answer, facts: Facts) -> BackendError:
    """Return the error to show for a call of the tool that failed."""
    why, mend = _explain(action, answer, facts)
    named = (*_ON_CELLS, Action.CREATE, Action.STATS)
    about = f" {facts.target!r}" if facts.target and action in named else ""
    return _kind(action, answer)(f"cannot {action}{about}: {why}", mend)


def _kind(action: Action, answer: Answer) -> type[BackendError]:
    """Return the class of an error that somebody can react to."""
    prefix, _, error = answer.err.strip().rpartition(": ")
    if not prefix.startswith("JAILHOUSE_CELL_"):
        return BackendError
    if error == "Operation not permitted":
        return Refused
    return Gone if action in _ON_CELLS and error == "No such file or directory" else BackendError


def _explain(action: Action, answer: Answer, facts: Facts) -> tuple[str, str]:
    line = (answer.err.strip().splitlines() or [""])[-1]
    prefix, _, error = line.rpartition(": ")
    if prefix.startswith(("opening ", "reading ")):
        return _file(prefix, error)
    if action in (Action.INSERT, Action.REMOVE):
        return _module(action, line)
    for words, meaning in _SCRIPTS.items():
        if words in line:
            return meaning
    if answer.out.startswith("Usage: "):
        return "the tool does not understand the command", "is it the jailhouse tool of this Jailhouse?"
    if not prefix.startswith(("JAILHOUSE_", "read(console)")):
        said = f"jailhouse said {line!r}" if line else "jailhouse said nothing"
        return f"{said} and ended with status {answer.status}", "look into the kernel's log"
    if facts.condition is not Condition.ENABLED and action is not Action.ENABLE and error == "Invalid argument":
        return NOT_ENABLED
    for words, meaning in _REASONS.items():
        if words in facts.reason:
            return meaning
    if error == "Interrupted system call":
        return _INTERRUPTED
    if (action, error) in _PLAIN:
        return _PLAIN[action, error]
    if action in _ON_CELLS:
        return _on_cell(action, error, facts)
    if error == "Invalid argument":
        return _invalid(action)
    return f"jailhouse said {line!r}", "look into the kernel's log"


def _file(prefix: str, error: str) -> tuple[str, str]:
    word, _, name = prefix.partition(" ")
    if name == "/dev/jailhouse":
        if error == "Permission denied":
            return "/dev/jailhouse may not be opened", "run the supervisor as root"
        return NOT_LOADED
    if name == "stats":
        return "Jailhouse has no statistics of it", "is the cell there, and Jailhouse enabled?"
    return f"{name} cannot be {'opened' if word == 'opening' else 'read'}: {error}", "name a file that can be read"


def _module(action: Action, line: str) -> tuple[str, str]:
    for (about, words), meaning in _MODULE.items():
        if about is action and words in line:
            return meaning
    return (f"the kernel's tools said {line!r}" if line else "nobody said why"), "look into the kernel's log"


def _on_cell(action: Action, error: str, facts: Facts) -> tuple[str, str]:
    if error == "Operation not permitted":
        if action is Action.DESTROY and facts.locked:
            return (
                f"cell {facts.locked!r} is locked and allows no changes",
                "end what locks that cell (its state is running/locked), then try again",
            )
        return _REFUSES
    if error == "No such file or directory":
        return "Jailhouse has no cell of that name", "somebody destroyed it, or it was never made"
    if error == "Invalid argument" and facts.is_root:
        return "it is the root cell, in which Linux runs", "name another cell"
    if error == "Invalid argument" and action is Action.LOAD:
        return (
            "an image does not fit into a LOADABLE region at its address; the cell has been stopped",
            "load it where the cell has memory, or give the cell more",
        )
    return f"jailhouse said {error!r}", "look into the kernel's log"


def _invalid(action: Action) -> tuple[str, str]:
    if action is Action.ENABLE:
        return (
            "the system configuration does not fit the machine",
            "it must list exactly the CPUs that are online and be whole; `jailhouse console` may tell more",
        )
    return "Jailhouse refused the configuration", "check it with `runphi cell check --system`"
