# SPDX-License-Identifier: Apache-2.0
"""Linux in a cell of the fake: everything that was loaded is checked, then the container's process runs as ours.

No kernel runs. What a kernel and our init would find is looked at in the cell's memory, from the loader's text on:
kernel header, device tree, RAM disk, configuration. What is wrong stands in the kernel log of the board, and the cell
says nothing for ever, as a kernel that cannot boot does. The process then runs on this machine in a copy of its root
file system, confined by ``chroot`` only, and what init says of its end is said as init says it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gzip
import os
import pty
import shutil
import signal
import stat
import struct
import termios
from typing import TYPE_CHECKING, Final

from backends.guest import fdt
from runphi_async.errors import TreeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from backends.guest.fdt import Node
    from runphi_async.testing.fake_jailhouse.guests import Guest

    #: numbers and content of a RAM disk's files, by name
    Files = dict[str, tuple[tuple[int, ...], bytes]]
    Write = Callable[[bytes], Awaitable[None]]

#: where an arm64 kernel's header says that it is one
_MAGIC_AT: Final = 56
_MAGIC: Final = b"ARM\x64"
_ALIGN: Final = 2 << 20
_CPIO: Final = b"070701"
_END: Final = b"\x1b\\"
#: what a terminal of the guest is called, by what its port's node says
_TERMINALS: Final = {"arm,pl011": "ttyAMA0", "xlnx,xuartps": "ttyPS0", "ns16550a": "ttyS0"}
_NODES: Final = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
#: bytes of the loader and of a kernel that has nothing but its header, for boards without real ones
LOADER_SIZE: Final = 0x5800
KERNEL_SIZE: Final = 0x10000
CANNOT_RUN: Final = 126
NOT_FOUND: Final = 127


def loader_image() -> bytes:
    """Return what stands for Jailhouse's linux-loader.bin."""
    return b"#!fake:linux-loader\n".ljust(LOADER_SIZE, b"\0")


def kernel_image() -> bytes:
    """Return what stands for a kernel: the header that boot loaders read, and nothing to run."""
    head = struct.pack("<IIQQQ", 0, 0, 0, KERNEL_SIZE, 0b1010).ljust(_MAGIC_AT, b"\0") + _MAGIC
    return head.ljust(KERNEL_SIZE, b"\0")


class BootError(Exception):
    """Raised when a kernel could not boot from what was loaded."""


class Conf:
    """Init's configuration."""

    def __init__(self, data: bytes) -> None:
        pairs = [record.decode("utf-8", "surrogateescape").partition("=") for record in data.split(b"\0")[:-1]]
        self.args = [value for key, _, value in pairs if key == "arg"]
        self.env = dict(value.split("=", 1) for key, _, value in pairs if key == "env" and "=" in value)
        self._last = {key: value for key, _, value in pairs}

    def text(self, key: str, default: str = "") -> str:
        """Return the last value of a key."""
        return self._last.get(key, default)

    def number(self, key: str) -> int:
        """Return it as a number, 0 where it is not there."""
        return int(self.text(key) or "0", 0)


async def run(guest: Guest) -> None:
    """Boot, and run the process to its end; whoever watches the cell stops it then."""
    try:
        tree, bootargs, disk = _boot(guest)
        files = dict(_entries(disk))
        if "init" not in files:
            raise BootError("the RAM disk has no /init")
        if "runphi.conf" in files:
            await _init(guest, Conf(files["runphi.conf"][1]), files, tree, bootargs)
        else:
            guest.say(f"[    0.000000] Kernel command line: {bootargs}")
            guest.say("[    1.239025] Run /init as init process")
    except (BootError, TreeError) as exc:
        guest.cell.log(f"fake: cell {guest.cell.config.name}: Linux cannot boot: {exc}")
    guest.cell.settled.set()
    await asyncio.Event().wait()


# Section: what the kernel finds


def _boot(guest: Guest) -> tuple[Node, str, bytes]:
    """Check what was loaded; return the device tree, the command line and the RAM disk."""
    memory = guest.cell.memory
    kernel, at_tree = int(guest.args["kernel"], 0), int(guest.args["dtb"], 0)
    header = memory(kernel, 64)
    if header[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        raise BootError(f"there is no arm64 kernel at {kernel:#x}")
    if (kernel - int.from_bytes(header[8:16], "little")) % _ALIGN:
        raise BootError(f"the kernel at {kernel:#x} does not lie where it wants to")
    if at_tree % 8:
        raise BootError(f"the device tree at {at_tree:#x} is not aligned")
    size = int.from_bytes(memory(at_tree + 4, 4), "big")
    tree = fdt.parse(memory(at_tree, size))
    ram = _check_memory(guest, tree.root, kernel)
    _check_cpus(guest, tree.root)
    _check_devices(guest, tree.root)
    chosen = tree.root.child("chosen")
    if chosen is None or not chosen.texts("bootargs"):
        raise BootError("the device tree has no command line")
    return tree.root, chosen.texts("bootargs")[0], _ramdisk(guest, chosen, ram)


def _check_memory(guest: Guest, root: Node, kernel: int) -> range:
    node = root.child("memory")
    reg = node.props.get("reg", b"") if node is not None else b""
    count = root.number("#address-cells") or 2
    start, size = (int.from_bytes(part, "big") for part in (reg[: 4 * count], reg[4 * count :]))
    held = any(r.virt_start <= start and start + size <= r.virt_start + r.size for r in guest.cell.config.memory)
    if not size or not held:
        raise BootError(f"the device tree gives it memory at {start:#x} that the cell does not have")
    if kernel not in range(start, start + size):
        raise BootError("the kernel lies outside its memory")
    return range(start, start + size)


def _check_cpus(guest: Guest, root: Node) -> None:
    node = root.child("cpus")
    named = [child for child in node.children if child.texts("device_type") == ["cpu"]] if node is not None else []
    numbers = sorted(int.from_bytes(child.props["reg"], "big") for child in named)
    if numbers != list(guest.cell.cpus):
        raise BootError(f"the device tree names CPUs {numbers}, the cell has {list(guest.cell.cpus)}")


def _check_devices(guest: Guest, root: Node) -> None:
    """A kernel that touches a device which its cell does not have loses its CPU."""
    count = root.number("#address-cells") or 2
    for node in root.children:
        if node.name.startswith("serial@"):
            start = int.from_bytes(node.props["reg"][: 4 * count], "big")
            if not any(r.virt_start <= start < r.virt_start + r.size for r in guest.cell.config.memory):
                guest.crash(f"Unhandled data write at {start:#x}(4)")
                raise BootError(f"it touched {node.name}, which the cell does not have")


def _ramdisk(guest: Guest, chosen: Node, ram: range) -> bytes:
    start, end = (int.from_bytes(chosen.props.get(f"linux,initrd-{name}", b""), "big") for name in ("start", "end"))
    if start not in ram or end - 1 not in ram or end <= start:
        raise BootError(f"the RAM disk {start:#x}-{end:#x} does not lie in its memory")
    data = guest.cell.memory(start, end - start)
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError) as exc:
        raise BootError(f"the RAM disk cannot be unpacked: {exc}") from exc


def _entries(data: bytes) -> Iterator[tuple[str, tuple[tuple[int, ...], bytes]]]:
    """Yield name, numbers and content of what stands in cpio archives that follow each other."""
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += 1
            continue
        if data[at : at + 6] != _CPIO:
            raise BootError(f"the RAM disk is damaged at {at:#x}")
        fields = tuple(int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13))
        name = data[at + 110 : at + 110 + fields[11] - 1]
        begin = at + 110 + fields[11] + 3 & ~3
        at = begin + fields[6] + 3 & ~3
        if at > len(data) + 3:
            raise BootError("the RAM disk is cut off")
        if name != b"TRAILER!!!":
            yield os.fsdecode(name), (fields, data[begin : begin + fields[6]])


# Section: what init does


async def _init(guest: Guest, conf: Conf, files: Files, tree: Node, bootargs: str) -> None:
    write = _console(guest, conf, tree, bootargs)
    root = guest.cell.scratch()
    try:
        await asyncio.to_thread(_unpack, files, root)
        code, error = await _process(guest, conf, root, write)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for word in ([f"error={error}"] if error else []) + [f"exit={code}"]:
        await write(_word(conf, word))
    if conf.text("console") == "kmsg":
        await write(b"\n")
    if guest.cell.has_state(conf.number("comm")):
        guest.cell.set_state(2 if code == 0 else 3)


def _word(conf: Conf, text: str) -> bytes:
    return f"\x1b_runphi:{conf.text('mark')}:{text}\x1b\\".encode()


def _console(guest: Guest, conf: Conf, tree: Node, bootargs: str) -> Write:
    """Return what writes on the console that init opens."""
    device = conf.text("console").removeprefix("/dev/")
    consoles = [word.removeprefix("console=").partition(",")[0] for word in bootargs.split() if "console=" in word]

    async def into_log(data: bytes) -> None:
        if "jailhouse" in consoles:
            guest.cell.write(data, putc=True)

    if device == "kmsg":
        return into_log
    ports = [_TERMINALS.get(word) for node in tree.children for word in node.texts("compatible")]
    if guest.cell.has_hvc:
        ports.append("hvc0")
    if device not in consoles or device not in ports:
        raise BootError(f"init wants {device}, which the kernel does not have")
    return guest.cell.write_all


def _unpack(files: Files, root: Path) -> None:
    """Make the root file system of the RAM disk, with owners and modes."""
    first: dict[int, Path] = {}
    for name, (fields, data) in files.items():
        if name != "rootfs" and not name.startswith("rootfs/"):
            continue
        path = root / name.removeprefix("rootfs").lstrip("/")
        inode, mode, uid, gid = fields[:4]
        if stat.S_ISDIR(mode):
            path.mkdir(exist_ok=True)
        elif stat.S_ISLNK(mode):
            path.symlink_to(os.fsdecode(data))
        elif not stat.S_ISREG(mode):
            os.mknod(path, mode, os.makedev(fields[9], fields[10]))
        elif inode in first and not data:
            path.hardlink_to(first[inode])
            continue
        else:
            first[inode] = path
            path.write_bytes(data)
        os.chown(path, uid, gid, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            path.chmod(stat.S_IMODE(mode))
    (root / "dev").mkdir(exist_ok=True)
    for name, numbers in _NODES.items():
        if not (root / "dev" / name).exists():
            os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(*numbers))
            (root / "dev" / name).chmod(0o666)


async def _process(guest: Guest, conf: Conf, root: Path, write: Write) -> tuple[int, str]:
    """Run the process; return its exit code, and why it could not be run."""
    if not conf.args:
        return CANNOT_RUN, "cannot run the process: it has no arguments"
    ends = _terminal(conf) if conf.number("tty") else _pipes()
    name = conf.args[0]
    try:
        process = await asyncio.create_subprocess_exec(
            *conf.args, stdin=ends.stdin, stdout=ends.stdout, stderr=ends.stdout, env=_environment(conf),
            preexec_fn=_entering(conf, root, ends.tty),
        )  # fmt: skip
    except FileNotFoundError:
        why = "No such file or directory" if "/" in name else "executable file not found in $PATH"
        ends.close()
        return NOT_FOUND, f"cannot run {name}: {why}"
    except (OSError, ValueError) as exc:
        ends.close()
        return CANNOT_RUN, f"cannot run {name}: {exc}"
    ends.close_far()
    guest.cell.settled.set()
    await write(_word(conf, "ready"))
    helpers = [
        asyncio.create_task(_Listener(conf, ends, process.pid).run(guest)),
        asyncio.create_task(_reap(process)),
    ]
    try:
        while data := await _read(ends.output):
            await write(data)
        status = await process.wait()
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.wait(helpers)
        _kill(process)
        await process.wait()
        ends.close()
    return status if status >= 0 else 128 - status, ""


async def _reap(process: asyncio.subprocess.Process) -> None:
    """It is the container: what it left behind ends with it."""
    await process.wait()
    _kill(process)


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(conf: Conf) -> dict[str, str]:
    return {"HOME": "/", **conf.env}


def _entering(conf: Conf, root: Path, tty: bool) -> Callable[[], None]:
    """Return what the child does before it becomes the process."""
    groups = [int(group) for group in conf.text("groups").split(",") if group]
    umask = int(conf.text("umask") or "18")
    cwd, uid, gid = conf.text("cwd", "/"), conf.number("uid"), conf.number("gid")

    def enter() -> None:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        if tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.chroot(root)
        os.makedirs(cwd, exist_ok=True)
        os.chdir(cwd)
        os.umask(umask)
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)

    return enter


class _Ends:
    """Both ends of what the process reads and writes."""

    def __init__(self, stdin: int, stdout: int, near: tuple[int, int], *, tty: bool) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.input, self.output = near
        self.tty = tty
        for fd in near:
            os.set_blocking(fd, False)

    def close_far(self) -> None:
        for fd in {self.stdin, self.stdout} - {-1}:
            os.close(fd)
        self.stdin = self.stdout = -1

    def close_input(self) -> None:
        if self.input not in (-1, self.output):
            os.close(self.input)
        self.input = -1

    def close(self) -> None:
        self.close_far()
        for fd in {self.input, self.output} - {-1}:
            os.close(fd)
        self.input = self.output = -1


def _terminal(conf: Conf) -> _Ends:
    near, far = pty.openpty()
    if conf.number("rows") and conf.number("cols"):
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("4H", conf.number("rows"), conf.number("cols"), 0, 0))
    return _Ends(far, far, (near, near), tty=True)


def _pipes() -> _Ends:
    stdin, near_in = os.pipe()
    near_out, stdout = os.pipe()
    return _Ends(stdin, stdout, (near_in, near_out), tty=False)


async def _ready(fd: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)


async def _read(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(fd, 4096)
        except BlockingIOError:
            await _ready(fd, loop.add_reader, loop.remove_reader)
        except OSError:  # a terminal that nobody has open any more
            return b""


class _Listener:
    """What init does with its input: words are for init, all else is for the process."""

    def __init__(self, conf: Conf, ends: _Ends, pid: int) -> None:
        self._begin = _word(conf, "").removesuffix(_END)
        self._ends = ends
        self._pid = pid

    async def run(self, guest: Guest) -> None:
        """Listen until the process has ended."""
        data = b""
        while True:
            plain, found, rest = data.partition(self._begin)
            if not found:  # what may be the beginning of a word waits for the rest of it
                keep = next((n for n in range(len(self._begin), 0, -1) if self._begin.startswith(data[-n:])), 0)
                keep = min(keep, len(data))
                plain, data = data[: len(data) - keep], data[len(data) - keep :]
            elif _END not in rest:
                data = found + rest
            await self._write(plain)
            if found and _END in rest:
                word, _, data = rest.partition(_END)
                self._obey(word.decode().split())
            else:
                data += await guest.cell.input.get()

    def _obey(self, words: list[str]) -> None:
        match words:
            case ["signal", number]:
                os.kill(self._pid, int(number))
            case ["winsize", rows, cols] if self._ends.tty:
                fcntl.ioctl(self._ends.output, termios.TIOCSWINSZ, struct.pack("4H", int(rows), int(cols), 0, 0))
            case ["eof"] if not self._ends.tty:
                self._ends.close_input()

    async def _write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        while data and self._ends.input >= 0:
            try:
                data = data[os.write(self._ends.input, data) :]
            except BlockingIOError:
                await _ready(self._ends.input, loop.add_writer, loop.remove_writer)
            except OSError:  # it does not read any more
                return
