# SPDX-License-Identifier: Apache-2.0
"""XenStore, the small tree by which Xen's tools, its guests and we tell each other what is going on.

A client of our own: what exists for Python reads in a thread or blocks. It speaks the wire protocol
(docs/misc/xenstore.txt of Xen) over xenstored's unix socket or, in a guest and where xenstored is a domain of its
own, over /dev/xen/xenbus. One connection serves one driver; requests and watches share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Where a xenstored is looked for, in this order.
PLACES: Final = ("/run/xenstored/socket", "/var/run/xenstored/socket", "/dev/xen/xenbus")
#: Seconds until an answer is given up; xenstored answers in milliseconds, also on a loaded machine.
PATIENCE: Final = 20.0
#: Longest payload of a message and longest path. Source: xs_wire.h.
PAYLOAD_MAX: Final = 4096
PATH_MAX: Final = 3072
_HEADER: Final = struct.Struct("<IIII")


class Op(IntEnum):
    """Kinds of messages that we use. Source: xs_wire.h."""

    DIRECTORY = 1
    READ = 2
    WATCH = 4
    UNWATCH = 5
    WRITE = 11
    RM = 13
    WATCH_EVENT = 15
    ERROR = 16


class XenStoreError(BackendError):
    """Raised when xenstored refuses a request or cannot be reached.

    :ivar code: its word for the reason, such as ``ENOENT``; "" when it was not xenstored that refused.
    """

    def __init__(self, msg: str, hint: str | None = None, code: str = "") -> None:
        super().__init__(msg, hint)
        self.code = code


class Message(NamedTuple):
    """One message as it is on the wire."""

    op: int
    request: int
    transaction: int
    payload: bytes


class Decoder:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes as they come; return the messages that are complete.

        :raises XenStoreError: these are no messages.
        """
        self._data += data
        found = []
        while len(self._data) >= _HEADER.size:
            op, request, transaction, size = _HEADER.unpack_from(self._data)
            if size > PAYLOAD_MAX:
                raise XenStoreError(f"cannot understand xenstored: a message of {size} bytes")
            end = _HEADER.size + size
            if len(self._data) < end:
                break
            found.append(Message(op, request, transaction, bytes(self._data[_HEADER.size : end])))
            del self._data[:end]
        return found


def encode(message: Message) -> bytes:
    """Return a message as it goes over the wire."""
    if len(message.payload) > PAYLOAD_MAX:
        raise XenStoreError(f"cannot ask xenstored: {len(message.payload)} bytes are more than a message holds")
    return _HEADER.pack(message.op, message.request, message.transaction, len(message.payload)) + message.payload


class Watch:
    """Paths that changed, as an async iterator; the first event of every path watched comes at once.

    A path that changes again before it was taken is told once. The iteration ends when the connection does.
    """

    def __init__(self, store: XenStore, token: str, paths: Sequence[str]) -> None:
        self._store = store
        self._token = token
        self._paths = paths
        self._news: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._over = False

    def changed(self, path: str) -> None:
        """Take an event; called by the connection."""
        self._news[path] = None
        self._wake.set()

    def end(self) -> None:
        """Nothing more will come; called by the connection."""
        self._over = True
        self._wake.set()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> str:
        while not self._news:
            if self._over:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        path = next(iter(self._news))
        del self._news[path]
        return path

    async def close(self) -> None:
        """Watch no more."""
        await self._store.unwatch(self._token, self._paths)


class XenStore:
    """A connection. ``connect`` makes one; all methods but ``close`` raise XenStoreError."""

    def __init__(self, fd: int, place: str) -> None:
        self._fd = fd
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._watches: dict[str, Watch] = {}
        self._out = bytearray()
        self._writing = False
        self._loop.add_reader(fd, self._readable)

    @classmethod
    async def connect(cls, places: Sequence[str] = PLACES) -> XenStore:
        """Connect to the first xenstored that is there."""
        problems = []
        for place in places:
            try:
                return cls(_open(place), place)
            except OSError as exc:
                problems.append(f"{place}: {exc.strerror}")
        raise XenStoreError(
            f"cannot reach xenstored: {'; '.join(problems)}", "start it: systemctl start xenstored, in dom0 as root"
        )

    # Section: requests

    async def read(self, path: str) -> bytes:
        """Return the value of a node."""
        return await self._ask(Op.READ, path, _path(path))

    async def find(self, path: str) -> bytes | None:
        """Return the value of a node, None when there is no such node."""
        try:
            return await self.read(path)
        except XenStoreError as exc:
            if exc.code != "ENOENT":
                raise
            return None

    async def write(self, path: str, value: bytes) -> None:
        """Set the value of a node; it and those above it are made if they are not there."""
        await self._ask(Op.WRITE, path, _path(path) + value)

    async def directory(self, path: str) -> list[str]:
        """Return the names of the nodes below a node."""
        names = await self._ask(Op.DIRECTORY, path, _path(path))
        return [name.decode("utf-8", "replace") for name in names.split(b"\0") if name]

    async def remove(self, path: str) -> None:
        """Remove a node and all below it."""
        await self._ask(Op.RM, path, _path(path))

    async def watch(self, *paths: str) -> Watch:
        """Watch nodes and all below them, or ``@releaseDomain`` and ``@introduceDomain``."""
        token = f"runphi-{next(self._numbers)}"
        watch = self._watches[token] = Watch(self, token, paths)
        for path in paths:
            await self._ask(Op.WATCH, path, _path(path) + token.encode() + b"\0")
        return watch

    async def unwatch(self, token: str, paths: Sequence[str]) -> None:
        """End a watch; events that are on their way are dropped."""
        watch = self._watches.pop(token, None)
        if watch is None:
            return
        watch.end()
        for path in paths:
            with contextlib.suppress(XenStoreError):
                await self._ask(Op.UNWATCH, path, _path(path) + token.encode() + b"\0")

    async def _ask(self, op: Op, path: str, payload: bytes) -> bytes:
        if self._fd < 0:
            raise XenStoreError(f"cannot ask xenstored for {path}: the connection is closed")
        number = next(self._numbers) & 0xFFFF_FFFF
        data = encode(Message(op, number, 0, payload))
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._asked[number] = answer
        try:
            self._send(data)
            async with asyncio.timeout(PATIENCE):
                message = await answer
        except TimeoutError as exc:
            raise XenStoreError(f"cannot ask xenstored for {path}: no answer in {PATIENCE:.0f} s") from exc
        finally:
            self._asked.pop(number, None)
        if message.op == Op.ERROR:
            code = message.payload.rstrip(b"\0").decode("ascii", "replace")
            raise XenStoreError(f"cannot {op.name.lower()} {path} in xenstore: {code}", code=code)
        return message.payload

    # Section: the connection

    def _send(self, data: bytes) -> None:
        self._out += data
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: os.write(self._fd, self._out)]
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._flush)
            return
        except OSError as exc:
            self._lost(exc.strerror or str(exc))
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 1 << 16)
            if not data:
                self._lost("it has ended")
                return
            for message in self._decoder.feed(data):
                self._take(message)
        except BlockingIOError:
            return
        except OSError as exc:
            self._lost(exc.strerror or str(exc))
        except XenStoreError as exc:
            self._lost(exc.msg)

    def _take(self, message: Message) -> None:
        if message.op == Op.WATCH_EVENT:
            path, _, token = message.payload.rstrip(b"\0").partition(b"\0")
            watch = self._watches.get(token.decode("utf-8", "replace"))
            if watch is not None:
                watch.changed(path.decode("utf-8", "replace"))
            return
        answer = self._asked.get(message.request)
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _lost(self, why: str) -> None:
        self.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(XenStoreError(f"cannot use xenstored at {self._place} any more: {why}"))

    @property
    def alive(self) -> bool:
        """Whether xenstored is still connected."""
        return self._fd >= 0

    def close(self) -> None:
        """Disconnect: xenstored forgets our watches, iterations over them end."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
            self._writing = False
        os.close(self._fd)
        self._fd = -1
        for watch in self._watches.values():
            watch.end()
        self._watches.clear()


def _open(place: str) -> int:
    """Open a socket or a device, non-blocking. Connecting to a listening unix socket does not wait."""
    if place.startswith("/dev/"):
        return os.open(place, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(place)
    except OSError:
        sock.close()
        raise
    return sock.detach()


def _path(path: str) -> bytes:
    data = path.encode()
    if b"\0" in data or len(data) > PATH_MAX:
        raise XenStoreError(f"cannot use {path[:60]!r} as a path in xenstore")
    return data + b"\0"
