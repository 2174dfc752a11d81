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

import os
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

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
LATE: Final = 0.5
LATE_LINUX: Final = 25
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


ROLES: Final[Mapping[str, Callable[[Stage], int]]] = {
    "aborts": role_aborts,
    "hangs": role_hangs,
    "honest": role_honest,
    "internal-error": role_internal_error,
    "no-linux": role_no_linux,
    "refuses": role_refuses,
    "slow": role_slow,
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
