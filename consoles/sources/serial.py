# SPDX-License-Identifier: Apache-2.0
"""A real serial port, through pyserial-asyncio; the one file that knows that library.

pyserial sets the port up, pyserial-asyncio's transport moves the bytes. Three things of theirs would stop the whole
supervisor and are kept off the loop here: opening, the ``tcdrain`` before closing (for ever, when the far end holds
its flow control), and closing. So it is not ``create_serial_connection``, which opens on the loop: 20 µs for a pty, but
as long as its driver likes for a port, and the kernel waits 30 s before it closes one whose far end takes nothing.
``connection_for_serial``, its other half, is given a thin port that reads and writes only, and the transport is
aborted, never closed.

What a crash costs: a UART does not wait for anybody without flow control. What arrives while no supervisor runs fills
the kernel's buffer (4 KiB) and is thrown away beyond it; and opening a port throws away what had arrived before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import termios
from typing import TYPE_CHECKING, Any, Final

import serial
import serial_asyncio

from consoles.errors import SourceError
from consoles.sources.link import CHUNK, Backoff, Returning, open_off_loop
from consoles.sources.pty import Identity, look
from consoles.wakers import Wakers

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sources.settings import SerialSettings

#: Bytes that wait in the transport for the port at most; what is typed further waits with whoever types.
ROOM: Final = 4096
#: Seconds that closing a port may take before it is left to its thread.
CLOSE_PATIENCE: Final = 3.0
#: Linux ioctls to begin and to end a break. Source: ioctl_tty(2).
_BEGIN_BREAK: Final = 0x5427
_END_BREAK: Final = 0x5428


def open_port(settings: SerialSettings) -> serial.Serial:
    """Open and set up a port; blocks as long as its driver likes.

    :raises SourceError: it cannot be had that way.
    """
    try:
        if not stat.S_ISCHR(os.stat(settings.path).st_mode):
            raise SourceError(f"cannot open {settings.path}: it is no serial port")
        port = serial.Serial(
            settings.path,
            settings.speed,
            settings.bits,
            settings.parity.upper(),
            settings.stop,
            timeout=0,
            write_timeout=0,
            xonxoff=settings.xonxoff,
            rtscts=settings.rtscts,
            exclusive=True,
        )
    except BlockingIOError as exc:
        raise SourceError(f"cannot open {settings.path}: another program holds it") from exc
    except (OSError, ValueError, termios.error) as exc:  # serial.SerialException is an OSError
        raise SourceError(f"cannot open {settings.path}: {_why(exc)}") from exc
    try:
        # pyserial asks for reads that return at once even without data: no difference to a hang-up could be seen.
        attributes = termios.tcgetattr(port.fileno())
        attributes[6][termios.VMIN] = 1
        # Closing would drop DTR, opening raise it again, and many boards take that for their reset button: a supervisor
        # that is started anew must not reboot them.
        attributes[2] &= ~termios.HUPCL
        termios.tcsetattr(port.fileno(), termios.TCSANOW, attributes)
    except termios.error as exc:
        port.close()
        raise SourceError(f"cannot set up {settings.path}: {_why(exc)}") from exc
    return port


def close_port(port: serial.Serial) -> None:
    """Throw away what could not be sent, which closing would wait for, and close; blocks."""
    with contextlib.suppress(termios.error, OSError):
        termios.tcflush(port.fileno(), termios.TCOFLUSH)
    with contextlib.suppress(OSError):
        port.close()


def _why(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.errno == 11:  # EAGAIN: the lock that marks a port as taken
        return "another program holds it"
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno)
    return str(exc.args[-1] if isinstance(exc, termios.error) else exc)


class _Wire:
    """What the transport takes for a ``serial.Serial``: reads and writes, and nothing that could block.

    A real one would set the port up anew when it is given the transport's time-outs, and spin where it cannot write.
    """

    def __init__(self, fd: int, lost: Callable[[str], None]) -> None:
        self._fd = fd
        self._lost = lost
        self.timeout: float | None = 0
        self.write_timeout: float | None = 0

    def fileno(self) -> int:
        return self._fd

    def read(self, size: int) -> bytes:
        """Read more than the transport asks for: it may be a megabaud line."""
        try:
            data = os.read(self._fd, max(size, CHUNK))
        except BlockingIOError:
            return b""
        except OSError as exc:
            self._lost(exc.strerror or str(exc))
            return b""
        if not data:
            self._lost("the port has hung up")
        return data

    def write(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            raise  # the transport tries again; pyserial's own write would spin
        except OSError as exc:
            self._lost(exc.strerror or str(exc))
            return len(data)

    def flush(self) -> None:
        """Do not wait for the far end."""

    def close(self) -> None:
        """``SerialConnection.close`` does it, off the loop."""


class SerialConnection(asyncio.Protocol):
    """One open port; a ``Connection`` of ``consoles.sources.link``."""

    def __init__(self, port: serial.Serial, received: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._port = port
        self._received = received
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._full = False
        self._wakers = Wakers()
        self._ended = asyncio.Event()
        self._paused = True
        self.reason = ""
        self._transport: Any = None

    @classmethod
    async def over(
        cls, port: serial.Serial, received: Callable[[bytes], None], lost: Callable[[], None]
    ) -> SerialConnection:
        """Return a connection over an open port, which it owns; waits for nothing."""
        made = cls(port, received, lost)
        wire = _Wire(port.fileno(), made._lose)
        made._transport, _ = await serial_asyncio.connection_for_serial(made._loop, lambda: made, wire)
        made._transport.set_write_buffer_limits(high=ROOM, low=0)
        return made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport begins to read right behind this: it may have been paused until now."""
        self._loop.call_soon(self._obey)

    def _obey(self) -> None:
        if self._paused or self.reason:
            self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """Pass on what the port brought."""
        self._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport has let go of the port."""
        self._ended.set()

    def pause_writing(self) -> None:
        """The transport is full."""
        self._full = True

    def resume_writing(self) -> None:
        """The transport has room again."""
        self._full = False
        self._wakers.wake()

    def _lose(self, reason: str) -> None:
        if not self.reason and not self._transport.is_closing():
            self.reason = reason
            self._transport.pause_reading()
            self._wakers.drop()
            self._loop.call_soon(self._lost)

    def pause(self) -> None:
        """Stop reading: the far end is held by flow control, or its bytes are lost when the kernel's buffer is full."""
        self._paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        """Read."""
        self._paused = False
        if not self.reason:
            self._transport.resume_reading()

    def write(self, data: bytes) -> int:
        """Give the transport as much as it has room for."""
        if self.reason or self._full:
            return 0
        part = data[: ROOM + 1 - self._transport.get_write_buffer_size()]
        self._transport.write(part)
        return len(part)

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once when there is room."""
        if self._full:
            self._wakers.add(wake)
        elif not self.reason:
            self._loop.call_soon(wake)

    async def send_break(self, seconds: float) -> None:
        """Hold the line at zero."""
        try:
            await asyncio.to_thread(_ioctl, self._port.fileno(), _BEGIN_BREAK)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(_ioctl, self._port.fileno(), _END_BREAK)
        except OSError as exc:
            raise SourceError(f"cannot send a break: {exc.strerror}") from exc

    async def close(self) -> None:
        """Abort, and close the port off the loop: whatever state its driver is in, we go on."""
        self._transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_PATIENCE):
                await self._ended.wait()
        closing = self._loop.run_in_executor(None, close_port, self._port)
        await asyncio.wait([closing], timeout=CLOSE_PATIENCE)


def _ioctl(fd: int, request: int) -> None:
    import fcntl

    fcntl.ioctl(fd, request)


class SerialSource(Returning):
    """A serial port by its settings; unplugged and plugged in again it goes on."""

    def __init__(self, settings: SerialSettings, backoff: Backoff | None = None) -> None:
        super().__init__(backoff)
        self._settings = settings
        self._before: Identity | None = None

    async def _connect(self) -> SerialConnection:
        port = await open_off_loop(self._open, close_port)
        return await SerialConnection.over(port, self._deliver, self._lost.set)

    def _open(self) -> serial.Serial:
        now = look(self._settings.path, self._before)  # a pty may play the port, and its number another one's console
        port = open_port(self._settings)
        self._before = now
        return port

    async def send_break(self, seconds: float) -> None:
        """Send a break: a Linux far end takes it for SysRq.

        :raises SourceError: the port is gone, or cannot.
        """
        if not isinstance(self._connection, SerialConnection):
            raise SourceError(f"cannot send a break: {self._settings.path} is gone")
        await self._connection.send_break(seconds)
