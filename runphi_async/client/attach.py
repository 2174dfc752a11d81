# SPDX-License-Identifier: Apache-2.0
"""The terminal side of ``attach`` and ``run``: raw mode, keys, window size, marks, and a way back in every case.

Loaded by the thin client only when a console is shown. A supervisor that dies meanwhile is started again and the
console goes on at the very next byte.

A guest can print whatever it likes, also lines that look like ours. So all that runPHI says on a terminal carries a
word that is made anew for every session and that the guest never learns; away from a terminal it goes to stderr.
"""

import _signal as signal  # type: ignore[import-not-found]  # `signal` costs an import of enum
import posix
import select
import termios

from runphi_async import wire
from runphi_async.client import connection
from runphi_async.client import keys as client_keys
from runphi_async.wire.console import AttachStart, unpack_offset

TYPE_CHECKING = False  # type checkers know the name; `typing` would be one more file to load
if TYPE_CHECKING:
    from collections.abc import Callable

#: Signals that `run` passes to the container and `attach` takes as "leave".
LEAVE = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
NOTED = (*LEAVE, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
#: Ends whatever sequence or string a guest has begun, and undoes hidden letters and other character sets, so that no
#: guest can swallow a mark. Source: ECMA-48 (CAN, ST, SGR), ISO 2022 (SI, designation of ASCII).
CLEAN = b"\x18\x1b\\\x1b[m\x1b(B\x0f"
#: Gives back what a guest may have switched in the terminal itself: hidden cursor, mouse reports, bracketed paste.
LEFT = CLEAN + b"\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>"
#: the role of those whose input goes nowhere
WATCHES = b"observer"
#: A file is sent in pieces of this: a socket that can be written takes one without blocking.
PIECE = 4096
LOST = "lost the supervisor and cannot reach it again"


class Terminal:
    """The person's terminal: raw between ``enter`` and ``restore``, which may both be called at any time."""

    def __init__(self, raw: bool) -> None:
        self.saved: list[int | list[bytes | int]] | None = None
        self.raw = raw

    def enter(self) -> None:
        if not self.raw or self.saved is not None:
            return
        try:
            saved, mode = termios.tcgetattr(0), termios.tcgetattr(0)
        except termios.error:
            return
        mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON | termios.INLCR)
        mode[1] &= ~termios.OPOST
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        self.saved = saved
        termios.tcsetattr(0, termios.TCSADRAIN, mode)

    def restore(self) -> None:
        saved, self.saved = self.saved, None
        if saved is not None:
            try:
                # At once: a terminal that takes no output must not keep us here.
                termios.tcsetattr(0, termios.TCSANOW, saved)
            except termios.error:
                return  # it hung up


def window() -> bytes:
    """Return "rows cols" of the terminal, b"" when there is none."""
    try:
        size = posix.get_terminal_size(0)
    except OSError:
        return b""
    return b"%d %d" % (size.lines, size.columns)


class Console:
    """One attached console until its guest ends, the person leaves or nothing can be reached any more."""

    def __init__(
        self, link: connection.Link, payload: bytes, again: "Callable[[list[bytes]], connection.Link | str]"
    ) -> None:
        self.link = link
        start = AttachStart.decode(payload)
        self.start = start
        self.terminal = Terminal(start.terminal)
        self.escape = client_keys.EscapeKey(start.escape)
        self.keys = client_keys.DetachKeys(start.detach if start.terminal else b"")
        self.again = again
        self.offset = 0
        self.role = b""
        self.read_input = start.stdin
        self.signals = b""
        self.safe = None
        if start.safe:
            from consoles.streams.safe import Safe

            self.safe = Safe()
        self.wake, self.wake_in = posix.pipe()
        self.marked = start.people and posix.isatty(1)
        self.clever = posix.environ.get(b"TERM", b"dumb") not in (b"", b"dumb")
        self.tag = posix.urandom(2).hex().encode()
        self.line_start = True
        self.asking: client_keys.Line | None = None
        self.file = -1
        self.file_name = b""
        self.file_sent = 0

    def on_signal(self, number: int, _frame: object) -> None:
        self.signals += bytes((number,))
        posix.write(self.wake_in, b"\0")

    def run(self) -> "int | str":
        """Return the exit status, or what went wrong."""
        posix.set_blocking(self.wake_in, False)
        for number in NOTED:
            signal.signal(number, self.on_signal)
        self.terminal.enter()
        if self.start.terminal:
            self.link.send(wire.RESIZE, window())
        while True:
            try:
                return self.talk()
            except connection.Lost:
                status = self.reconnect()
                if status is not None:
                    return status

    def leave(self) -> None:
        """Give the terminal back, also what the guest switched on it."""
        if self.marked and self.clever and self.terminal.saved is not None:
            connection.write_all(1, LEFT)
        self.terminal.restore()

    def talk(self) -> int:
        while True:
            while (taken := self.link.take()) is not None:
                status = self.on_frame(*taken)
                if status is not None:
                    return status
            sock = self.link.sock.fileno()
            readers = [sock, self.wake, 0] if self.read_input else [sock, self.wake]
            ready, writable, _ = select.select(readers, [sock] if self.file >= 0 else [], [])
            if self.wake in ready:
                posix.read(self.wake, 64)
                status = self.on_signals()
                if status is not None:
                    return status
            if sock in ready:
                self.link.fill()
            if 0 in ready:
                status = self.on_input()
                if status is not None:
                    return status
            if writable and self.file >= 0:
                self.send_piece()

    # Section: what the supervisor says

    def on_frame(self, kind: bytes, payload: bytes) -> "int | None":
        if kind == wire.CONSOLE:
            self.offset += len(payload)
            self.show(self.safe.feed(payload) if self.safe else payload)
        elif kind == wire.CONSOLE_AT:
            self.offset = unpack_offset(payload)
        elif kind == wire.SKIPPED:
            onward = unpack_offset(payload)
            self.skipped(onward - self.offset)
            self.offset = onward
        elif kind == wire.PAINT:
            self.show(payload)
        elif kind == wire.ROLE:
            self.role = payload
        elif kind == wire.NOTICE:
            for line in payload.split(b"\n"):
                self.mark(line)
        elif kind == wire.ERR:
            connection.write_all(2, payload)
        elif kind == wire.EXIT:
            if self.safe:
                connection.write_all(1, self.safe.end())
            return int(payload)
        elif kind == wire.SPAWN:
            connection.spawn_stub(self.link, payload)
        return None

    def show(self, data: bytes) -> None:
        if data:
            self.line_start = data.endswith(b"\n")
            connection.write_all(1, data)

    def mark(self, text: bytes) -> None:
        """Say something of ours on a line of its own."""
        if self.marked:
            self.start_line()
            self.show(b"[runphi %s: %s]\r\n" % (self.tag, text))
        else:
            connection.write_all(2, b"[runphi: %s]%s\n" % (text, b"" if self.terminal.saved is None else b"\r"))

    def start_line(self) -> None:
        connection.write_all(1, (CLEAN if self.clever else b"") + (b"" if self.line_start else b"\r\n"))

    def skipped(self, count: int) -> None:
        """The gap is shown where it is; away from a terminal it is said on stderr as well, where no guest can."""
        if count <= 0:
            return
        if self.marked:
            self.mark(b"%d bytes skipped" % count)
            return
        self.show(b"\r\n[runphi: %d bytes skipped]\r\n" % count)
        if self.start.people:
            self.mark(b"%d bytes skipped before byte %d" % (count, self.offset + count))

    # Section: what the person does

    def on_signals(self) -> "int | None":
        numbers, self.signals = self.signals, b""
        for number in numbers:
            if number == signal.SIGWINCH:
                self.link.send(wire.RESIZE, window())
            elif number == signal.SIGTSTP:
                self.leave()
                posix.kill(posix.getpid(), signal.SIGSTOP)
            elif number == signal.SIGCONT:  # the shell has set the terminal as it likes it meanwhile
                self.terminal.restore()
                self.terminal.enter()
                if self.start.terminal:
                    self.link.send(wire.RESIZE, window())
            elif self.start.forward:
                self.link.send(wire.SIGNAL, b"%d" % number)
            else:
                return 128 + number
        return None

    def on_input(self) -> "int | None":
        try:
            data = posix.read(0, 16384)
        except OSError:
            data = b""
        if not data:
            self.read_input = False
            self.link.send(wire.INPUT_EOF)
            return None
        return self.typed(data)

    def typed(self, data: bytes) -> "int | None":
        while data:
            if self.asking is not None:
                shown, line, data = self.asking.feed(data)
                self.show(shown)
                if line is not None:
                    self.asking = None
                    self.open_file(line)
                continue
            text, command, data = self.escape.feed(data)
            passed, left = self.keys.feed(text)
            if passed:
                self.link.send(wire.INPUT, passed)
            if left or command in (b".", b"d"):
                self.link.send(wire.DETACH)
                if self.marked:
                    self.mark(b"detached")
                else:
                    connection.write_all(2, b"\r\n[runphi: detached]\r\n")
                return 0
            if command == b"s":
                self.ask_file()
            elif command == b"z":
                posix.kill(posix.getpid(), signal.SIGTSTP)
            elif command:
                self.link.send(wire.ASK, command)
        return None

    # Section: sending a file

    def ask_file(self) -> None:
        if self.file >= 0:
            self.close_file(b"stopped after")
            return
        self.asking = client_keys.Line()
        if self.marked:
            self.start_line()
        self.show(b"[runphi %s: file to send, Enter alone for none] " % self.tag)

    def open_file(self, name: bytes) -> None:
        self.show(b"\r\n")
        if not name:
            return
        if self.role == WATCHES:
            self.mark(b"cannot send %s: you only watch" % name)
            return
        try:
            self.file = posix.open(name, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
        except OSError as exc:
            self.mark(b"cannot send %s: %s" % (name, (exc.strerror or "").encode()))
            return
        self.file_name, self.file_sent = name, 0

    def send_piece(self) -> None:
        if self.role == WATCHES:  # somebody has taken over
            self.close_file(b"stopped after")
            return
        try:
            data = posix.read(self.file, PIECE)
        except OSError as exc:
            self.close_file(b"cannot read on: %s, after" % (exc.strerror or "").encode())
            return
        if data:
            self.link.send(wire.INPUT, data)
            self.file_sent += len(data)
        else:
            self.close_file(b"sent")

    def close_file(self, how: bytes) -> None:
        posix.close(self.file)
        self.file = -1
        self.mark(b"%s: %s %d bytes" % (self.file_name, how, self.file_sent))

    # Section: a supervisor that died

    def reconnect(self) -> "int | str | None":
        """Reach a new supervisor and go on at the next byte (only a plain attach can: `run` has lost its reply)."""
        self.link.sock.close()
        if self.start.forward:
            return LOST
        for _ in range(connection.TRIES):
            try:
                return self.come_back()
            except connection.Lost:
                continue  # it died again
        return LOST

    def come_back(self) -> "int | str | None":
        more = [b"--from", b"%d" % self.offset]
        if self.role:
            more += [b"--back", self.role]
        link = self.again(more)
        if isinstance(link, str):
            return f"{LOST}: {link}"
        kind, payload = link.frame()
        if kind == wire.EXIT:  # the guest has ended meanwhile
            return int(payload)
        if kind != wire.ATTACH:
            return LOST
        link.sock.setblocking(True)
        if self.start.terminal:
            link.send(wire.RESIZE, window())
        self.link = link
        return None


def attach(link: connection.Link, payload: bytes, again: "Callable[[list[bytes]], connection.Link | str]") -> int:
    """Show a console; return the exit status.

    :param again: asks the next supervisor, with further words behind the verb, when this one dies.
    """
    link.sock.setblocking(True)
    console = Console(link, payload, again)
    try:
        status = console.run()
    finally:
        console.leave()
    return connection.fail(status) if isinstance(status, str) else status
