# SPDX-License-Identifier: Apache-2.0
"""The one error tree of the project; every room raises from it and only the border, where a verb is asked, prints it.

    RunphiError
    ├── ConfigError        the configuration file or a global option is wrong
    ├── UsageError         the command line is wrong
    ├── SpecError          bundle or config.json is wrong
    ├── PlanError          the partition asked for cannot be had on this machine
    ├── BackendError       the hypervisor or one of its tools failed
    │   ├── XenStoreError  xenstored refuses a request or cannot be reached
    │   ├── Hung           Jailhouse does not answer any more: only a reset of the board helps
    │   ├── Refused        a guest does not agree to what is to be done with its cell
    │   └── Gone           a cell that is to be driven is not there any more
    ├── StateError         the verb does not fit the container's state
    ├── NotFoundError      no such container
    ├── UnsupportedError   this guest cannot do that
    ├── CellError          a Jailhouse configuration cannot be read or written
    ├── TreeError          a guest's device tree cannot be read or used
    ├── HookError          an OCI hook failed
    ├── CgroupError        the cgroup cannot be made, filled or removed
    ├── SourceError        what a console or channel is read from cannot be opened
    ├── SettingError       a word in the name of such a source cannot be understood
    ├── RuleError          a pattern for a console cannot be used
    ├── RecordingError     a timed log is none, or is damaged
    ├── Broken             a guest's part of a virtqueue makes no sense
    ├── ImageError         there is no kernel in an image
    └── Unfinished         a proof of the accelerator came to no end, so nothing was found out

Four exceptions are no errors: nobody prints them, they say where to go on. ``ClientGone`` (there is nobody left to
answer), ``PassThrough`` (the verb is the ordinary runtime's), ``HelpAsked`` (the parser was asked for help), and the
thin client's ``Lost`` (no supervisor there any more: ask again). What ``runphi_async.testing`` raises is its own.

Messages are lower case, in the form ``cannot …: why``. Engines classify failures by phrases in these texts
(docs/reference/engines.md), so a message must not borrow a phrase such as "does not exist" for another meaning.
"""

from __future__ import annotations


class RunphiError(Exception):
    """Ancestor of everything the runtime raises on purpose.

    :param msg: what failed and why, one line.
    :param hint: how to mend it; printed after the message.
    """

    #: exit status of the verb that ends with this error
    status = 1

    def __init__(self, msg: str, hint: str | None = None) -> None:
        super().__init__(msg)
        self.msg = msg
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.msg}; {self.hint}" if self.hint else self.msg


class ConfigError(RunphiError):
    """Raised when the configuration file cannot be used."""


class UsageError(RunphiError):
    """Raised when the command line cannot be understood."""


class SpecError(RunphiError):
    """Raised when a bundle or its config.json cannot be used."""


class PlanError(RunphiError):
    """Raised when no partition can be planned for what the container asks."""


class BackendError(RunphiError):
    """Raised when a hypervisor or its tool failed."""


class StateError(RunphiError):
    """Raised when the container's state does not allow the verb."""


class NotFoundError(RunphiError):
    """Raised when no container has the id given."""


class UnsupportedError(RunphiError):
    """Raised when the guest has no way to do what was asked."""


class CellError(RunphiError):
    """Raised when a cell or system configuration of Jailhouse cannot be read or written; says where in it."""


class TreeError(RunphiError):
    """Raised when bytes are no device tree, or one that a guest cannot be given."""


class HookError(RunphiError):
    """Raised when an OCI hook fails or exceeds its timeout."""


class CgroupError(RunphiError):
    """Raised when the container's cgroup cannot be made, filled or removed."""
