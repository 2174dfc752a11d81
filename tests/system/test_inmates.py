# SPDX-License-Identifier: Apache-2.0
"""The demo inmates on real QEMU: built, booted, typed at, and ended in every way they know."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(120)]

BUILD: Final = Path(__file__).resolve().parents[2] / "bin" / "build-inmates"
#: generous: software emulation on a busy machine
PATIENCE: Final = 30.0
NEWLINE: Final = b"\r\n"

COMMON: Final = (
    "-accel", "tcg", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
    "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    "-chardev", "stdio,id=con,signal=off", "-serial", "chardev:con",
    "-chardev", "pipe,id=ev,path=ev", "-mon", "chardev=ev,mode=control",
)  # fmt: skip
X86: Final = (
    "-chardev", "file,id=exit,path=guest.exit",
    "-device", "isa-debugcon,iobase=0x4f0,chardev=exit",
    "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
    "-device", "pvpanic,ioport=0x505", "-action", "panic=exit-failure",
)  # fmt: skip
AARCH64: Final = ("-M", "virt", "-cpu", "cortex-a57", "-semihosting-config", "enable=on,target=gdb")
LOADER: Final = "loader,cpu-num=0,force-raw=on,addr=0x40200000,file="

MACHINES: Final = {
    "pvh": ("qemu-system-x86_64", "-M", "microvm,x-option-roms=off,acpi=off", "-bios", "qboot.rom", *X86,
            "-kernel", "demo-x86_64.elf"),
    "multiboot": ("qemu-system-x86_64", "-M", "microvm,acpi=off", "-bios", "qboot.rom", *X86,
                  "-kernel", "demo-x86_64-multiboot.elf"),
    "multiboot-q35": ("qemu-system-x86_64", "-M", "q35", *X86, "-kernel", "demo-x86_64-multiboot.elf"),
    "aarch64-elf": ("qemu-system-aarch64", *AARCH64, "-kernel", "demo-aarch64.elf"),
    "aarch64-flat": ("qemu-system-aarch64", *AARCH64, "-kernel", "demo-aarch64.bin"),
    "aarch64-loader": ("qemu-system-aarch64", *AARCH64, "-device", LOADER + "demo-aarch64.bin"),
}  # fmt: skip


class Guest:
    """One QEMU whose console is its stdin and stdout."""

    def __init__(self, argv: list[str], cwd: Path) -> None:
        self.cwd = cwd
        self.seen = b""
        for name in ("ev.in", "ev.out"):
            os.mkfifo(cwd / name)
        # opened for both directions: nobody waits for the other end, and what is written stays
        self.monitor = [os.open(cwd / name, os.O_RDWR | os.O_NONBLOCK) for name in ("ev.in", "ev.out")]
        os.write(self.monitor[0], b'{"execute": "qmp_capabilities"}')
        self.told = b""
        self.process = subprocess.Popen(argv, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def type(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def until(self, text: bytes) -> bytes:
        """Read the console until `text` shows; return what came before and with it, and forget it."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert data, f"no {text!r} on the console, but {self.seen[-500:]!r}"
            self.seen += data
        end = self.seen.index(text) + len(text)
        found, self.seen = self.seen[:end], self.seen[end:]
        return found

    def command(self, line: str) -> bytes:
        """Type a command at the prompt and return what it printed."""
        self.type(line.encode() + b"\r")
        self.until(line.encode() + NEWLINE)
        return self.until(b"> ").removesuffix(b"> ")

    def code(self) -> int:
        """Wait for the end and return the guest's exit code, from the exit port where there is one."""
        ended = self.process.wait(PATIENCE)
        port = self.cwd / "guest.exit"
        if port.exists() and (byte := port.read_bytes()):
            return byte[0]
        return ended

    def hear_monitor(self) -> None:
        """Wait until the monitor has answered: events that come before are told to nobody."""
        deadline = time.monotonic() + PATIENCE
        while b'"return"' not in self.told:
            assert select.select([self.monitor[1]], [], [], max(0.0, deadline - time.monotonic()))[0], self.told
            self.told += os.read(self.monitor[1], 65536)

    def events(self) -> str:
        """Return what the monitor said, once the machine has ended."""
        with contextlib.suppress(BlockingIOError):
            self.told += os.read(self.monitor[1], 65536)
        return self.told.decode()

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for fd in self.monitor:
            os.close(fd)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def build(out: Path) -> str:
    done = subprocess.run([BUILD, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def inmates(inmates_built: Path) -> Path:
    return inmates_built


@pytest.fixture
def boot(inmates: Path, tmp_path: Path) -> Iterator[Callable[[str], Guest]]:
    guests: list[Guest] = []

    def start(machine: str) -> Guest:
        argv = [arg.replace("demo-", f"{inmates}/demo-") for arg in MACHINES[machine]]
        guests.append(Guest([*argv, *COMMON], tmp_path))
        guests[-1].hear_monitor()
        guests[-1].until(b"> ")
        return guests[-1]

    yield start
    for guest in guests:
        guest.close()


@pytest.fixture(params=list(MACHINES))
def guest(request: pytest.FixtureRequest, boot: Callable[[str], Guest]) -> Guest:
    return boot(request.param)


def test_build_leaves_what_is_new_enough(inmates: Path) -> None:
    assert build(inmates) == ""


def test_build_makes_again_what_is_old(tmp_path: Path) -> None:
    build(tmp_path)
    os.utime(tmp_path / "demo-aarch64.elf", (0, 0))
    assert build(tmp_path).splitlines() == [f"built {tmp_path}/demo-aarch64.elf", f"built {tmp_path}/demo-aarch64.bin"]


def test_build_says_what_is_missing(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "readlink", "mkdir", "gcc", "ld"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    argv = ["/usr/bin/bash", str(BUILD), str(tmp_path / "out")]
    done = subprocess.run(argv, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "aarch64-linux-gnu-gcc (apt install gcc-aarch64-linux-gnu)" in done.stderr


@pytest.mark.parametrize("machine", MACHINES)
def test_banner_is_first(machine: str, inmates: Path, tmp_path: Path) -> None:
    argv = [arg.replace("demo-", f"{inmates}/demo-") for arg in MACHINES[machine]]
    guest = Guest([*argv, *COMMON], tmp_path)
    try:
        banner = guest.until(NEWLINE)
    finally:
        guest.close()
    assert banner.startswith(b"runPHI demo inmate, ")
    assert (b"aarch64" if "aarch64" in machine else b"x86_64") in banner


def test_command_line(guest: Guest) -> None:
    assert guest.command("echo two  words") == b"two  words\r\n"
    assert guest.command("nonsense") == b"unknown command, try help\r\n"
    assert b"spam N" in guest.command("help")
    guest.type(b"ech")
    assert guest.until(b"ech") == b"ech"  # echoed before the line ends
    guest.type(b"x\x7fo hi\n")
    assert guest.until(b"> ").endswith(b"\r\nhi\r\n> ")
    guest.type(b"half\x03")
    assert guest.until(b"> ") == b"half^C\r\n> "


def test_spam_is_whole_and_in_order(guest: Guest) -> None:
    expected = b"".join(b"line %07d\r\n" % number for number in range(1, 2001))
    assert guest.command("spam 2000") == expected


def test_raw_echoes_every_byte(guest: Guest) -> None:
    guest.type(b"raw\r")
    guest.until(b"ctrl-d ends\r\n")
    data = bytes(byte for byte in range(256) if byte != 4) * 4
    guest.type(data)
    assert guest.until(data) == data
    guest.type(b"\x04")
    assert guest.until(b"> ") == b"\r\n> "


@pytest.mark.parametrize("code", [0, 3, 42, 200])
def test_exit_code(guest: Guest, code: int) -> None:
    guest.type(b"exit %d\r" % code)
    assert guest.code() == code


def test_crash_is_told_apart_from_reset(guest: Guest) -> None:
    guest.type(b"crash\r")
    guest.until(b"crashing\r\n")
    if "qemu-system-aarch64" in str(guest.process.args):
        assert guest.code() == 134
    else:
        assert guest.code() == 1
        assert "GUEST_PANICKED" in guest.events()


def test_reset(guest: Guest) -> None:
    guest.type(b"reset\r")
    guest.until(b"resetting\r\n")
    assert guest.code() == 0
    assert "guest-reset" in guest.events()


def test_hang_does_not_answer(guest: Guest) -> None:
    guest.type(b"hang\r")
    guest.until(b"hanging\r\n")
    guest.type(b"echo\r")
    assert guest.process.stdout is not None
    assert select.select([guest.process.stdout], [], [], 0.5)[0] == []
    assert guest.process.poll() is None


def test_idle_inmate_costs_no_cpu(guest: Guest) -> None:
    guest.command("echo awake")
    before = guest.cpu_seconds()
    time.sleep(1.0)
    assert guest.cpu_seconds() - before < 0.2


HOSTILE: Final = """
        .macro semihosting operation, arguments
        mov x0, #\\operation
        adr x1, \\arguments
        hlt #0xf000
        .endm
        .globl start
start:  semihosting 0x01, create        // SYS_OPEN for writing
        semihosting 0x0e, delete        // SYS_REMOVE
        semihosting 0x01, open          // SYS_OPEN for reading; the file stays open
        ldr x9, =0x09000000
        mov w2, #'!'
        str w2, [x9]
1:      wfi
        b 1b
        .balign 8
create: .quad made, 4, made_end - made - 1
delete: .quad victim, victim_end - victim - 1
open:   .quad secret, 0, secret_end - secret - 1
made:   .asciz "{made}"
made_end:
victim: .asciz "{victim}"
victim_end:
secret: .asciz "{secret}"
secret_end:
"""


@pytest.mark.parametrize("target", ["gdb", "native"])
def test_semihosting_reaches_no_host_file(target: str, tmp_path: Path) -> None:
    """With target=gdb an inmate may end QEMU by semihosting and nothing else; native shows that the attack is one."""
    paths = {name: tmp_path / name for name in ("made", "victim", "secret")}
    for name in ("victim", "secret"):
        paths[name].write_text(name)
    source, image = tmp_path / "hostile.S", tmp_path / "hostile.elf"
    source.write_text(HOSTILE.format(**paths))
    flags = ["-nostdlib", "-static", "-Wl,-Ttext=0x40080000", "-Wl,-estart", "-Wl,--build-id=none"]
    subprocess.run(["aarch64-linux-gnu-gcc", *flags, "-o", image, source], check=True)
    argv = [arg.replace("target=gdb", f"target={target}") for arg in AARCH64]
    guest = Guest(["qemu-system-aarch64", *argv, "-kernel", str(image), *COMMON], tmp_path)
    try:
        guest.until(b"!")
        opened = {os.readlink(link) for link in Path(f"/proc/{guest.process.pid}/fd").iterdir()}
    finally:
        guest.close()
    reached = target == "native"
    assert paths["made"].exists() is reached
    assert paths["victim"].exists() is not reached
    assert (str(paths["secret"]) in opened) is reached
