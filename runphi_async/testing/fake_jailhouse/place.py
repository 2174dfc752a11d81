# SPDX-License-Identifier: Apache-2.0
"""Where a fake board keeps itself: one directory, in files, shared by every call of the tool and by the cells.

The driver's mutex is a lock on a file, held for the length of an ioctl as the real one is. A board that hangs is a
file too: once it is there nothing answers until the board is powered off, as with the real one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from runphi_async.testing.fake_jailhouse import rootsystem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Directory of the board; without it the one that JAILHOUSE_SYSFS lies in, else DEFAULT.
VARIABLE: Final = "FAKE_JAILHOUSE"
#: Where drivers look for the sysfs tree; the fake's is below its own directory.
SYSFS_VARIABLE: Final = "JAILHOUSE_SYSFS"
SYSFS: Final = Path("sys/devices/jailhouse")
DEFAULT: Final = "/run/fake-jailhouse"
#: Seconds between two looks at whether a frozen root cell runs again.
LOOK: Final = 0.01


class Errno(Exception):
    """What an ioctl returns when it fails."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class Place:
    """A fake board's directory."""

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(root if root is not None else _from_environment())
        self.sysfs = self.root / SYSFS
        self.cpu_dir = self.root / "sys/devices/system/cpu"
        self.device = self.root / "dev/jailhouse"
        self.firmware = self.root / "lib/firmware/jailhouse.bin"
        self.control = self.root / "control"
        self.pace = self.root / "pace"
        self.memory = self.root / "memory"
        self.uarts = self.root / "uart"
        self.devices = self.root / "dev"
        self.run = self.root / "run"

    # Section: making and ending

    def power_on(self, cpus: int = 4, dialect: str = "mainline") -> None:
        """Make the board: firmware and CPUs there, module not loaded.

        :param dialect: whose Jailhouse it has: mainline's or the Omnivisor's.
        """
        for folder in (self.cpu_dir, self.device.parent, self.firmware.parent, self.uarts, self.run, self.root / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        self.firmware.write_bytes(b"JHVISOR\0fake")
        (self.run / "dialect").write_text(dialect)
        self.write_state({"cpus": cpus, "online": list(range(cpus)), "module": False})
        self.set_pace(0)
        rootsystem.show(self.root)
        self.show_cpus()

    def set_pace(self, pace: float) -> None:
        """Say how long calls of the tool take, as a multiple of what was recorded; 0: as long as they must."""
        self.pace.write_text(f"{pace:g}\n")

    def remove(self) -> None:
        """Remove the board's directory."""
        shutil.rmtree(self.root, ignore_errors=True)

    # Section: state

    @property
    def dialect(self) -> str:
        """Whose Jailhouse the board has."""
        try:
            return (self.run / "dialect").read_text()
        except FileNotFoundError:
            return "mainline"

    @contextlib.contextmanager
    def mutex(self) -> Iterator[None]:
        """Hold the driver's mutex."""
        self.wait_alive()
        fd = os.open(self.root / "run/mutex", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if (self.run / "wedged").exists():
                self.hang()
            yield
        finally:
            os.close(fd)

    def wait_alive(self) -> None:
        """Wait while the root cell stands still, for ever if the machine hangs."""
        while (self.run / "frozen").exists():
            time.sleep(LOOK)

    def hang_machine(self) -> NoReturn:
        """Let the whole machine stand still: nothing answers any more."""
        self.hang("frozen")

    def hang_caller(self) -> NoReturn:
        """Park the CPU of the caller, which holds the mutex and will for ever."""
        self.hang("wedged")

    def hang(self, mark: str | None = None) -> NoReturn:
        """Never return, whatever signal comes, as a process on a parked CPU; only SIGKILL and power-off end it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if mark is not None:
            (self.run / mark).touch()
        (self.run / f"hung-{os.getpid()}.pid").write_text(f"{os.getpid()} {start_time(os.getpid())}\n")
        while True:
            signal.pause()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend the root cell for as long as the hypervisor waits for a cell."""
        (self.run / "frozen").touch()
        yield
        (self.run / "frozen").unlink(missing_ok=True)

    def state(self) -> dict[str, Any]:
        """Return what the driver knows."""
        loaded: dict[str, Any] = json.loads((self.run / "state.json").read_text())
        return loaded

    def write_state(self, state: dict[str, Any]) -> None:
        """Keep what the driver knows."""
        self.put(self.run / "state.json", json.dumps(state, indent=1))

    def put(self, path: Path, text: str | bytes, mode: int = 0o444) -> None:
        """Write a file in one step, so that no reader sees half of it, nor a temporary file beside it."""
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        temporary = self.root / "tmp" / f"{os.getpid()}-{path.name}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, data)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
        os.replace(temporary, path)

    def dmesg(self, text: str) -> None:
        """Append a line to the kernel log."""
        with open(self.root / "dmesg", "a") as file:
            file.write(f"[{time.monotonic() % 100000:12.6f}] {text}\n")

    def show_cpus(self) -> None:
        """Write the lists of online and offline CPUs."""
        state = self.state()
        online = state["online"]
        self.put(self.cpu_dir / "online", cpu_list(online) + "\n")
        self.put(self.cpu_dir / "offline", cpu_list(set(range(state["cpus"])) - set(online)) + "\n")

    # Section: failure injection

    def injected(self, command: str, cell: str | None) -> dict[str, Any] | None:
        """Return the first rule of the control file that this call meets, and count it down.

        The file is a JSON list of rules: ``on`` a command such as "cell create", optionally ``cell`` a name, ``times``
        how often it holds (without: always), and what happens: see docs/reference/fake-jailhouse.md.
        """
        try:
            rules = json.loads(self.control.read_text())
        except FileNotFoundError:
            return None
        for rule in rules:
            if rule["on"] != command or rule.get("cell", cell) != cell or rule.get("times", 1) <= 0:
                continue
            if "times" in rule:
                rule["times"] -= 1
                self.put(self.control, json.dumps(rules), 0o644)
            return dict(rule)
        return None


def _from_environment() -> str:
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    sysfs = os.environ.get(SYSFS_VARIABLE, "").rstrip("/")
    return sysfs.removesuffix(f"/{SYSFS}") if sysfs.endswith(f"/{SYSFS}") else DEFAULT


def cpu_list(numbers: Iterable[int]) -> str:
    """Return numbers as the kernel writes a CPU list.

    ``backends.jailhouse.model`` has the same function. Importing it costs more than `cell list` does in all, and every
    call of the tool imports this module; and a fake that shared it with what it tests would share its mistakes.
    """
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in parts)


def start_time(pid: int) -> int | None:
    """Return when a process started, None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[19])
    except OSError:
        return None
