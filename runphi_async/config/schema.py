# SPDX-License-Identifier: Apache-2.0
"""The configuration file: every key but those of backends, its default and its documentation in one place.

A backend brings a table of its own, which is handed in: :func:`composed` puts all into one type. The supervisor reads
the file once when it starts, by ``backends.configured``.
"""

from __future__ import annotations

import functools
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple, TypeVar, cast

import msgspec

from consoles.errors import SourceError
from consoles.sources import describe
from consoles.streams.rules import Rule, compiled
from runphi_async.config import realrunc
from runphi_async.config.section import MIB, Section, Size, doc
from runphi_async.events import NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping


class Supervisor(Section, frozen=True):
    """The supervisor itself."""

    log_level: Annotated[Literal["debug", "info", "warning", "error"], doc("Least severity the supervisor logs.")] = (
        "info"
    )
    group: Annotated[
        str,
        doc(
            "Group whose members may use consoles: `attach`, `who`, `logs`, `console`, `stats`, `state` and `list`, and"
            " nothing else; empty: nobody but root and the supervisor's own user."
        ),
    ] = ""
    log_file: Annotated[str, doc("File the supervisor logs to; empty: `supervisor.log` in the run directory.")] = ""


class ConsoleRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pattern that is looked for on every guest's console."""

    name: str
    #: a regular expression of RE2, for one line
    pattern: str


class Console(Section, frozen=True):
    """What stands between a guest's console and those who read it."""

    window_bytes: Annotated[
        Size, doc("How far a guest may run ahead of the slowest reader that must not lose anything.")
    ] = Size(MIB)
    replay_bytes: Annotated[Size, doc("How much of the past `attach` shows before it goes live.")] = Size(64 << 10)
    drain_seconds: Annotated[
        float,
        msgspec.Meta(ge=0),
        doc("How long the end of a container waits for a reader that does not read."),
    ] = 2.0
    attach_buffer_bytes: Annotated[
        Size, doc("How far an attached client may fall behind before it is shown a gap.")
    ] = Size(256 << 10)
    attach_buffer_seconds: Annotated[
        float,
        msgspec.Meta(gt=0),
        doc("How many seconds an attached client may stay behind before it is shown a gap."),
    ] = 10.0
    escape_key: Annotated[
        str, doc("Key in front of commands in `attach`, a letter or `ctrl-` and a letter; empty: none.")
    ] = "ctrl-]"
    detach_keys: Annotated[
        str, doc("Keys that leave `attach`, separated by commas: a letter, or `ctrl-` and a letter.")
    ] = "ctrl-p,ctrl-q"

    rules: Annotated[
        tuple[ConsoleRule, ...],
        doc(
            "Patterns on every guest's console, as tables `[[console.rules]]` with `name` and `pattern` (a regular"
            " expression of RE2, matched line by line): a match is an event `name`; `ready` says that a guest is ready."
        ),
    ] = ()

    def __post_init__(self) -> None:
        for rule in self.rules:
            compiled(Rule(rule.name, rule.pattern.encode()), NAMES)
        for name in ("window_bytes", "attach_buffer_bytes"):
            if getattr(self, name) < 4096:
                raise ValueError(f"{name}: expected at least 4 KiB, got {getattr(self, name).text()}")


class Log(Section, frozen=True):
    """The logs of each guest's console. A container may ask for others by the annotation `org.runphi.log`."""

    enabled: Annotated[bool, doc("Whether consoles are logged.")] = True
    dir: Annotated[str, doc("Directory of the logs; each container has a directory of its own there.")] = (
        "/var/log/runphi"
    )
    sinks: Annotated[
        tuple[Literal["raw", "cri", "json-file", "timed"], ...],
        doc("Kinds of logs written for every container, of `raw`, `cri`, `json-file` and `timed`. `logs` reads `raw`."),
    ] = ("raw",)
    max_bytes: Annotated[Size, doc("Size at which a log is rotated; 0: never.")] = Size(64 * MIB)
    max_files: Annotated[
        int, msgspec.Meta(ge=1, le=100), doc("Files kept of each log, the newest included; the oldest goes away.")
    ] = 2
    annotation_max_bytes: Annotated[
        Size, doc("Most disk that one log may take whose size a container sets by `org.runphi.log`.")
    ] = Size(1024 * MIB)
    path_dirs: Annotated[
        tuple[str, ...],
        doc("Directories below which `org.runphi.log` may place logs by `path=`; empty: nowhere."),
    ] = ()

    def __post_init__(self) -> None:
        if len(set(self.sinks)) < len(self.sinks):
            raise ValueError("sinks: each kind once")
        for path in self.path_dirs:
            if not os.path.isabs(path) or os.path.normpath(path) == "/":
                raise ValueError(f"path_dirs: expected absolute paths other than /, got {path!r}")


class Inmate(Section, frozen=True):
    """Guests named by `INMATE=` and `KERNEL=`."""

    host_paths: Annotated[
        tuple[str, ...],
        doc("Directories of the host from which `INMATE=` and `KERNEL=` may take files; empty: from none."),
    ] = ()

    def __post_init__(self) -> None:
        for path in self.host_paths:
            if not os.path.isabs(path):
                raise ValueError(f"host_paths: expected absolute paths, got {path!r}")


class Source(Section, frozen=True):
    """Devices and sockets of the host that are consoles."""

    host_paths: Annotated[
        tuple[str, ...],
        doc(
            "Terminals, serial ports and unix sockets of the host that annotations may name, or directories of them; "
            "empty: none."
        ),
    ] = ()

    def __post_init__(self) -> None:
        for path in self.host_paths:
            if not os.path.isabs(path):
                raise ValueError(f"host_paths: expected absolute paths, got {path!r}")


class Hypervisor(Section, frozen=True):
    """The hypervisor's own console, shared by all its cells; `runphi timeline` shows it."""

    console: Annotated[
        str,
        doc("Where it is read: a [source](sources.md) such as `exec:jailhouse console -f`; empty: nobody follows it."),
    ] = ""
    log_max_bytes: Annotated[Size, doc("Size at which the file of its lines is rotated; one older part is kept.")] = (
        Size(4 * MIB)
    )

    def __post_init__(self) -> None:
        if self.console:
            try:
                describe.parse(self.console, commands=True)
            except SourceError as exc:
                raise ValueError(f"console: {exc}") from None


class Channels(Section, frozen=True):
    """Named streams of a guest beside its console (`org.runphi.channel.*`)."""

    places: Annotated[
        tuple[str, ...],
        doc(
            "Shared memory of the host that annotations may use as a channel, written as there: `/dev/uio0:2`, "
            "`mem:0x7faf1000+0x9000` or a file; empty: none."
        ),
    ] = ()
    max_bytes: Annotated[
        Size,
        doc(
            "Most memory in `/dev/shm` that the channels of one guest may have together; no container limit counts it."
        ),
    ] = Size(8 * MIB)


class Annotations(Section, frozen=True):
    """Who may set which annotation `org.runphi.*`."""

    of_images: Annotated[
        tuple[str, ...],
        doc(
            "What an image's author may ask for, by the manifest's annotations or `/boot/config.json`: names behind"
            " `org.runphi.`, `*` for all that begins so. Everything else only who runs the image may set, and no image"
            " may name a file of the host."
        ),
    ] = (
        "arch", "inmate", "linux", "kernel", "ramdisk", "dtb", "cmdline", "load-address", "machine", "net", "rpu",
        "console", "channel.*", "rule.*",
    )  # fmt: skip


_S = TypeVar("_S", bound=Section)


class Config(Section, frozen=True):
    """Keys at the top of the file."""

    runc: Annotated[
        str,
        doc(
            "The real runc, which runs every container that asks for no partition. Empty: the first found of "
            + ", ".join(f"`{path}`" for path in realrunc.CANDIDATES)
            + " that is not runPHI itself."
        ),
    ] = ""
    backend: Annotated[
        str,
        doc(
            "Backend of containers that ask for a partition and name none by `org.runphi.backend`. `docker`: these are"
            " ordinary containers."
        ),
    ] = "qemu"
    supervisor: Supervisor = Supervisor()
    console: Console = Console()
    log: Log = Log()
    inmate: Inmate = Inmate()
    annotations: Annotations = Annotations()
    source: Source = Source()
    hypervisor: Hypervisor = Hypervisor()
    channels: Channels = Channels()

    def real_runc(self) -> str | None:
        """Return the path of the real runc, or None when there is none; runPHI under that name is none."""
        # the one that is named may have become runPHI since: `configure --replace-runc` keeps it beside
        return realrunc.find((self.runc, f"{self.runc}_vanilla") if self.runc else realrunc.CANDIDATES)

    def of(self, kind: type[_S]) -> _S:
        """Return a backend's table; its defaults where the type was composed without that backend."""
        tables = (getattr(self, name) for name in self.__struct_fields__)
        return next((table for table in tables if isinstance(table, kind)), kind())


@functools.cache
def composed(*tables: tuple[str, type[Section]]) -> type[Config]:
    """Return the type of a file that has these tables as well; the same type whenever they are asked for."""
    fields = [(name, kind, kind()) for name, kind in tables]
    made = msgspec.defstruct(
        "Config", fields, bases=(Config,), namespace={"__doc__": Config.__doc__}, frozen=True, kw_only=True
    )
    return cast("type[Config]", made)


class Schema(NamedTuple):
    """What the file may say.

    :ivar kind: the type of the whole file.
    :ivar environment: variables that stand for a key where the file does not name it, with that key's path.
    """

    kind: type[Config] = Config
    environment: Mapping[str, str] = MappingProxyType({})


#: the tables that are no backend's
COMMON: Final = Schema()
