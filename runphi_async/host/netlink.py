# SPDX-License-Identifier: Apache-2.0
"""A small rtnetlink: the handful of messages by which a guest is connected to its container's interfaces.

Own code in place of `ip` and `tc`, because it needs no program on the host, reads no printed text, and takes a
millisecond for the lot; pyroute2 would cost a quarter of a second and 33 MiB. Blocks, but never for long: the kernel
answers at once. Sources: rtnetlink(7), linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
RTM_GETADDR: Final = 22
RTM_GETROUTE: Final = 26
RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_NEWTFILTER: Final = 44
RTM_GETTFILTER: Final = 46

_REQUEST, _ACK, _DUMP, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_ERROR, _DONE = 2, 3
_NESTED: Final = 0x8000
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_LINK: Final = struct.Struct("=BxHiII")
_TC: Final = struct.Struct("=BBHiIII")

_IFF_UP: Final = 1
_INGRESS: Final = 0xFFFFFFF1
_INGRESS_HANDLE: Final = 0xFFFF0000
_ETH_P_ALL: Final = 3
_STOLEN: Final = 4
_EGRESS_REDIRECT: Final = 1
#: preference of our filters, by which they are known: no other program has a reason to choose it
PREFERENCE: Final = 0x7270


class Answer(NamedTuple):
    """One message of the kernel."""

    kind: int
    body: bytes


def attribute(kind: int, data: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return attributes by their kind; of several with one kind the last."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


class Netlink:
    """A netlink socket in the network namespace of the thread that made it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._sequence, 0)
        self._socket.send(header + body)

    def _messages(self) -> Iterator[Answer]:
        while True:
            data = self._socket.recv(1 << 17)
            while len(data) >= _HEADER.size:
                length, kind, _, sequence, _ = _HEADER.unpack_from(data)
                if sequence == self._sequence:
                    yield Answer(kind, data[_HEADER.size : length])
                data = data[(length + 3) & ~3 :]

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of everything of a kind.

        :raises OSError: the kernel refused.
        """
        self._send(kind, _DUMP, body)
        found = []
        for answer in self._messages():
            if answer.kind == _DONE:
                break
            if answer.kind == _ERROR:
                _raise(answer.body)
                break
            found.append(answer.body)
        return found

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """Ask for a change and wait until it is made.

        :raises OSError: the kernel refused.
        """
        self._send(kind, _ACK | flags, body)
        for answer in self._messages():
            if answer.kind == _ERROR:
                _raise(answer.body)
                return

    # Section: the messages

    def links(self) -> list[bytes]:
        """Return all interfaces."""
        return self.dump(RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0))

    def set_up(self, index: int, mtu: int) -> None:
        """Set an interface's MTU and bring it up."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
        self.change(RTM_NEWLINK, 0, body + attribute(4, struct.pack("=I", mtu)))

    def index(self, name: str) -> int | None:
        """Return an interface's index by its name; None: there is none."""
        for body in self.links():
            if attributes(body[_LINK.size :])[3].rstrip(b"\0").decode() == name:
                return int(_LINK.unpack_from(body)[2])
        return None

    def move(self, index: int, netns: int, name: str) -> None:
        """Move an interface into another namespace, under another name; it may get another index too."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
        target = attribute(28, struct.pack("=i", netns))
        self.change(RTM_NEWLINK, 0, body + target + attribute(3, name.encode() + b"\0"))

    def add_ingress(self, index: int) -> None:
        """Give an interface a place for filters on what comes in; there can be only one.

        :raises FileExistsError: it has one.
        """
        body = _TC.pack(socket.AF_UNSPEC, 0, 0, index, _INGRESS_HANDLE, _INGRESS, 0)
        self.change(RTM_NEWQDISC, _CREATE | _EXCL, body + attribute(1, b"ingress\0"))

    def remove_ingress(self, index: int) -> None:
        """Remove that place with its filters; none there, or no such interface, is fine."""
        body = _TC.pack(socket.AF_UNSPEC, 0, 0, index, _INGRESS_HANDLE, _INGRESS, 0)
        try:
            self.change(RTM_DELQDISC, 0, body)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise

    def redirect(self, index: int, to: int) -> None:
        """Send all that comes in at one interface out at another; the first one's own stack sees none of it."""
        mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, to)
        action = attribute(1, b"mirred\0") + attribute(2 | _NESTED, attribute(2, mirred))
        # u32, not matchall, which smaller kernels lack: one key that matches everything
        selector = struct.pack("=BBBxHHhhI", 1, 0, 1, 0, 0, 0, 0, 0) + bytes(16)
        options = attribute(5, selector) + attribute(7 | _NESTED, attribute(1 | _NESTED, action))
        info = PREFERENCE << 16 | socket.htons(_ETH_P_ALL)
        body = _TC.pack(socket.AF_UNSPEC, 0, 0, index, 0, _INGRESS_HANDLE, info)
        self.change(RTM_NEWTFILTER, _CREATE | _EXCL, body + attribute(1, b"u32\0") + attribute(2 | _NESTED, options))

    def redirects(self, index: int) -> list[int]:
        """Return where filters of ours send what comes in at an interface; 0: to one that is gone."""
        body = _TC.pack(socket.AF_UNSPEC, 0, 0, index, 0, _INGRESS_HANDLE, 0)
        found = []
        for answer in self.dump(RTM_GETTFILTER, body):
            if _TC.unpack_from(answer)[6] >> 16 != PREFERENCE:
                continue
            options = attributes(attributes(answer[_TC.size :]).get(2, b""))
            action = attributes(attributes(options.get(7, b"")).get(1, b""))
            parms = attributes(action.get(2, b"")).get(2, b"")
            if len(parms) >= 28:
                found.append(int.from_bytes(parms[24:28], sys.byteorder))
        return found


def _raise(body: bytes) -> None:
    (code,) = struct.unpack_from("=i", body)
    if code:
        raise OSError(-code, os.strerror(-code))
