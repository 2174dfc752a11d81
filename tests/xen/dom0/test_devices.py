# SPDX-License-Identifier: Apache-2.0
"""What annotations give a guest, on real Xen: extra channels, network cards, cpupools, shares of a CPU."""

from __future__ import annotations

import functools
import subprocess
from typing import TYPE_CHECKING

import pexpect
import pytest

from tests.system.place import RUNPHI, until
from tests.xen.dom0.kit import BRIDGE, made, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.place import Container
    from tests.xen.dom0.kit import XenPlace

pytestmark = pytest.mark.timeout(900)

#: Prints into both channels, then answers on the console what came through the first.
CHANNELS = """
exec 3<>/dev/hvc1 4>/dev/hvc2
stty -echo -icanon -opost <&3
stty -echo -icanon -opost <&4
echo 21.5 degrees >&3
echo started >&4
read -r line <&3
echo "the channel said $line"
echo "set to $line" >&3
read -r line
"""


def dom0(*argv: str) -> str:
    """Run a command of dom0's; return what it printed."""
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def logged(container: Container, channel: str, text: str) -> bool:
    """Whether the log of a channel holds just this."""
    return container.must("logs", "--channel", channel) == text


def test_a_pv_channel_is_a_named_stream(place: XenPlace) -> None:
    bundle = place.linux("channels", CHANNELS, annotations={"org.runphi.xen.channel": "telemetry; events"})
    container = place.create("channels", made=bundle)
    assert container.created == 0, container.error
    container.must("start")
    for name, line in (("telemetry", "21.5 degrees\n"), ("events", "started\n")):
        until(functools.partial(logged, container, name, line), f"the log of {name}")
    child = pexpect.spawn(
        RUNPHI, ["--root", str(place.root), "attach", "--channel", "telemetry", "channels"], env=place.env, timeout=240
    )
    child.expect_exact("21.5 degrees")
    child.send("20\n")
    container.expect(b"the channel said 20\n")
    child.expect_exact("set to 20")
    child.send("\x10\x11")
    child.expect(pexpect.EOF)
    child.close()
    container.type(b"\n")
    assert container.wait() == 0
    container.must("delete")


@pytest.fixture
def bridge() -> Iterator[str]:
    """A bridge of dom0's that the configuration allows."""
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
        yield BRIDGE
    finally:
        subprocess.run(["ip", "link", "delete", BRIDGE], check=True)


def test_a_network_card_on_a_bridge(place: XenPlace, bridge: str) -> None:
    annotations = {"org.runphi.xen.vif": f"bridge={bridge},mac=00:16:3e:00:00:05"}
    container = running(place, "carded", annotations=annotations)
    domid, _ = place.domain("carded")
    assert f"vif{domid}.0" in dom0("ip", "-o", "link", "show", "master", bridge)
    assert "00:16:3e:00:00:05" in dom0("xl", "network-list", str(domid))
    container.type(b"exit 6\r")
    assert container.wait() == 6
    assert dom0("ip", "-o", "link", "show", "master", bridge) == ""
    container.must("delete")


@pytest.fixture
def spare() -> Iterator[str]:
    """A CPU that is in no pool; it goes back to dom0's."""
    subprocess.run(["xl", "cpupool-cpu-remove", "Pool-0", "1"], check=True)
    try:
        assert "0,1" not in dom0("xl", "cpupool-list", "-c"), "xl says yes also when it failed"
        yield "1"
    finally:
        subprocess.run(["xl", "cpupool-cpu-add", "Pool-0", "1"], check=True)


@pytest.fixture
def pool(spare: str) -> Iterator[str]:
    """A cpupool with one CPU. Debian's Xen has credit and credit2, neither null nor rtds."""
    name = "quiet"
    argv = ["xl", "cpupool-create", f'name="{name}"', f'cpus=["{spare}"]', 'sched="credit2"']
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    try:
        yield name
    finally:
        subprocess.run(["xl", "cpupool-destroy", name], check=True)


def test_a_guest_in_a_cpupool_of_its_own(place: XenPlace, pool: str) -> None:
    annotations = {"org.runphi.xen.pool": pool, "org.runphi.xen.weight": "512", "org.runphi.xen.cap": "50"}
    refused = made(place, "budget", annotations={**annotations, "org.runphi.xen.budget": "5000"})
    assert refused.created == 1
    assert "cannot set budget: the scheduler credit2 has no such parameter" in refused.error
    container = running(place, "pooled", annotations=annotations)
    domid, _ = place.domain("pooled")
    assert dom0("xl", "list", "-c", str(domid)).splitlines()[1].split()[-1] == pool
    assert dom0("xl", "sched-credit2", "-d", str(domid)).splitlines()[-1].split()[-2:] == ["512", "50"]
    container.type(b"exit 8\r")
    assert container.wait() == 8
    container.must("delete")


def test_what_this_xen_has_not_is_refused_at_once(place: XenPlace) -> None:
    """xl 4.17 takes static_shm without a word and makes the guest without it."""
    region = "id=one,begin=0x40000000,size=0x1000,role=owner"
    shared = made(place, "shared", annotations={"org.runphi.xen.static-shm": region})
    assert "this version of xl has no static_shm" in shared.error
    absent = made(place, "absent", annotations={"org.runphi.xen.pci": "0000:00:1f.7"})
    assert absent.created == 1
    assert "cannot create the domain: Xen uses no IOMMU here, so no device can be handed over" in absent.error
    assert not any(place.has_domain(name) for name in ("shared", "absent"))
