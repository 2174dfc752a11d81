# SPDX-License-Identifier: Apache-2.0
"""The network of a Linux guest for real: namespaces, a bridge and veth pairs of the test's own, packets both ways."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from backends import configured
from backends.qemu.settings import Qemu
from tests.system.linuxkit import BOOT, Lan, await_init, joined, linux, linux_bundle, network_ramdisk
from tests.system.place import RUNPHI, ended, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.place import Container, Place

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(2 * BOOT + 180),
    pytest.mark.skipif(not os.path.exists(configured.load().of(Qemu).initrd), reason="needs bin/prepare-guest"),
]

#: what a guest is asked: it answers, serves a page, and ends when its stdin does
SERVE = """
mkdir -p /www; echo page of $(hostname) >/www/index.html; httpd -p 80 -h /www
echo mac $(cat /sys/class/net/eth0/address) mtu $(cat /sys/class/net/eth0/mtu)
ip -4 -o addr show dev eth0; ip -6 -o addr show dev eth0; ip route; ip link
echo serving; cat >/dev/null; exit 5
"""


@pytest.fixture
def lan(place: Place) -> Iterator[Lan]:
    # behind the place, so that it is gone before
    made = Lan(mtu=9000)
    yield made
    made.close()


def finish(container: Container) -> int:
    os.close(container.stdin)
    container.stdin = -1
    code = container.wait()
    container.must("delete")
    return code


def page(lan: Lan, number: int) -> str:
    answer = lan.run("nc", "-w", "30", f"10.77.0.{number}", "80", said="GET / HTTP/1.0\r\n\r\n")
    return answer.rpartition("\n\n")[2]


def test_a_guest_is_in_the_place_of_its_container(place: Place, lan: Lan) -> None:
    netns = lan.container(2)
    before = lan.shape(netns)
    c = linux(place, "c1", SERVE, hostname="box", linux=joined(netns))
    said = c.expect(b"serving\n").decode()
    assert f"mac {lan.mac(netns)} mtu 9000" in said
    assert "inet 10.77.0.2/24 brd 10.77.0.255" in said
    assert "inet6 fd00:77::2/64" in said
    assert "default via 10.77.0.1 dev eth0" in said
    assert "10.99.0.0/16 dev eth0" in said
    assert "rphi" not in said
    for size in ("56", "8900"):  # with the second no frame of an ordinary size would do
        assert "1 packets received" in lan.run("ping", "-c", "1", "-W", "30", "-s", size, "10.77.0.2")
    assert "1 packets received" in lan.run("ping6", "-c", "1", "-W", "30", "fd00:77::2")
    assert page(lan, 2) == "page of box\n"
    links, queues = lan.shape(netns)
    assert links == ["eth0", "lo", "rphi0"]
    assert {"eth0 ingress", "rphi0 ingress"} <= set(queues)
    plan = (c.record / "configc1.conf").read_text()
    assert "# net: in the place of eth0 of the container's network namespace" in plan
    assert finish(c) == 5
    assert lan.shape(netns) == before


def test_two_guests_on_one_bridge(place: Place, lan: Lan) -> None:
    first, second = lan.container(2), lan.container(3)
    before = lan.shape(first)
    server = linux(place, "c1", SERVE, hostname="one", linux=joined(first))
    asks = (
        r"ping -c 1 -W 30 10.77.0.2 >/dev/null && printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 30 10.77.0.2 80 | tail -n 1"
    )
    server.expect(b"serving\n")
    client = linux(place, "c2", asks, linux=joined(second))
    assert client.rest() == b"page of one\n"
    assert client.wait() == 0
    assert finish(server) == 5
    client.must("delete")
    assert lan.shape(first) == before


def test_nothing_stays_when_supervisor_and_qemu_are_killed(place: Place, lan: Lan) -> None:
    netns = lan.container(2)
    before = lan.shape(netns)
    c = linux(place, "c1", SERVE, hostname="box", linux=joined(netns))
    await_init(c)
    c.expect(b"serving\n")
    place.kill_supervisor()
    assert page(lan, 2) == "page of box\n"  # it never needed the supervisor
    os.kill(c.vmm(), signal.SIGKILL)
    assert c.wait() == 137
    assert lan.shape(netns) == before
    c.must("delete")
    # and when nobody is there to clean up at the time
    c = linux(place, "c2", SERVE, hostname="box", linux=joined(netns))
    await_init(c)
    c.expect(b"serving\n")
    guardian = place.guardian()
    os.kill(guardian, signal.SIGKILL)
    os.kill(place.pid(), signal.SIGKILL)
    vmm = c.vmm()
    os.kill(c.pid, signal.SIGKILL)
    os.kill(vmm, signal.SIGKILL)
    ended(vmm)
    until(lambda: "rphi0" not in lan.shape(netns)[0], "the end of the tap")
    assert lan.shape(netns) != before
    c.must("delete", "--force")  # the next supervisor
    assert lan.shape(netns) == before


def test_an_interface_plugged_in_between_create_and_start(place: Place, lan: Lan) -> None:
    made = linux_bundle(place, "c1", SERVE, hostname="late", linux={"namespaces": [{"type": "network"}]})
    c = place.create("c1", made=made)
    assert c.created == 0, c.error
    # as docker's hook does: the namespace of the init process gets a name, then an interface
    name = lan.adopt(c.pid)
    lan.plug(name, 4)
    place.kill_supervisor()
    c.must("start")
    assert f"mac {lan.mac(name)} mtu 9000" in c.expect(b"serving\n").decode()
    assert page(lan, 4) == "page of late\n"
    assert finish(c) == 5


@pytest.mark.parametrize(
    ("wrapper", "text"),
    [
        (
            ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"],
            "there is no /dev/net/tun",
        ),
        (["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"], "the supervisor lacks CAP_NET_ADMIN"),
    ],
    ids=["tun", "capability"],
)
def test_a_host_that_cannot_make_network_devices(place: Place, lan: Lan, wrapper: list[str], text: str) -> None:
    netns = lan.container(2)
    # whoever calls first starts the supervisor, which is where the client is
    subprocess.run([*wrapper, RUNPHI, "list"], env=place.env, check=True, stdout=subprocess.DEVNULL)
    c = place.create("c1", made=linux_bundle(place, "c1", "true", linux=joined(netns)))
    assert c.created == 1
    assert f"cannot give the guest a network: {text}" in c.error
    assert "org.runphi.net=no" in c.error
    # without anything to connect there is no need of one
    made = linux_bundle(place, "c2", "ls /sys/class/net", linux={"namespaces": [{"type": "network"}]})
    alone = place.create("c2", made=made)
    assert alone.created == 0, alone.error
    assert f"# net: none, as {text}" in (alone.record / "configc2.conf").read_text()


def test_a_kernel_with_its_own_ramdisk_sees_the_cable_of_its_container(place: Place, lan: Lan) -> None:
    """A guest that is not ours to set up gets the device, the container's MAC address, and sets itself up."""
    netns = lan.container(2)
    before = lan.shape(netns)
    script = b"""#!/bin/sh
/bin/busybox mkdir -p /proc /sys
/bin/busybox mount -t proc proc /proc; /bin/busybox mount -t sysfs sysfs /sys
for module in $(/bin/busybox cat /modules.order); do /bin/busybox insmod $module; done
/bin/busybox ip addr add 10.77.0.2/24 dev eth0; /bin/busybox ip link set eth0 up
echo mac $(/bin/busybox cat /sys/class/net/eth0/address)
/bin/busybox ping -c 1 -W 30 10.77.0.1; echo all is over; /bin/busybox sleep 1000000
"""
    bundle = place.bundle("c1", annotations={"org.runphi.net": "yes"}, linux=joined(netns))
    boot = bundle / "rootfs" / "boot"
    shutil.copy(configured.load().of(Qemu).kernel, boot / "vmlinux")
    (boot / "rd").write_bytes(network_ramdisk(script))
    settings = json.loads((bundle / "config.json").read_text())
    settings["process"]["env"] = ["KERNEL=/boot/vmlinux", "RAMDISK=/boot/rd"]
    (bundle / "config.json").write_text(json.dumps(settings))
    c = place.create("c1", made=bundle)
    assert c.created == 0, c.error
    c.must("start")
    said = c.expect(b"all is over").decode()
    assert f"mac {lan.mac(netns)}" in said
    assert "1 packets received" in said
    c.must("delete", "--force")
    assert lan.shape(netns) == before


def test_two_guests_cannot_have_one_interface(place: Place, lan: Lan) -> None:
    netns = lan.container(2)
    before = lan.shape(netns)
    one = linux(place, "c1", SERVE, linux=joined(netns))
    one.expect(b"serving\n")
    two = place.create("c2", made=linux_bundle(place, "c2", "true", linux=joined(netns)))
    assert two.created == 1
    assert "cannot connect the guest to eth0: another guest of the pod has its place" in two.error
    assert "org.runphi.net=no" in two.error
    annotations = {"org.runphi.net": "no"}
    made = linux_bundle(place, "c3", "ls /sys/class/net", linux=joined(netns), annotations=annotations)
    three = place.create("c3", made=made)
    assert three.created == 0, three.error
    three.must("start")
    assert three.rest() == b"lo\n"
    three.wait()
    assert finish(one) == 5
    assert lan.shape(netns) == before
