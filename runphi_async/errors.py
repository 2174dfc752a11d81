# SPDX-License-Identifier: Apache-2.0
"""The one error tree of the project; every layer raises from it and only the CLI border prints it.

    RunphiError
    ├── ConfigError        the configuration file or a global option is wrong
    ├── UsageError         the command line is wrong
    ├── SpecError          bundle or config.json is wrong
    ├── PlanError          the partition asked for cannot be had on this machine
    ├── BackendError       the hypervisor or one of its tools failed
    ├── StateError         the verb does not fit the container's state
    ├── NotFoundError      no such container
    ├── UnsupportedError   this guest cannot do that
    ├── CellError          a Jailhouse configuration cannot be read or written
    ├── TreeError          a guest's device tree cannot be read or used
    ├── HookError          an OCI hook failed
    └── CgroupError        the cgroup cannot be made, filled or removed

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
