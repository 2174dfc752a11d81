# SPDX-License-Identifier: Apache-2.0
"""A QEMU that lies about KVM, for tests: put before the real one, which it is for every accelerator but ``kvm``.

:func:`install` writes a program that a configuration can name (``qemu.x86_64``) and a file ``role`` beside it. For
``-accel tcg``, and for questions such as ``--version``, the program *is* the real QEMU. For ``-accel kvm`` it plays
the role that the file names, whether or not this machine has a KVM; where ``/dev/kvm`` itself is missing, tests name
another file by ``RUNPHI_KVM`` (see ``backends.qemu.accel.proof``).

To add a role, write a function ``role_NAME(stage)`` and put it into :data:`ROLES`. It gets a :class:`Stage`: the real
QEMU, the arguments of the call, the words behind the role's name in the file (``internal-error 2`` gives ``("2",)``)
and a few tricks. It does not return, or returns the exit status. It runs in the process that QEMU would be: same pid,
descriptors and working directory, so ``stage.become`` leaves nothing between the caller and the real QEMU.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: beside the program: the role that it plays, and the role's own words
ROLE_FILE: Final = "role"
#: what QEMU prints when KVM gives up on a guest
INTERNAL_ERROR: Final = "KVM internal error. Suberror: 1\nextra data[0]: 0x0000000000000001\nemulation failure\n"
#: the instruction that `wrong-exchange` takes away: lock cmpxchg16b (%rdi); what stands there instead does nothing
EXCHANGE: Final = bytes.fromhex("f0480fc70f")
NOTHING: Final = b"\x90" * len(EXCHANGE)
#: the timed loop of the x86 probe: dec ecx, jnz; its number of turns stands in front of it
LOOP: Final = bytes.fromhex("ffc975fc")
#: how much faster than software `honest` is, and how much slower `slow`
FASTER: Final = 20
SLOWER: Final = 10
#: seconds by which software is late in a proof of an `honest` one, so that its KVM is faster as a whole; and with the
#: kernel of Linux guests, which runs on both at the same time
LATE: Final = 1.0
LATE_LINUX: Final = 55
#: the program writes down how it was called, a line each
CALLS_FILE: Final = "calls"
#: what only the guests of a proof have on their command lines
PROOFS: Final = ("chardev=marks", "chardev:marks", "guest=runphi-proof")

#: what a machine without KVM is made of instead: microvm's devices have no place on the machine for software
_SOFTWARE: Final = {
    "virtio-serial-device": "virtio-serial-pci",
    "virtio-net-device": "virtio-net-pci",
    "vhost-user-fs-device": "vhost-user-fs-pci",
}


class Stage(NamedTuple):
    """What a role has to play with."""

    #: path of the real QEMU
    real: str
    #: the arguments it was called with
    argv: list[str]
    #: what stands behind the role's name
    words: tuple[str, ...]

    def become(self, argv: list[str]) -> NoReturn:
        """Be the real QEMU from here on."""
        os.execv(self.real, [self.real, *argv])

    def is_proof(self) -> bool:
        """Whether this is a guest of the proof, not one of somebody's."""
        return any(word in argument for argument in self.argv for word in PROOFS)

    def is_linux(self) -> bool:
        """Whether a kernel with our init is to start."""
        return "-initrd" in self.argv

    def software(self) -> list[str]:
        """The arguments with software emulation in the place of KVM."""
        return in_software(self.argv)

    def patched(self, change: Callable[[bytes], bytes]) -> list[str]:
        """The arguments in software, with a changed copy of the kernel."""
        argv = self.software()
        at = argv.index("-kernel") + 1
        with tempfile.NamedTemporaryFile(prefix="liarqemu-", delete=False) as file:
            file.write(change(Path(argv[at]).read_bytes()))
        # QEMU opens it by a descriptor that is inherited, so that nothing is left behind
        fd = os.open(file.name, os.O_RDONLY)
        os.unlink(file.name)
        os.set_inheritable(fd, True)
        argv[at] = f"/proc/self/fd/{fd}"
        return argv


def in_software(argv: list[str]) -> list[str]:
    """Return the arguments that give the same guest by software emulation."""
    found = list(argv)
    found[found.index("-accel") + 1] = "tcg"
    if "-cpu" in found and found[at := found.index("-cpu") + 1] == "host":
        found[at] = "max"
    machine = found[found.index("-machine") + 1]
    if machine.startswith("microvm") and "acpi=on" in machine:
        # a Linux guest: software gets a machine with more clocks
        rest = [word for word in machine.split(",")[1:] if word.startswith("memory-backend=")]
        found[found.index("-machine") + 1] = ",".join(["pc", "smm=off", "usb=off", *rest])
        for option in ("-bios", "-global"):
            if option in found:
                at = found.index(option)
                del found[at : at + 2]
        for old, new in _SOFTWARE.items():
            found = [new + word.removeprefix(old) if word.split(",")[0] == old else word for word in found]
    return found


# Section: the roles


def role_hangs(stage: Stage) -> NoReturn:
    """Opens and never ends; not even SIGTERM ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def role_internal_error(stage: Stage) -> NoReturn:
    """Says what QEMU says when KVM gives up, at once or after so many seconds, and stays there, stopped."""
    if stage.words:
        time.sleep(float(stage.words[0]))
    sys.stderr.write(INTERNAL_ERROR)
    sys.stderr.flush()
    while True:
        signal.pause()


def role_aborts(stage: Stage) -> int:
    """Fails an assertion."""
    sys.stderr.write("qemu: kvm_init: Assertion `ret == 0' failed.\n")
    sys.stderr.flush()
    os.abort()


def role_refuses(stage: Stage) -> int:
    """Says that there is no KVM, as where the module is broken."""
    sys.stderr.write("qemu: failed to initialize kvm: Operation not permitted\n")
    return 1


def role_slow(stage: Stage) -> NoReturn:
    """Right in everything, at a tenth of what software does."""
    stage.become(stage.patched(lambda image: _turns(image, SLOWER)))


def role_wrong_exchange(stage: Stage) -> NoReturn:
    """A processor whose locked exchange of 16 bytes does nothing."""
    stage.become(stage.patched(lambda image: image.replace(EXCHANGE, NOTHING)))


def role_honest(stage: Stage) -> NoReturn:
    """Software by the name of KVM, which seems faster: its timed loop is shorter, and the real software starts late."""
    if stage.is_linux() or not stage.is_proof():
        stage.become(stage.software())
    stage.become(stage.patched(lambda image: _turns(image, 1 / FASTER)))


def role_turncoat(stage: Stage) -> int:
    """Honest in every proof, and then plays the role behind its name: ``turncoat internal-error 2``."""
    return role_honest(stage) if stage.is_proof() else _other(stage)


def role_no_linux(stage: Stage) -> int:
    """Honest with guests that bring no kernel, and plays the role behind its name with others: ``no-linux hangs``."""
    return _other(stage) if stage.is_linux() else role_honest(stage)


def _other(stage: Stage) -> int:
    name, *words = stage.words
    return ROLES[name](stage._replace(words=tuple(words)))


# Section: roles for real guests. They run in software by the name of KVM, until they do not.


def role_frozen(stage: Stage) -> NoReturn:
    """All is well, but the guest's kernel does not get anywhere."""
    stage.become(stage.patched(lambda image: frozen_image()))


def role_crawls(stage: Stage) -> int:
    """Right in everything, at a tenth of what software does: it runs for a tenth of the time."""
    child = _child(stage, stage.software())
    while child.poll() is None:
        for number, seconds in ((signal.SIGSTOP, 0.09), (signal.SIGCONT, 0.01)):
            child.send_signal(number)
            time.sleep(seconds)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def role_crashes(stage: Stage) -> NoReturn:
    """Fails an assertion when the guest has run for so many seconds, or has come to our init (``init``)."""
    Middle(stage).run_until(*stage.words)
    sys.stderr.write("qemu: kvm_cpu_exec: Assertion `run->exit_reason' failed.\n")
    sys.stderr.flush()
    os.abort()


def role_stops(stage: Stage) -> int:
    """KVM gives up after so many seconds, or when the guest has come to our init; QEMU stays there and answers."""
    middle = Middle(stage)
    middle.run_until(*stage.words)
    middle.stop()
    while middle.child.poll() is None:
        middle.turn()
    return middle.child.returncode


class Middle:
    """Stands between the real QEMU and whoever speaks to its monitor."""

    SOCKET: Final = "liar.sock"

    def __init__(self, stage: Stage) -> None:
        argv = stage.software()
        at = next(n for n, word in enumerate(argv) if word.startswith("socket,id=qmp,"))
        fd = next(int(word.removeprefix("fd=")) for word in argv[at].split(",") if word.startswith("fd="))
        argv[at] = f"socket,id=qmp,path={self.SOCKET},server=on,wait=off"
        self._listener = socket.socket(fileno=fd)
        self.child = _child(stage, argv)
        self._ends: dict[socket.socket, socket.socket] = {}
        self._asked: dict[socket.socket, bytes] = {}
        self._stopped = False
        self.let_go: float | None = None

    def run_until(self, when: str = "0") -> None:
        """Stand by until it is time."""
        while True:
            self.turn()
            if when == "init" and b"init" in _content("ctl.log"):
                return
            if when != "init" and self.let_go is not None and time.monotonic() >= self.let_go + float(when):
                return

    def turn(self) -> None:
        """Pass on what is there."""
        ready, _, _ = select.select([self._listener, *self._ends], [], [], 0.02)
        for end in ready:
            if end is self._listener:
                client, _ = self._listener.accept()
                server = self._connect()
                self._ends |= {client: server, server: client}
                self._asked[client] = b""
            elif end in self._ends:
                self._pass(end)

    def _connect(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        while True:
            try:
                server.connect(self.SOCKET)
            except OSError:
                time.sleep(0.01)
            else:
                return server

    def _pass(self, end: socket.socket) -> None:
        other = self._ends[end]
        data = end.recv(65536)
        if not data:
            for one in (end, other):
                del self._ends[one]
                one.close()
            return
        if end not in self._asked:
            other.sendall(data)
            return
        left = (self._asked[end] + data).decode().lstrip()
        while left:
            try:  # nothing need stand between two commands
                command, length = json.JSONDecoder().raw_decode(left)
            except json.JSONDecodeError:
                break
            self._command(command, end, other)
            left = left[length:].lstrip()
        self._asked[end] = left.encode()

    def _command(self, asked: dict[str, Any], client: socket.socket, server: socket.socket) -> None:
        name = asked.get("execute")
        if self._stopped and name in ("query-status", "cont"):
            status = {"return": {"status": "internal-error", "running": False}}
            refused = {"error": {"class": "GenericError", "desc": "Resetting the Virtual Machine is required"}}
            answer = status if name == "query-status" else refused
            client.sendall(json.dumps({**answer, "id": asked.get("id")}).encode() + b"\r\n")
            return
        server.sendall(json.dumps(asked).encode() + b"\n")
        if name == "cont":
            self.let_go = time.monotonic()

    def stop(self) -> None:
        """Stop the guest, and begin to lie about why."""
        self._stopped = True
        sys.stderr.write(INTERNAL_ERROR + "RAX=0000000000000000 RBX=0000000000000000\nCode=f0 48 0f c7 0f\n")
        sys.stderr.flush()
        with open("ev.in", "wb") as monitor:  # the other one: the socket serves one client at a time
            monitor.write(b'{"execute":"stop"}\n')


def frozen_image() -> bytes:
    """Return a PVH image of one segment that halts at its first instruction."""
    load, code = 0x10_0000, b"\xfa\xf4\xeb\xfd"  # cli; 1: hlt; jmp 1b
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", load + 208)
    elf = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, load + 208, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 7, 0, load, load, 212, 212, 0x1000)
    elf += struct.pack("<IIQQQQQQ", 4, 4, 176, load + 176, load + 176, len(note), len(note), 4)
    return (elf + note).ljust(208, b"\0") + code


def _child(stage: Stage, argv: list[str]) -> subprocess.Popen[bytes]:
    """Start the real QEMU, which ends when we do, however that is."""
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        [stage.real, *argv],
        close_fds=False,
        preexec_fn=lambda: libc.prctl(1, signal.SIGKILL),  # PR_SET_PDEATHSIG
    )


def _content(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except FileNotFoundError:
        return b""


ROLES: Final[Mapping[str, Callable[[Stage], int]]] = {
    "aborts": role_aborts,
    "crashes": role_crashes,
    "crawls": role_crawls,
    "frozen": role_frozen,
    "hangs": role_hangs,
    "honest": role_honest,
    "internal-error": role_internal_error,
    "no-linux": role_no_linux,
    "refuses": role_refuses,
    "slow": role_slow,
    "stops": role_stops,
    "turncoat": role_turncoat,
    "wrong-exchange": role_wrong_exchange,
}


def _turns(image: bytes, factor: float) -> bytes:
    """Change the number of turns of the probe's timed loop."""
    at = image.index(LOOP)
    turns = int.from_bytes(image[at - 4 : at], "little")
    return image[: at - 4] + int(turns * factor).to_bytes(4, "little") + image[at:]


# Section: the program


def install(directory: Path, role: str, real: str = "/usr/bin/qemu-system-x86_64") -> Path:
    """Write the program and its role; returns its path.

    :param role: a name of :data:`ROLES`, and the role's own words behind it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    play(directory, role)
    program = directory / Path(real).name
    calls, told = (shlex.quote(str(directory / name)) for name in (CALLS_FILE, ROLE_FILE))
    itself = shlex.join([sys.executable, "-I", str(Path(__file__).resolve()), real, str(directory / ROLE_FILE)])
    program.write_text(
        f"""#!/bin/sh
printf '%s\\n' "$*" >>{calls}
case " $* " in
    *" -accel kvm "*) exec {itself} "$@" ;;
esac
case "$(cat {told}) / $*" in
    honest*=marks* | honest*:marks* | turncoat*=marks* | no-linux*=marks*) sleep {LATE} ;;
    honest*=runphi-proof* | turncoat*=runphi-proof*) sleep {LATE_LINUX} ;;
esac
exec {shlex.quote(real)} "$@"
"""
    )
    program.chmod(0o755)
    return program


def play(directory: Path, role: str) -> None:
    """Change the role of an installed liar."""
    assert role.split()[0] in ROLES, role
    (directory / ROLE_FILE).write_text(role)


def main(argv: list[str]) -> int:
    """Play the role: ``liarqemu.py REAL ROLE_FILE ARGUMENT…``."""
    name, *words = Path(argv[1]).read_text().split()
    return ROLES[name](Stage(argv[0], argv[2:], tuple(words)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
