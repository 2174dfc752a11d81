# SPDX-License-Identifier: Apache-2.0
"""One command line of one thin client, as the supervisor sees it: what was asked, and how to answer.

The socket is read for as long as the call lasts, whatever the verb does meanwhile: one that follows or streams learns
at once when its client has left.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Final

import anyio

from runphi_async import digits, wire
from runphi_async.errors import RunphiError
from runphi_async.wire.incoming import Incoming
from runphi_async.wire.outgoing import ClientGone, Outgoing

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Largest request: an argv and a few variables. The kernel's own limit for an argument is 128 KiB.
REQUEST_MAX: Final = 1 << 20
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h
#: The most that getsockopt of Python asks for: 256 groups.
_GROUPS_ROOM: Final = 1024
#: Seconds a client has to say what it wants.
PATIENCE: Final = 30.0


def _groups(sock: socket.socket) -> set[int]:
    """Return the groups of a connected client as the kernel knew them when it connected. Source: unix(7)."""
    _, _, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_ROOM)
    except OSError:  # more of them than anybody has
        return {gid}
    return {gid, *(group for (group,) in struct.iter_unpack("I", data))}


def _text(field: bytes) -> str:
    """Return a word of a command line; no kernel gives a process one with a NUL in it."""
    if b"\0" in field:
        raise ValueError("a word holds a NUL character")
    return os.fsdecode(field)


class Call:
    """A connected client; owns the socket and the three descriptors it sent.

    :param group: members of this group may call, too; -1: nobody else may.
    :ivar restricted: it is only by its group that the client may call.
    """

    def __init__(self, sock: socket.socket, group: int = -1) -> None:
        self._sock = sock
        self.restricted = False
        self._group = group
        self.fds: list[int] = []
        self.argv: list[str] = []
        self.cwd = "/"
        self.env: dict[str, str] = {}
        self.pid = 0
        self.uid = -1
        #: set when the client has closed its end
        self.gone = anyio.Event()
        self.outgoing = Outgoing(sock, self.gone.set)
        self._incoming = Incoming(sock, self.gone.set)
        self._rest = b""

    async def receive(self) -> None:
        """Read the request.

        :raises ClientGone: it made no sense or did not come.
        """
        self.pid, self.uid, _ = struct.unpack("iII", self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if self.uid not in (0, os.geteuid()):
            if self._group < 0 or self._group not in _groups(self._sock):
                raise ClientGone(f"refused a client of user {self.uid}")
            self.restricted = True
        with anyio.fail_after(PATIENCE):
            await anyio.wait_readable(self._sock)
            data = self._first()
            if data[:4] != wire.MAGIC or len(self.fds) != 3:
                raise ClientGone("a client of another version called")
            while len(data) < 8:
                data += await self._more()
            length = int.from_bytes(data[4:8], "big")
            if length > REQUEST_MAX:
                raise ClientGone(f"a client sent {length} bytes at once")
            while len(data) < 8 + length:
                data += await self._more()
        self._rest = data[8 + length :]
        self._parse(data[8 : 8 + length])

    def _first(self) -> bytes:
        # Not socket.recv_fds: Python 3.11's forgets the flag, and the descriptors would be inherited by our children.
        room = socket.CMSG_LEN(3 * struct.calcsize("i"))  # CMSG_SPACE would round up to four
        data, ancillary, _, _ = self._sock.recvmsg(65536, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                usable = len(payload) // struct.calcsize("i") * struct.calcsize("i")
                self.fds += [fd for (fd,) in struct.iter_unpack("i", payload[:usable])]
        return data

    def _parse(self, body: bytes) -> None:
        try:
            cwd, env, argv = wire.unpack(body)
            self.cwd = _text(cwd)
            self.env = dict(_text(entry).split("=", 1) for entry in wire.unpack(env))
            self.argv = [_text(word) for word in wire.unpack(argv)]
        except ValueError as exc:
            raise ClientGone("a client sent a request that cannot be read") from exc

    async def _more(self) -> bytes:
        while True:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                await anyio.wait_readable(self._sock)
                continue
            except OSError as exc:
                raise ClientGone("the client has gone") from exc
            if not data:
                raise ClientGone("the client has gone")
            return data

    # Section: what the client says

    def listen(self) -> None:
        """Begin to take in what the client says; from here on ``gone`` tells when it leaves."""
        self._incoming.start(self._rest)
        self._rest = b""

    async def frame(self) -> tuple[bytes, bytes]:
        """Return the client's next frame.

        :raises ClientGone: there will be none.
        """
        frame = await self._incoming.frame()
        if frame is None:
            raise ClientGone("the client has gone")
        return frame

    # Section: what the client is told

    async def send(self, kind: bytes, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send one frame, with descriptors if given.

        :raises ClientGone: the client has gone, or does not take it.
        """
        await self.outgoing.send(wire.frame(kind, payload), fds)

    async def out(self, text: str | bytes) -> None:
        """Print on the client's stdout."""
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        for start in range(0, len(data), 1 << 19):
            await self.send(wire.OUT, data[start : start + (1 << 19)])

    async def error(self, text: str) -> None:
        """Print on the client's stderr."""
        await self.send(wire.ERR, text.encode("utf-8", "surrogateescape"))

    async def spawn(self, cwd: str, argv: Sequence[str], fds: Sequence[int]) -> int:
        """Let the client fork a process with exactly ``fds`` as 0, 1, …; return its pid. It waits for ``go``.

        :raises ClientGone: the client did not do it.
        :raises RunphiError: a word cannot be one.
        """
        fields = [os.fsencode(field) for field in (cwd, *argv)]
        if any(b"\0" in field for field in fields):  # nobody can be executed so: whoever let it come here did not look
            raise RunphiError("cannot start the init process: a word of its command line holds a NUL character")
        await self.send(wire.SPAWN, wire.pack(fields), fds)
        kind, payload = await self.frame()
        pid = digits.whole(payload, digits.PID_MAX) if kind == wire.PID else None
        if not pid:
            raise ClientGone("the client did not fork the init process")
        return pid

    async def go(self) -> None:
        """Let the process that ``spawn`` made begin."""
        await self.send(wire.GO)

    def path(self, name: str) -> str:
        """Return a path of the command line as an absolute one."""
        return os.path.normpath(os.path.join(self.cwd, name))

    def close_fds(self) -> None:
        """Let go of the client's stdin, stdout and stderr."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def close(self) -> None:
        """Hang up."""
        self.close_fds()
        self.outgoing.close()
        self._incoming.close()
        self._sock.close()
