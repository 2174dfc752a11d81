# SPDX-License-Identifier: Apache-2.0
"""The command line of the fake ``jailhouse``: the recorded grammar, texts and exit statuses."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from runphi_async.testing.fake_jailhouse import rcpus
from runphi_async.testing.fake_jailhouse.asked import Image, Target
from runphi_async.testing.fake_jailhouse.place import Errno, Place
from runphi_async.testing.fake_jailhouse.ring import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runphi_async.testing.fake_jailhouse.driver import Driver

VERSION: Final = "Jailhouse management tool v0.12\n"
NAME_MAX: Final = 31
USAGE: Final = """\
Usage: {prog} {{ COMMAND | --help | --version }}

Available commands:
   enable SYSCONFIG
   disable
   console [-f | --follow]
   cell create CELLCONFIG
   cell list
   cell load {{ ID | [--name] NAME }} {{ IMAGE | {{ -s | --string }} "STRING" }}
             [-a | --address ADDRESS] ...
   cell start {{ ID | [--name] NAME }}
   cell shutdown {{ ID | [--name] NAME }}
   cell destroy {{ ID | [--name] NAME }}
   cell linux [-h] [-d DTB] [-i INITRD] [-c "CMDLINE"] [-w PARAMS_FILE]
              [-a ARCH] [-k FACTOR]
              CELLCONFIG KERNEL
   cell stats {{ ID | [--name] NAME }}
   config create [-h] [-g] [-r ROOT] [-t TEMPLATE_DIR] [-c CONSOLE]
                 [--mem-inmates MEM_INMATES] [--mem-hv MEM_HV]
                 FILE
   config collect FILE.TAR
   config check [-h] SYSCONFIG [CELLCONFIG [CELLCONFIG ...]]
   hardware check{blank}
"""
#: The fork that has remote processors, and its line for them. What it calls a mask it reads as a number.
OMNIVISOR: Final = "omnivisor"
RCPU_USAGE: Final = "             [-r | --rcpu RCPU_IMAGE_NAME RCPU_MASK] ...\n"
#: Commands that the real tool hands to Python scripts, which the fake does not have.
SCRIPTS: Final = (("cell", "linux"), ("config", "create"), ("config", "collect"), ("config", "check"))
#: Seconds that a call took on the recorded board, from its start to its end: the middle of five rounds each.
DURATIONS: Final = {
    "enable": 0.18,
    "disable": 0.1,
    "cell list": 0.06,
    "cell create": 0.165,
    "cell load": 0.075,
    "cell start": 0.06,
    "cell shutdown": 0.065,
    "cell destroy": 0.09,
}


class Exit(Exception):
    """Raised to end the tool with a status and a line on stderr."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class Usage(Exception):
    """Raised when the command line is not understood: the usage goes to stdout, the status is 1."""


def main(argv: Sequence[str]) -> int:
    """Run the tool."""
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        return Tool(Place(), list(argv)).run()
    except Usage:
        sys.stdout.write(_usage(argv[0], Place().dialect))
        return 1
    except Exit as exc:
        if str(exc):
            sys.stderr.write(f"{exc}\n")
        return exc.status


def _usage(prog: str, dialect: str) -> str:
    text = USAGE.format(prog=os.path.basename(prog), blank=" ")
    if dialect != OMNIVISOR:
        return text
    text = text.replace("   cell create", "   memguard { CPU ID } period_us budget_mem event_type\n   cell create")
    return text.replace("[-a | --address ADDRESS] ...\n", f"[-a | --address ADDRESS] ...\n{RCPU_USAGE}")


class Tool:
    """One call of the tool."""

    def __init__(self, place: Place, argv: list[str]) -> None:
        self._place = place
        self._argv = argv
        self._begun = time.monotonic()

    def run(self) -> int:
        """Do what the arguments say.

        :raises Usage: they say nothing sensible.
        """
        self._place.wait_alive()
        argv = self._argv
        command = argv[1] if len(argv) > 1 else ""
        if command == "--version":
            sys.stdout.write(VERSION)
        elif command == "--help":
            sys.stdout.write(_usage(argv[0], self._place.dialect))
        elif command == "enable":
            self._enable()
        elif command == "disable":
            self._ioctl("disable", "JAILHOUSE_DISABLE", None, lambda driver: driver.disable())
        elif command == "console":
            self._console()
        elif command in ("cell", "config", "hardware"):
            self._words(command)
        else:
            raise Usage
        return 0

    def _words(self, command: str) -> None:
        word = self._argv[2] if len(self._argv) > 2 else ""
        verbs: dict[str, Callable[[], None]] = {
            "create": self._create,
            "list": self._list,
            "load": self._load,
            "start": self._start,
            "shutdown": self._shutdown,
            "destroy": self._destroy,
            "stats": self._stats,
        }
        if command == "cell" and word in verbs:
            verbs[word]()
        elif (command, word) in (*SCRIPTS, ("hardware", "check")):
            raise Exit(1, "execvp: No such file or directory")
        else:
            raise Usage

    # Section: commands

    def _enable(self) -> None:
        if len(self._argv) != 3:
            raise Usage
        data = read_file(self._argv[2])
        self._ioctl("enable", "JAILHOUSE_ENABLE", None, lambda driver: driver.enable(data))

    def _create(self) -> None:
        if len(self._argv) != 4:
            raise Usage
        data = read_file(self._argv[3])
        self._ioctl("cell create", "JAILHOUSE_CELL_CREATE", _name_in(data), lambda driver: driver.create(data))

    def _load(self) -> None:
        target, rest = self._target()
        if not rest:
            raise Usage
        remote: list[rcpus.RcpuImage] = []
        if self._place.dialect == OMNIVISOR:
            split = rcpus.parse(rest)
            if split is None:
                raise Usage
            rest, remote = split
        images = _images(rest)
        self._ioctl("cell load", "JAILHOUSE_CELL_LOAD", target, lambda driver: driver.load(target, images, remote))

    def _start(self) -> None:
        target = self._only_target()
        self._ioctl("cell start", "JAILHOUSE_CELL_START", target, lambda driver: driver.start(target))

    def _shutdown(self) -> None:
        target = self._only_target()
        # The real tool loads no images: the error names the ioctl.
        self._ioctl("cell shutdown", "JAILHOUSE_CELL_LOAD", target, lambda driver: driver.load(target, ()))

    def _destroy(self) -> None:
        target = self._only_target()
        self._ioctl("cell destroy", "JAILHOUSE_CELL_DESTROY", target, lambda driver: driver.destroy(target))

    def _list(self) -> None:
        if len(self._argv) != 3:
            raise Usage
        cells = self._place.sysfs / "cells"
        # Sorted as text, as the real one does: 0, 1, 10, 2.
        names = sorted(os.listdir(cells)) if cells.is_dir() else []
        remote = self._place.dialect == OMNIVISOR
        if names:
            more = ("Assigned rCPUs",) if remote else ()
            sys.stdout.write(_row("ID", "Name", "State", "Assigned CPUs", *more, "Failed CPUs"))
        for name in names:
            files = ("name", "state", "cpus_assigned_list", *(("rcpus_assigned_list",) * remote), "cpus_failed_list")
            content = (read_file(str(cells / name / file)) for file in files)
            columns = [text.decode("utf-8", "surrogateescape").removesuffix("\n") for text in content]
            sys.stdout.write(_row(name, *columns))
        self._take_time("cell list")

    def _stats(self) -> None:
        target = self._only_target()
        cells = self._place.sysfs / "cells"
        for folder in cells.iterdir() if cells.is_dir() else ():
            if target.name in (folder.name, (folder / "name").read_text().strip()):
                raise Exit(1, "_curses.error: setupterm: could not find terminal")
        raise Exit(1, "reading stats: No such file or directory")

    def _console(self) -> None:
        follow = False
        if len(self._argv) == 3:
            if self._argv[2] not in ("-f", "--follow"):
                raise Usage
            follow = True
        self._open()
        reader = Reader(self._place, block=follow)
        try:
            while chunk := reader.read():
                os.write(1, chunk)
        except Errno as exc:
            raise Exit(1, f"read(console): {exc}") from None
        except (BrokenPipeError, KeyboardInterrupt):
            raise Exit(1) from None

    # Section: parts

    def _target(self) -> tuple[Target, list[str]]:
        words = self._argv[3:]
        if not words or words == ["--name"]:
            raise Usage
        if words[0] == "--name":
            return Target(None, _cut(words[1])), words[2:]
        number = c_number(words[0])
        # What does not fit into 32 bits is cut, as the C type does.
        short = None if number is None else (number + (1 << 31)) % (1 << 32) - (1 << 31)
        if short is None or short < 0:
            return Target(None, _cut(words[0])), words[1:]
        return Target(short, words[0]), words[1:]

    def _only_target(self) -> Target:
        target, rest = self._target()
        if rest:
            raise Usage
        return target

    def _open(self) -> None:
        path = self._place.device
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as exc:
            raise Exit(1, f"opening /dev/jailhouse: {exc.strerror}") from None

    def _ioctl(self, command: str, prefix: str, about: Target | str | None, call: Callable[[Driver], None]) -> None:
        from runphi_async.testing.fake_jailhouse.driver import Driver  # costs more than `cell list` does in all

        self._open()
        try:
            with self._place.mutex():
                driver = Driver(self._place)
                name = driver.name_of(about) if isinstance(about, Target) else about
                rule = self._inject(command, name)
                call(driver)
                self._take_time(command)
                if name is not None and "then" in rule:
                    driver.happen(name, rule["then"])
        except Errno as exc:
            raise Exit(1, f"{prefix}: {exc}") from None

    def _take_time(self, command: str) -> None:
        """Take as long as the recorded board did, times its pace."""
        with contextlib.suppress(FileNotFoundError):
            whole = DURATIONS[command] * float(self._place.pace.read_text())
            time.sleep(max(0.0, self._begun + whole - time.monotonic()))

    def _inject(self, command: str, cell: str | None) -> dict[str, Any]:
        rule = self._place.injected(command, cell) or {}
        if text := rule.get("dmesg"):
            self._place.dmesg(text)
        time.sleep(rule.get("delay", 0))
        if hung := rule.get("hang"):
            if hung == "machine":
                self._place.hang_machine()
            if hung == "mutex":
                self._place.hang_caller()
            self._place.hang()
        if name := rule.get("errno"):
            raise Errno(getattr(errno, name))
        if "status" in rule:
            raise Exit(rule["status"], rule.get("stderr", ""))
        return rule


def _cut(name: str) -> str:
    return os.fsencode(name)[:NAME_MAX].decode("utf-8", "surrogateescape")


def _row(number: str, name: str, state: str, *lists: str) -> str:
    return f"{number:<8}{name:<24}{state:<18}" + "".join(f"{text:<24}" for text in lists) + "\n"


def _name_in(data: bytes) -> str:
    return data[8:40].partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _images(words: list[str]) -> list[Image]:
    """Read the images of ``cell load``; files are opened before the device is, in the order given."""
    images = []
    while words:
        if words[0] in ("-s", "--string"):
            if len(words) < 2:
                raise Usage
            data, words = os.fsencode(words[1]) + b"\0", words[2:]
        else:
            data, words = read_file(words[0]), words[1:]
        address = 0
        if words and words[0] in ("-a", "--address"):
            number = c_number(words[1]) if len(words) > 1 else None
            if number is None:
                raise Usage
            address, words = number % (1 << 64), words[2:]
        images.append(Image(data, address))
    return images


def c_number(text: str) -> int | None:
    """Return what C's ``strtoll`` makes of a whole text in base 0, None if it does not take all of it."""
    match = re.fullmatch(r"[ \t-\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)|", text)
    if match is None:
        return None
    if not match[2]:
        return 0
    digits = match[2]
    value = int(digits, 8 if digits.startswith("0") and digits[1:2] not in ("x", "X") else 0)
    value = -value if match[1] == "-" else value
    return value if -(1 << 63) <= value < 1 << 63 else None


def read_file(name: str) -> bytes:
    """Return a file's content as the tool reads it.

    :raises Exit: it cannot be read.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise Exit(1, f"opening {name}: {exc.strerror}") from None
    try:
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    except OSError as exc:
        raise Exit(1, f"reading {name}: {exc.strerror}") from None
    finally:
        os.close(fd)
