# SPDX-License-Identifier: Apache-2.0
"""The network of a Linux guest on real Xen: a bridge and a veth pair of the test's own in dom0, packets both ways."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.system.linuxkit import Lan, joined
from tests.system.place import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.xen.dom0.kit import XenPlace

pytestmark = pytest.mark.timeout(900)

SERVE = """
b() { /bin/busybox "$@"; }
b mkdir /www; echo page of the guest >/www/index.html; b httpd -p 80 -h /www
echo mac $(cat /sys/class/net/eth0/address) mtu $(cat /sys/class/net/eth0/mtu)
b ip -4 -o addr show dev eth0; b ip -6 -o addr show dev eth0; b ip route; b ip link; cat /etc/resolv.conf
b ping -c 1 -W 60 10.77.0.1
echo serving; cat >/dev/null; exit 5
"""


@pytest.fixture
def lan(place: XenPlace) -> Iterator[Lan]:
    made = Lan(mtu=9000)
    yield made
    made.close()


def page(lan: Lan) -> str:
    answer = lan.run("nc", "-w", "50", "10.77.0.2", "80", said="GET / HTTP/1.0\r\n\r\n")
    return answer.rpartition("\n\n")[2]


def test_a_guest_is_in_the_place_of_its_container(place: XenPlace, lan: Lan, tmp_path: Path) -> None:
    netns = lan.container(2)
    before = lan.shape(netns)
    (tmp_path / "resolv.conf").write_text("nameserver 10.77.0.1\n")
    mount = {
        "destination": "/etc/resolv.conf", "type": "bind", "source": str(tmp_path / "resolv.conf"), "options": ["rbind"]
    }  # fmt: skip
    made = place.linux("networked", SERVE, mounts=[mount], namespaces=joined(netns)["namespaces"])
    container = place.create("networked", made=made)
    assert container.created == 0, container.error
    domid, _ = place.domain("networked")
    container.must("start")
    said = container.expect(b"serving\n").decode()
    assert f"mac {lan.mac(netns)} mtu 9000" in said
    assert "inet 10.77.0.2/24 brd 10.77.0.255" in said
    assert "inet6 fd00:77::2/64" in said
    assert "default via 10.77.0.1 dev eth0" in said
    assert "nameserver 10.77.0.1" in said
    assert "1 packets received" in said
    for size in ("56", "8900"):  # with the second no frame of an ordinary size would do
        assert "1 packets received" in lan.run("ping", "-c", "1", "-W", "50", "-s", size, "10.77.0.2")
    assert page(lan) == "page of the guest\n"
    links, queues = lan.shape(netns)
    assert links == ["eth0", "lo", f"rphi{domid}.0"]
    assert {"eth0 ingress", f"rphi{domid}.0 ingress"} <= set(queues)
    state = subprocess.run(
        ["xenstore-read", f"/local/domain/0/backend/vif/{domid}/0/state"], capture_output=True, text=True, check=True
    ).stdout
    assert state == "4\n", "connected, as Xen sees it"
    place.kill_supervisor()
    assert page(lan) == "page of the guest\n"  # it never needed the supervisor
    subprocess.run(["xl", "destroy", str(domid)], check=True)
    assert container.wait() == 137
    until(lambda: lan.shape(netns) == before, "the end of link and filter")
    container.must("delete")
