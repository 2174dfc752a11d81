# SPDX-License-Identifier: Apache-2.0
"""The configuration file: every key, its default and its documentation in one place.

The supervisor reads it once when it starts (:func:`load`). ``python -m runphi_async.config.reference`` prints the
reference page docs/reference/configuration.md, which a test keeps current.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Final, Literal

import msgspec

from consoles.errors import SourceError
from consoles.sources import describe
from consoles.streams.rules import Rule, compiled
from runphi_async import digits
from runphi_async.config import realrunc
from runphi_async.events import NAMES

_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}ib": 1 << 10 * (n + 1) for n, letter in enumerate("kmgt")},
    **{f"{letter}b": 1000 ** (n + 1) for n, letter in enumerate("kmgt")},
}


class Size(int):
    """A number of bytes, in the file either a number or a text such as ``"64 MiB"``."""

    @classmethod
    def parse(cls, value: object) -> Size:
        """Read a size as the file may give it; ValueError says what is wrong with it."""
        if isinstance(value, str):
            found = re.fullmatch(r"\s*([0-9]+)\s*([A-Za-z]*)\s*", value)
            unit = _UNITS.get(found[2].lower()) if found else None
            count = digits.whole(found[1]) if found else None
            if unit is None or count is None or count * unit > digits.LARGEST:
                raise ValueError(f'expected a size such as 65536 or "64 KiB", got {value!r:.80}')
            return cls(count * unit)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f'expected a size such as 65536 or "64 KiB", got {type(value).__name__}')
        if not 0 <= value <= digits.LARGEST:
            got = str(value) if abs(value) <= digits.LARGEST else "more than there can be"
            raise ValueError(f"expected a size of 0 or more, got {got}")
        return cls(value)

    def text(self) -> str:
        """Return the size as people write it; ``str`` stays the plain number, which command lines need."""
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            count, rest = divmod(int(self), _UNITS[unit.lower()])
            if count and not rest:
                return f"{count} {unit}"
        return f"{int(self)} B"


MIB: Final = 1 << 20


def _doc(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Common options of every table of the file."""


class Supervisor(Section, frozen=True):
    """The supervisor itself."""

    log_level: Annotated[Literal["debug", "info", "warning", "error"], _doc("Least severity the supervisor logs.")] = (
        "info"
    )
    group: Annotated[
        str,
        _doc(
            "Group whose members may use consoles: `attach`, `who`, `logs`, `console`, `stats`, `state` and `list`, and"
            " nothing else; empty: nobody but root and the supervisor's own user."
        ),
    ] = ""
    log_file: Annotated[str, _doc("File the supervisor logs to; empty: `supervisor.log` in the run directory.")] = ""


class ConsoleRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pattern that is looked for on every guest's console."""

    name: str
    #: a regular expression of RE2, for one line
    pattern: str


class Console(Section, frozen=True):
    """What stands between a guest's console and those who read it."""

    window_bytes: Annotated[
        Size, _doc("How far a guest may run ahead of the slowest reader that must not lose anything.")
    ] = Size(MIB)
    replay_bytes: Annotated[Size, _doc("How much of the past `attach` shows before it goes live.")] = Size(64 << 10)
    drain_seconds: Annotated[
        float,
        msgspec.Meta(ge=0),
        _doc("How long the end of a container waits for a reader that does not read."),
    ] = 2.0
    attach_buffer_bytes: Annotated[
        Size, _doc("How far an attached client may fall behind before it is shown a gap.")
    ] = Size(256 << 10)
    attach_buffer_seconds: Annotated[
        float,
        msgspec.Meta(gt=0),
        _doc("How many seconds an attached client may stay behind before it is shown a gap."),
    ] = 10.0
    escape_key: Annotated[
        str, _doc("Key in front of commands in `attach`, a letter or `ctrl-` and a letter; empty: none.")
    ] = "ctrl-]"
    detach_keys: Annotated[
        str, _doc("Keys that leave `attach`, separated by commas: a letter, or `ctrl-` and a letter.")
    ] = "ctrl-p,ctrl-q"

    rules: Annotated[
        tuple[ConsoleRule, ...],
        _doc(
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

    enabled: Annotated[bool, _doc("Whether consoles are logged.")] = True
    dir: Annotated[str, _doc("Directory of the logs; each container has a directory of its own there.")] = (
        "/var/log/runphi"
    )
    sinks: Annotated[
        tuple[Literal["raw", "cri", "json-file", "timed"], ...],
        _doc(
            "Kinds of logs written for every container, of `raw`, `cri`, `json-file` and `timed`. `logs` reads `raw`."
        ),
    ] = ("raw",)
    max_bytes: Annotated[Size, _doc("Size at which a log is rotated; 0: never.")] = Size(64 * MIB)
    max_files: Annotated[
        int, msgspec.Meta(ge=1, le=100), _doc("Files kept of each log, the newest included; the oldest goes away.")
    ] = 2
    annotation_max_bytes: Annotated[
        Size, _doc("Most disk that one log may take whose size a container sets by `org.runphi.log`.")
    ] = Size(1024 * MIB)
    path_dirs: Annotated[
        tuple[str, ...],
        _doc("Directories below which `org.runphi.log` may place logs by `path=`; empty: nowhere."),
    ] = ()

    def __post_init__(self) -> None:
        if len(set(self.sinks)) < len(self.sinks):
            raise ValueError("sinks: each kind once")
        for path in self.path_dirs:
            if not os.path.isabs(path) or os.path.normpath(path) == "/":
                raise ValueError(f"path_dirs: expected absolute paths other than /, got {path!r}")


class MemoryDefault(Section, frozen=True):
    """RAM of a guest whose container sets no memory limit, for each kind of guest."""

    inmate: Annotated[Size, _doc("A bare-metal program or RTOS (`INMATE=`).")] = Size(32 * MIB)
    linux: Annotated[Size, _doc("A Linux guest that runs the image (`LINUX=1`).")] = Size(256 * MIB)
    kernel: Annotated[Size, _doc("A kernel with its own ramdisk (`KERNEL=`, `RAMDISK=`).")] = Size(256 * MIB)


class MemoryMinimum(Section, frozen=True):
    """Least RAM of a guest: a container limited to less is refused."""

    inmate: Annotated[Size, _doc("A bare-metal program or RTOS.")] = Size(4 * MIB)
    linux: Annotated[Size, _doc("A Linux guest; Debian's kernel takes 62 MiB.")] = Size(96 * MIB)
    kernel: Annotated[Size, _doc("A kernel with its own ramdisk.")] = Size(64 * MIB)


class InitSeconds(Section, frozen=True):
    """How long the kernel of a Linux guest may run before it reaches our init: then it is taken for hung."""

    kvm: Annotated[float, msgspec.Meta(gt=0), _doc("On KVM; a good one needs less than one second.")] = 30.0
    tcg: Annotated[float, msgspec.Meta(gt=0), _doc("In software; a loaded machine with slow cores needs most.")] = 120.0


class Qemu(Section, frozen=True):
    """The QEMU backend."""

    accel: Annotated[
        Literal["auto", "kvm", "tcg"],
        _doc(
            "Accelerator; `auto` takes KVM where it is proven to do the work of a kernel, faster than software; `kvm` "
            "refuses guests where it is not."
        ),
    ] = "auto"
    x86_64: Annotated[str, _doc("QEMU for x86-64 guests, a path or a name looked up in PATH.")] = "qemu-system-x86_64"
    aarch64: Annotated[str, _doc("QEMU for arm64 guests.")] = "qemu-system-aarch64"
    virtiofsd: Annotated[
        str,
        _doc(
            "Server that shares the image's root filesystem with a Linux guest; a path, or a name looked up in PATH, "
            "`/usr/libexec` and `/usr/lib/qemu`."
        ),
    ] = "virtiofsd"
    kernel: Annotated[str, _doc("Kernel of Linux guests whose image brings none.")] = "/var/lib/runphi/guest/vmlinux"
    initrd: Annotated[str, _doc("Initial ramdisk for that kernel.")] = "/var/lib/runphi/guest/initrd"
    overhead_bytes: Annotated[
        Size, _doc("Memory of QEMU itself: added to the container's memory limit for its cgroup.")
    ] = Size(128 * MIB)
    stop_seconds: Annotated[
        float, msgspec.Meta(ge=0), _doc("How long a guest asked to stop may take before it is destroyed.")
    ] = 10.0
    init_seconds: InitSeconds = InitSeconds()
    memory_default: MemoryDefault = MemoryDefault()
    memory_minimum: MemoryMinimum = MemoryMinimum()


class Jailhouse(Section, frozen=True):
    """The Jailhouse backend."""

    board: Annotated[
        str, _doc("Board file: the name of a shipped one (`runphi board list`) or a path; empty: no Jailhouse here.")
    ] = ""
    tool: Annotated[str, _doc("The `jailhouse` tool, a path or a name looked up in PATH.")] = "jailhouse"
    sysfs: Annotated[str, _doc("Directory of the kernel module in sysfs.")] = "/sys/devices/jailhouse"
    system_config: Annotated[
        str,
        _doc(
            "The system configuration that the hypervisor was enabled with: each cell is checked against it before it "
            "is made; empty: against the board file only."
        ),
    ] = ""
    pause: Annotated[
        Literal["refuse", "shutdown"],
        _doc(
            "What `pause` does, as Jailhouse cannot make a cell stand still: refuse, or shut the cell down, so that "
            "`resume` loads its images again and starts it from its beginning."
        ),
    ] = "refuse"
    firmware: Annotated[
        str, _doc("Where the kernel's remoteproc finds images: those for remote processors are linked below it.")
    ] = "/lib/firmware"
    deadline_seconds: Annotated[
        float,
        msgspec.Meta(gt=0),
        _doc("How long one call of the tool may take before the board is taken for hung."),
    ] = 30.0
    kernel: Annotated[str, _doc("Kernel of Linux cells whose image brings none.")] = "/var/lib/runphi/jailhouse/Image"
    initrd: Annotated[str, _doc("RAM disk with our init, for Linux cells that run a container's process.")] = (
        "/var/lib/runphi/jailhouse/initrd"
    )
    dtb: Annotated[
        str,
        _doc(
            "Device tree of Linux cells whose image brings none; without such a file one is made of the board file's "
            "[devicetree]."
        ),
    ] = "/var/lib/runphi/jailhouse/inmate.dtb"
    loader: Annotated[str, _doc("Jailhouse's loader, which starts a Linux kernel in a cell.")] = (
        "/usr/local/libexec/jailhouse/linux-loader.bin"
    )


class Xen(Section, frozen=True):
    """The Xen backend; the supervisor runs in dom0."""

    xl: Annotated[str, _doc("Xen's toolstack, a path or a name looked up in PATH.")] = "xl"
    libxenctrl: Annotated[
        bool, _doc("Whether domains are looked at and paused through Xen's Python module where there is one.")
    ] = True
    xenstore: Annotated[
        str, _doc("Socket or device of xenstored; empty: the first of the usual places that answers.")
    ] = ""
    kernel: Annotated[str, _doc("Kernel of Linux guests whose image brings none.")] = "/var/lib/runphi/guest/vmlinux"
    initrd: Annotated[str, _doc("Initial ramdisk for that kernel.")] = "/var/lib/runphi/guest/initrd-xen"
    ramdisk_max_bytes: Annotated[
        Size, _doc("Largest root file system that a Linux guest gets in its RAM; larger ones become a disk.")
    ] = Size(64 * MIB)
    image_dir: Annotated[str, _doc("Directory for the disks of Linux guests while they are made.")] = (
        "/var/lib/runphi/xen"
    )
    bridges: Annotated[
        tuple[str, ...], _doc("Bridges that containers may name in `org.runphi.xen.vif`; empty: none.")
    ] = ()
    devices: Annotated[
        tuple[str, ...],
        _doc(
            "What containers may be given of the host by `org.runphi.xen.disk`, `p9`, `pci`, `iomem`, `irqs` and "
            "`dtdev`: each as it is written there; a path stands for all below it. Empty: nothing."
        ),
    ] = ()
    drain_quiet_seconds: Annotated[
        float,
        msgspec.Meta(ge=0.01),
        _doc("Silence after which the console of a domain that ended is taken to be complete."),
    ] = 0.1
    stop_seconds: Annotated[
        float, msgspec.Meta(ge=0), _doc("How long a guest asked to stop may take before it is destroyed.")
    ] = 10.0
    memory_default: MemoryDefault = MemoryDefault()
    memory_minimum: MemoryMinimum = MemoryMinimum()


class Inmate(Section, frozen=True):
    """Guests named by `INMATE=` and `KERNEL=`."""

    host_paths: Annotated[
        tuple[str, ...],
        _doc("Directories of the host from which `INMATE=` and `KERNEL=` may take files; empty: from none."),
    ] = ()

    def __post_init__(self) -> None:
        for path in self.host_paths:
            if not os.path.isabs(path):
                raise ValueError(f"host_paths: expected absolute paths, got {path!r}")


class Source(Section, frozen=True):
    """Devices and sockets of the host that are consoles."""

    host_paths: Annotated[
        tuple[str, ...],
        _doc(
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
        _doc("Where it is read: a [source](sources.md) such as `exec:jailhouse console -f`; empty: nobody follows it."),
    ] = ""
    log_max_bytes: Annotated[Size, _doc("Size at which the file of its lines is rotated; one older part is kept.")] = (
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
        _doc(
            "Shared memory of the host that annotations may use as a channel, written as there: `/dev/uio0:2`, "
            "`mem:0x7faf1000+0x9000` or a file; empty: none."
        ),
    ] = ()
    max_bytes: Annotated[
        Size,
        _doc(
            "Most memory in `/dev/shm` that the channels of one guest may have together; no container limit counts it."
        ),
    ] = Size(8 * MIB)


class Annotations(Section, frozen=True):
    """Who may set which annotation `org.runphi.*`."""

    of_images: Annotated[
        tuple[str, ...],
        _doc(
            "What an image's author may ask for, by the manifest's annotations or `/boot/config.json`: names behind"
            " `org.runphi.`, `*` for all that begins so. Everything else only who runs the image may set, and no image"
            " may name a file of the host."
        ),
    ] = (
        "arch", "inmate", "linux", "kernel", "ramdisk", "dtb", "cmdline", "load-address", "machine", "net", "rpu",
        "console", "channel.*", "rule.*",
    )  # fmt: skip


class Config(Section, frozen=True):
    """Keys at the top of the file."""

    runc: Annotated[
        str,
        _doc(
            "The real runc, which runs every container that asks for no partition. Empty: the first found of "
            + ", ".join(f"`{path}`" for path in realrunc.CANDIDATES)
            + " that is not runPHI itself."
        ),
    ] = ""
    backend: Annotated[
        str,
        _doc(
            "Backend of containers that ask for a partition and name none by `org.runphi.backend`. `docker`: these are"
            " ordinary containers."
        ),
    ] = "qemu"
    supervisor: Supervisor = Supervisor()
    console: Console = Console()
    log: Log = Log()
    qemu: Qemu = Qemu()
    jailhouse: Jailhouse = Jailhouse()
    xen: Xen = Xen()
    inmate: Inmate = Inmate()
    annotations: Annotations = Annotations()
    source: Source = Source()
    hypervisor: Hypervisor = Hypervisor()
    channels: Channels = Channels()

    def real_runc(self) -> str | None:
        """Return the path of the real runc, or None when there is none; runPHI under that name is none."""
        # the one that is named may have become runPHI since: `configure --replace-runc` keeps it beside
        return realrunc.find((self.runc, f"{self.runc}_vanilla") if self.runc else realrunc.CANDIDATES)
