# SPDX-License-Identifier: Apache-2.0
"""The interfaces of a network namespace, and how a guest takes their place.

An engine gives a container a namespace with interfaces in it, such as ``eth0`` with addresses and routes. A guest has
an interface of its own, whose other end on the host is a tap device in that namespace. What comes in at ``eth0`` leaves
at the tap and the other way round (two filters of tc), so the guest is in ``eth0``'s place: it gets the same MAC
address, MTU, addresses and routes, and the engine sees nothing but the container it knows.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from runphi_async.errors import BackendError
from runphi_async.host.netlink import Netlink, attributes

if TYPE_CHECKING:
    from collections.abc import Collection

TUN: Final = "/dev/net/tun"
#: name of our taps; the kernel fills the number in
TAP_NAME: Final = "rphi%d"
#: beginning of the names of all guests' ends on the host
TAP_PREFIX: Final = "rphi"
_TUNSETIFF: Final = 0x400454CA
_TAP_FLAGS: Final = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
_NO_TUN: Final = {
    errno.ENOENT: f"there is no {TUN}: modprobe tun",
    errno.ENODEV: f"the kernel has no driver for {TUN}: modprobe tun",
}
_SHUT: Final = f"{TUN} may not be opened"
_NO_RIGHT: Final = "the supervisor lacks CAP_NET_ADMIN"
_CAP_NET_ADMIN: Final = 12
_ARPHRD_ETHER: Final = 1
#: kinds of interfaces that connect others and are nobody's way out
_INNER: Final = (b"bridge", b"ifb", b"bond", b"team")
_SCOPE_LINK: Final = 253
_MAIN: Final = 254
_UNICAST: Final = 1
#: routes the guest's kernel makes by itself: those of its addresses, and what a router advertises
_BY_ITSELF: Final = (2, 9)
#: the address was in use before: no need to look for duplicates once more
_NODAD: Final = 0x02
#: what an address's flags say of its state and not of what is wanted
_STATE_FLAGS: Final = 0x01 | 0x08 | 0x20 | 0x40 | 0x80  # secondary, dadfailed, deprecated, tentative, permanent
_ROUTE_FLAGS: Final = 0x4  # onlink


class Link(msgspec.Struct, frozen=True):
    """One interface."""

    index: int
    name: str
    mac: str
    mtu: int


class Tap(msgspec.Struct, frozen=True):
    """The host's end of a guest's interface; ``mac`` is the one the VMM gave the guest's end.

    It is a tap, or on Xen the back end of the guest's network card.
    """

    name: str
    #: unlike the name, not given to another soon
    index: int
    mac: str


def open_tap() -> tuple[int, str]:
    """Make a tap in this thread's network namespace; it is gone when nobody holds the descriptor any more.

    :raises BackendError: it cannot be made, and how to mend that.
    """
    try:
        fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        # not the system's words: podman reads a missing command or denied permission out of them
        raise BackendError(f"cannot make the guest's network device: {_NO_TUN.get(exc.errno or 0, _SHUT)}") from exc
    request = bytearray(struct.pack("=16sH22x", TAP_NAME.encode(), _TAP_FLAGS))
    try:
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as exc:
        os.close(fd)
        said = _NO_RIGHT if exc.errno == errno.EPERM else (exc.strerror or str(exc)).lower()
        raise BackendError(f"cannot make the guest's network device: {said}") from exc
    name = request[:16].partition(b"\0")[0].decode()
    quieten(name)
    return fd, name


def obstacle() -> str:
    """Return why no tap can be made here, "" when one can."""
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return _NO_TUN.get(exc.errno or 0, _SHUT)
    with open("/proc/self/status") as file:
        capabilities = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    return "" if capabilities >> _CAP_NET_ADMIN & 1 else _NO_RIGHT


def quieten(name: str) -> None:
    """Keep the host's IPv6 from speaking at the tap: the guest would take it for a neighbour."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
            file.write("1")
    except OSError:
        pass  # no IPv6 here, or /proc/sys is read-only: some needless packets, no harm


def links(netlink: Netlink) -> list[Link]:
    """Return the interfaces a guest can take the place of, in the order of their making."""
    found = []
    for body in netlink.links():
        _, kind, index, _, _ = struct.unpack_from("=BxHiII", body)
        said = attributes(body[16:])
        name = said[3].rstrip(b"\0").decode()
        inner = attributes(said.get(18, b"")).get(1, b"").rstrip(b"\0") in _INNER
        if kind == _ARPHRD_ETHER and not inner and 10 not in said and not name.startswith(TAP_PREFIX):
            found.append(Link(index, name, said[1].hex(":"), int.from_bytes(said[4], sys.byteorder)))
    return sorted(found, key=lambda link: link.index)


def taps(netlink: Netlink) -> dict[int, str]:
    """Return index and name of each guest's tap in the namespace."""
    found = {}
    for body in netlink.links():
        name = attributes(body[16:])[3].rstrip(b"\0").decode()
        if name.startswith(TAP_PREFIX):
            found[struct.unpack_from("=i", body, 4)[0]] = name
    return found


def taken(netlink: Netlink, link: Link) -> bool:
    """Whether another living guest has the place of an interface."""
    return not taps(netlink).keys().isdisjoint(netlink.redirects(link.index))


def connect(netlink: Netlink, link: Link, tap: int) -> None:
    """Put a tap into the place of an interface.

    :param tap: the tap's index.
    :raises BackendError: somebody else filters there already.
    """
    targets = netlink.redirects(link.index)
    if targets and not (taps(netlink).keys() - {tap}) & set(targets):
        netlink.remove_ingress(link.index)  # we died while we did this, or a guest did and nobody cleaned up
    netlink.set_up(tap, link.mtu)
    try:
        netlink.add_ingress(link.index)
    except FileExistsError:
        who = "another guest of the pod has its place" if targets else "another program filters what comes in there"
        raise BackendError(
            f"cannot connect the guest to {link.name}: {who}", "one of them must do without: org.runphi.net=no"
        ) from None
    netlink.redirect(link.index, tap)
    netlink.remove_ingress(tap)
    netlink.add_ingress(tap)
    netlink.redirect(tap, link.index)


def disconnect(netlink: Netlink, names: Collection[str], ours: Collection[int]) -> None:
    """Undo :func:`connect` where it was done; a tap that is left goes with whoever holds it.

    :param names: the interfaces that may have been connected.
    :param ours: indices of the guest's taps.
    """
    others = taps(netlink).keys() - set(ours)
    for link in links(netlink):
        targets = netlink.redirects(link.index) if link.name in names else []
        if targets and others.isdisjoint(targets):
            netlink.remove_ingress(link.index)


def describe(netlink: Netlink, link: Link, tap: Tap) -> list[str]:
    """Return what a guest must know to be in an interface's place: lines for its init (backends/guest/init/net.c)."""
    lines = [f"nic {tap.mac} {link.mac} {link.mtu} {link.name}"]
    lines += _addresses(netlink, link)
    lines += _routes(netlink, link)
    return lines


def _addresses(netlink: Netlink, link: Link) -> list[str]:
    lines = []
    for body in netlink.dump(22, struct.pack("=BBBBI", socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, length, flags, scope, index = struct.unpack_from("=BBBBI", body)
        if index != link.index or (family == socket.AF_INET6 and scope == _SCOPE_LINK):
            continue  # a link-local one follows from the MAC address
        said = attributes(body[8:])
        if 8 in said:
            flags = int.from_bytes(said[8], sys.byteorder)
        flags = flags & ~_STATE_FLAGS | (_NODAD if family == socket.AF_INET6 else 0)
        address = ipaddress.ip_address(said.get(2, said[1]))
        broadcast = ipaddress.ip_address(said[4]) if 4 in said else "-"
        lines.append(f"addr {link.name} {address}/{length} {scope} {flags} {broadcast}")
    return lines


def _routes(netlink: Netlink, link: Link) -> list[str]:
    found = []
    for body in netlink.dump(26, struct.pack("=BBBBBBBBI", socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
        family, length, _, _, table, protocol, scope, kind, flags = struct.unpack_from("=BBBBBBBBI", body)
        said = attributes(body[12:])
        out = int.from_bytes(said.get(4, b""), sys.byteorder)
        if out != link.index or table != _MAIN or kind != _UNICAST or protocol in _BY_ITSELF:
            continue
        nowhere = bytes(4 if family == socket.AF_INET else 16)
        to = ipaddress.ip_address(said.get(1, nowhere))
        gateway, source = (ipaddress.ip_address(said[key]) if key in said else "-" for key in (5, 7))
        metric = int.from_bytes(said.get(6, b""), sys.byteorder)
        line = f"route {link.name} {to}/{length} {gateway} {source} {scope} {metric} {flags & _ROUTE_FLAGS}"
        found.append((5 in said, line))
    # a gateway must be reachable when its route is made
    return [line for _, line in sorted(found)]
