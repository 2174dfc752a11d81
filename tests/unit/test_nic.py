# SPDX-License-Identifier: Apache-2.0
"""Taps and filters in real network namespaces, without a guest."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from runphi_async.errors import BackendError
from runphi_async.host import namespaces, nic
from runphi_async.host.netlink import Netlink
from runphi_async.host.nic import Link, Tap

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(bool(os.geteuid()) or bool(nic.obstacle()), reason="needs root and /dev/net/tun")


class Place:
    """A namespace with a pair of interfaces, one of them set up as a container's."""

    def __init__(self) -> None:
        self.netns = namespaces.new_network()
        self.netlink = namespaces.in_network(self.netns, Netlink)
        self.ip("link add eth0 address 02:00:00:00:00:07 type veth peer name far")
        self.ip("link set far up")
        self.ip("link set eth0 mtu 4000 up")
        self.ip("addr add 10.9.0.2/24 brd + dev eth0")
        self.ip("addr add fd00::2/64 dev eth0 nodad")
        self.ip("route add 10.8.0.0/16 via 10.9.0.9 metric 5")
        self.ip("route add default via 10.9.0.1 src 10.9.0.2")
        self.ip("route add 10.9.9.9/32 dev eth0 scope link")
        self.fds: list[int] = []

    def ip(self, words: str) -> None:
        path = f"/proc/{os.getpid()}/fd/{self.netns}"
        subprocess.run(["nsenter", f"--net={path}", "ip", *words.split()], check=True)

    def eth0(self) -> Link:
        return next(link for link in nic.links(self.netlink) if link.name == "eth0")

    def tap(self) -> int:
        before = set(nic.taps(self.netlink))
        fd, name = namespaces.in_network(self.netns, nic.open_tap)
        self.fds.append(fd)
        (index,) = set(nic.taps(self.netlink)) - before
        assert nic.taps(self.netlink)[index] == name
        return index

    def lose_taps(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
        assert not nic.taps(self.netlink)

    def close(self) -> None:
        self.lose_taps()
        self.netlink.close()
        os.close(self.netns)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


def test_only_the_thread_was_elsewhere() -> None:
    own = os.stat("/proc/thread-self/ns/net").st_ino
    netns = namespaces.new_network()
    try:
        assert not namespaces.is_ours(netns)
        inside = namespaces.in_network(netns, lambda: os.stat("/proc/thread-self/ns/net").st_ino)
        assert inside == os.fstat(netns).st_ino
        with pytest.raises(ZeroDivisionError):
            namespaces.in_network(netns, lambda: 1 // 0)
    finally:
        os.close(netns)
    assert os.stat("/proc/thread-self/ns/net").st_ino == own
    ours = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert namespaces.is_ours(ours)
    os.close(ours)


def test_interfaces(place: Place) -> None:
    assert place.eth0() == Link(place.eth0().index, "eth0", "02:00:00:00:00:07", 4000)
    assert sorted(link.name for link in nic.links(place.netlink)) == ["eth0", "far"]
    place.tap()
    place.ip("link add br0 type bridge")
    place.ip("link set far master br0")
    assert [link.name for link in nic.links(place.netlink)] == ["eth0"]


def test_what_the_guest_is_told(place: Place) -> None:
    lines = nic.describe(place.netlink, place.eth0(), Tap("rphi0", 9, "02:00:00:00:00:01"))
    assert lines == [
        "nic 02:00:00:00:00:01 02:00:00:00:00:07 4000 eth0",
        "addr eth0 10.9.0.2/24 0 0 10.9.0.255",
        "addr eth0 fd00::2/64 0 2 -",
        "route eth0 10.9.9.9/32 - - 253 0 0",
        "route eth0 0.0.0.0/0 10.9.0.1 10.9.0.2 0 0 0",
        "route eth0 10.8.0.0/16 10.9.0.9 - 0 5 0",
    ]


def test_connecting_and_its_undoing(place: Place) -> None:
    link, tap = place.eth0(), place.tap()
    assert not nic.taken(place.netlink, link)
    nic.connect(place.netlink, link, tap)
    assert nic.taken(place.netlink, link)
    assert place.netlink.redirects(link.index) == [tap]
    assert place.netlink.redirects(tap) == [link.index]
    nic.connect(place.netlink, link, tap)  # a supervisor died right behind it, and the next one starts the guest
    assert place.netlink.redirects(link.index) == [tap]
    nic.disconnect(place.netlink, ["eth0"], [tap])
    assert place.netlink.redirects(link.index) == []
    nic.disconnect(place.netlink, ["eth0"], [tap])
    place.netlink.add_ingress(link.index)  # the place for filters is free again


def test_a_guest_that_is_gone_leaves_its_place(place: Place) -> None:
    link, first = place.eth0(), place.tap()
    nic.connect(place.netlink, link, first)
    place.lose_taps()
    assert place.netlink.redirects(link.index) == [0]
    second = place.tap()
    nic.connect(place.netlink, link, second)
    assert place.netlink.redirects(link.index) == [second]
    # cleaning up behind the first, late, does not harm the second, although their names are the same
    nic.disconnect(place.netlink, ["eth0"], [first])
    assert place.netlink.redirects(link.index) == [second]


def test_who_has_the_place(place: Place) -> None:
    link = place.eth0()
    nic.connect(place.netlink, link, place.tap())
    with pytest.raises(BackendError, match="to eth0: another guest of the pod has its place"):
        nic.connect(place.netlink, link, place.tap())
    place.lose_taps()
    place.netlink.remove_ingress(link.index)
    place.netlink.add_ingress(link.index)
    with pytest.raises(BackendError, match="to eth0: another program filters what comes in there"):
        nic.connect(place.netlink, link, place.tap())


def test_moving_an_interface(place: Place) -> None:
    """It keeps its index where that is free; the name is another one in any case."""
    place.ip("link add vif7.0 type veth peer name other")
    other = namespaces.new_network()
    try:
        index = place.netlink.index("vif7.0")
        assert index is not None
        place.netlink.move(index, other, "rphi7.0")
        assert place.netlink.index("vif7.0") is None
        netlink = namespaces.in_network(other, Netlink)
        assert list(nic.taps(netlink).values()) == ["rphi7.0"]
        netlink.close()
    finally:
        os.close(other)
