# SPDX-License-Identifier: Apache-2.0
"""The Xen config generator by value: what a container asked for, what xl.cfg says of it, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from backends.xen import generator, xlcfg
from backends.xen import plan as planner
from backends.xen import wishes as own
from backends.xen.machine import HostFacts, Pool
from backends.xen.settings import Xen
from backends.xen.states import parse_pools
from runphi_async.errors import PlanError
from runphi_async.host.nic import Link
from runphi_async.partition.channels import Channel
from runphi_async.partition.image import ImageFacts, ImageFormat
from runphi_async.partition.spec import GuestKind, GuestSpec, MountSpec, ProcessSpec
from runphi_async.units import MIB
from tests.unit.wishkit import annotated
from tests.unit.xenkit import FACTS, IMAGE

if TYPE_CHECKING:
    from backends.xen.plan import XenPlan

CONFIG = Xen(bridges=("xenbr0",), devices=("/srv", "0000:03:00.0", "/dev/vg/data", "one"))


def plan(facts: HostFacts = FACTS, /, **wishes: str) -> XenPlan:
    """Plan the demo inmate with annotations ``org.runphi.xen.*``; those with two underscores are the common ones."""
    common = {name[2:]: value for name, value in wishes.items() if name[:2] == "__"}
    asked = annotated({name: value for name, value in wishes.items() if name[:2] != "__"}, **common)
    return planned(GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs="/r", inmate="/r/i", **asked), facts)


def planned(spec: GuestSpec, facts: HostFacts = FACTS, *, pv_note: bool = True) -> XenPlan:
    return generator.plan(spec, own.read(spec.own), facts, CONFIG, pv_note=pv_note)


def limited(quota: int, **wishes: str) -> XenPlan:
    spec = GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs="/r", inmate="/r/i", **annotated(wishes),
                     cpu_quota=quota, cpu_period=100_000)  # fmt: skip
    return planned(spec)


def config(found: XenPlan) -> list[str]:
    return planner.configuration(found, "/run/c1", "879c44ef-2494-4d63-ad47-ec714d04f38c").decode().splitlines()


def refusal(facts: HostFacts = FACTS, /, **wishes: str) -> str:
    with pytest.raises(PlanError) as caught:
        plan(facts, **wishes)
    return f"{caught.value.msg}; {caught.value.hint or ''}"


def test_a_plain_guest() -> None:
    assert config(plan()) == [
        'name = "c1.879c44ef"',
        'uuid = "879c44ef-2494-4d63-ad47-ec714d04f38c"',
        'type = "pvh"',
        'kernel = "/run/c1/image"',
        "memory = 32",
        "maxmem = 32",
        "vcpus = 1",
        "vif = []",
        'on_poweroff = "preserve"',
        'on_reboot = "preserve"',
        'on_crash = "preserve"',
    ]


@pytest.mark.parametrize(
    ("wishes", "lines"),
    [
        ({"weight": "512", "cap": "50"}, ["cpu_weight = 512", "cap = 50"]),
        ({"cap": "0"}, ["cap = 0"]),
        ({"pool": "still"}, ['pool = "still"']),
        ({"pool": "timed", "period": "20000", "budget": "5000"}, ["period = 20000", "budget = 5000"]),
        ({"vif": "bridge=xenbr0,mac=00:16:3e:00:00:01"}, ['vif = [ "bridge=xenbr0,mac=00:16:3e:00:00:01" ]']),
        (
            {"vif": "bridge=xenbr0; bridge=xenbr0,rate=10Mb/s"},
            ['vif = [ "bridge=xenbr0", "bridge=xenbr0,rate=10Mb/s" ]'],
        ),
        ({"disk": "/srv/a.img,raw,xvdb,rw"}, ['disk = [ "/srv/a.img,raw,xvdb,rw" ]']),
        ({"disk": "phy:/dev/vg/data,xvdb,w"}, ['disk = [ "/dev/vg/data,raw,xvdb,w" ]']),
        (
            {"p9": "tag=share,path=/srv/share,security_model=none"},
            ['p9 = [ "tag=share,path=/srv/share,security_model=none" ]'],
        ),
        ({"pci": "0000:03:00.0"}, ['pci = [ "0000:03:00.0" ]']),
        ({"__machine": "pv"}, ['type = "pv"']),
        (
            {"channel": "telemetry; events"},
            [
                (
                    'channel = [ "connection=pty,name=runphi-first", '
                    '"connection=socket,name=telemetry,path=/run/c1/channel-telemetry.sock", '
                    '"connection=socket,name=events,path=/run/c1/channel-events.sock" ]'
                )
            ],
        ),
    ],
)
def test_what_is_asked_for_is_generated(wishes: dict[str, str], lines: list[str]) -> None:
    written = config(plan(**wishes))
    assert [line for line in lines if line not in written] == []


def test_every_key_is_one_we_know() -> None:
    """xl takes a key that it does not know without a word."""
    found = plan(pool="timed", period="20000", budget="5000", channel="a", vif="bridge=xenbr0")
    keys = [line.partition(" = ")[0] for line in config(found)]
    assert set(keys) <= set(xlcfg.KEYS)
    assert len(keys) == len(set(keys))


def test_a_channel_is_a_named_stream() -> None:
    assert plan(channel="telemetry").channels == (Channel("telemetry", socket="channel-telemetry.sock"),)
    assert not plan(channel="telemetry").channels[0].made


@pytest.mark.parametrize(
    ("quota", "wishes", "keys"),
    [
        (50_000, {}, {"cap": 50}),
        (150_000, {}, {"cap": 150}),
        (500, {}, {"cap": 1}),
        (50_000, {"cap": "20"}, {"cap": 20}),
        (50_000, {"pool": "timed"}, {"period": 100_000, "budget": 50_000}),
        (150_000, {"pool": "timed"}, {"period": 100_000, "budget": 75_000}),
        (50_000, {"pool": "still"}, {}),
    ],
)
def test_the_containers_cpu_limit(quota: int, wishes: dict[str, str], keys: dict[str, int]) -> None:
    found = limited(quota, **wishes).keys
    assert {key: found[key] for key in ("cap", "period", "budget") if key in found} == keys


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"pool": "none"}, "there is none; there is: Pool-0, still, timed"),
        ({"pool": "still", "weight": "2"}, "cannot set cpu_weight: the scheduler null has no such parameter"),
        ({"pool": "timed", "cap": "50"}, "cannot set cap: the scheduler rtds has no such parameter"),
        ({"budget": "5000", "period": "9000"}, "cannot set period: the scheduler credit2 has no such parameter"),
        ({"pool": "timed", "budget": "5000"}, "RTDS needs both"),
        ({"pool": "timed", "budget": "5000", "period": "4000"}, "cannot give a budget of 5000 us in a period of 4000"),
        ({"pool": "timed", "budget": "5", "period": "4000"}, "not a number from 10 to 10000000"),
        ({"pool": "still", "__vcpus": "2"}, "gives each a CPU of its own, and it has CPU 3"),
        ({"weight": "0"}, "cannot set weight '0'"),
        ({"cap": "101"}, "cannot set cap '101'"),
        ({"vif": "bridge=br0"}, "the configuration allows no such bridge"),
        ({"vif": "mac=00:16:3e:00:00:01"}, "the configuration allows no such bridge"),
        ({"vif": "bridge=xenbr0,script=/tmp/x"}, "script is not one of"),
        ({"disk": "/etc/shadow,raw,xvdb,rw"}, "cannot use disk /etc/shadow"),
        ({"disk": "format=raw,vdev=xvdb,target=/etc/shadow"}, "cannot use disk /etc/shadow"),
        ({"disk": "/srv/a.img,qcow2,xvdb,rw"}, "cannot use disk qcow2:/srv/a.img"),
        ({"disk": "/srv/a.img,raw,xvdb,rw,script=/rootfs/x"}, "it says more than target, format, vdev, access"),
        ({"disk": "vdev=xvdb,script=/rootfs/x,target=/srv/a.img"}, "script is not one of target"),
        ({"disk": "vdev=xvdb,target=/srv/a.img,target=/etc/shadow"}, "it says target twice"),
        ({"disk": "/srv/../etc/shadow,raw,xvdb,rw"}, "/srv/../etc/shadow is not the plain name of a path"),
        ({"disk": "nbd:/srv/a.img,raw,xvdb,rw"}, "target cannot be 'nbd:/srv/a.img'"),
        ({"p9": "tag=a,path=/srv/share,path=/etc"}, "it says path twice"),
        ({"p9": "tag=a,path=/srv/share/../../etc"}, "is not the plain name of a path"),
        ({"vif": "bridge=xenbr0,bridge=br0"}, "it says bridge twice"),
        ({"vif": "bridge=xenbr0,ip=`id`"}, "ip cannot be '`id`'"),
        ({"p9": "tag=a,path=/etc"}, "cannot use directory /etc"),
        ({"p9": "tag=a"}, "it says no path="),
        ({"pci": "0000:04:00.0"}, "cannot use pci 0000:04:00.0"),
        ({"pci": "somewhere"}, "it is not written as xl.cfg has it"),
        ({"iomem": "zz,1"}, "it is not written as xl.cfg has it"),
        ({"channel": "a b"}, "'a b' is no name for a channel"),
        ({"channel": "serial"}, "'serial' is no name for a channel"),
        ({"channel": "a;a"}, "cannot make channel a: there is another one of that name"),
        ({"channel": ";".join("abcdefghi")}, "cannot give a guest 9 channels: 8 is the most"),
        ({"static_shm": "id=two,begin=0x40000000,size=0x1000,role=owner"}, "cannot use static shared memory two"),
        ({"static_shm": "id=one,begin=0x40000000,size=0x1000,role=owner"}, "this version of xl has no static_shm"),
        ({"wieght": "1"}, "cannot understand annotation org.runphi.xen.wieght"),
    ],
)
def test_what_cannot_be_had_is_refused(wishes: dict[str, str], said: str) -> None:
    assert said in refusal(**wishes)


def test_a_ring_in_shared_memory_is_refused_with_the_reason() -> None:
    spec = GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs="/r", inmate="/r/i", channels=(Channel("ring", 65536),))
    with pytest.raises(PlanError, match="cannot make channel ring: xl shares no memory of dom0 with a guest"):
        planned(spec)


@pytest.mark.parametrize(
    "wishes", [{"channel": "a"}, {"p9": "tag=a,path=/srv/share"}, {"__machine": "hvm"}]
)  # fmt: skip
def test_what_needs_a_device_model_says_so(wishes: dict[str, str]) -> None:
    assert "qemu-system-xen" in refusal(msgspec.structs.replace(FACTS, device_model=None), **wishes)


def test_memory_that_dom0_has_is_not_there_for_guests() -> None:
    said = refusal(msgspec.structs.replace(FACTS, free_memory=20 * MIB))
    assert "cannot give the guest 32 MiB: Xen has 20 MiB left; end other domains, or give dom0 less" in said


def kernel(image: ImageFacts, machine: str) -> XenPlan:
    spec = GuestSpec(id="c1", kind=GuestKind.KERNEL, rootfs="/r", kernel="/r/vmlinuz",
                     machine=machine)  # fmt: skip
    return planned(spec, msgspec.structs.replace(FACTS, image=image), pv_note=False)


def test_hvm_guests_are_kernels_that_a_device_model_can_start() -> None:
    assert 'type = "hvm"' in config(kernel(ImageFacts(ImageFormat.BZIMAGE, 9000, "x86_64"), "hvm"))
    with pytest.raises(PlanError, match="cannot run /r/vmlinuz as hvm: the device model starts bzImage kernels only"):
        kernel(IMAGE, "hvm")


def test_static_memory_where_xl_knows_it() -> None:
    region = "id=one,begin=0x40000000,size=0x1000,role=owner"
    found = plan(msgspec.structs.replace(FACTS, static_shm=True), static_shm=region)
    assert f'static_shm = [ "{region}" ]' in config(found)


def test_pins_lie_in_the_pool() -> None:
    spec = GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs="/r", inmate="/r/i", cpuset=(1, 3),
                     **annotated({"pool": "still"}))  # fmt: skip
    with pytest.raises(PlanError, match=r"cannot pin to CPU 1: cpupool still has CPU 3"):
        planned(spec)


def test_a_path_too_long_for_a_socket_is_refused_before_xl_is() -> None:
    with pytest.raises(PlanError, match="a socket's path is shorter than 108 bytes"):
        planner.configuration(plan(channel="a"), "/run/" + "x" * 90, "879c44ef-2494-4d63-ad47-ec714d04f38c")


def test_the_tables_of_pools() -> None:
    """As xl 4.17 prints them; a name may hold blanks."""
    table = """\
Name               CPUs   Sched     Active   Domain count
Pool-0               1   credit2       y          1
a pool               2    credit       y          0
empty                0      rtds       y          0
"""
    cpus = """\
Name               CPU list
Pool-0             0
a pool             2,3
empty
"""
    assert parse_pools(table, cpus) == (
        Pool("Pool-0", "credit2", (0,)),
        Pool("a pool", "credit", (2, 3)),
        Pool("empty", "rtds", ()),
    )


# Section: network

ETH0 = Link(2, "eth0", "aa:bb:cc:00:00:01", 1500)
ETH1 = Link(3, "net1", "aa:bb:cc:00:00:02", 9000)


def linux(facts: HostFacts, **more: Any) -> XenPlan:
    """Plan a Linux guest in a network namespace."""
    spec = GuestSpec(
        id="c1", kind=GuestKind.LINUX, rootfs="/r", kernel="/r/k", netns="/run/netns/x", memory_limit=256 * MIB,
        process=ProcessSpec(args=("/bin/sh",)), **more,
    )  # fmt: skip
    facts = msgspec.structs.replace(facts, initrd=b"070701")
    return planned(spec, facts)


def test_a_linux_guest_gets_an_interface_for_each_of_its_container() -> None:
    found = linux(msgspec.structs.replace(FACTS, links=(ETH0, ETH1)))
    assert (
        'vif = [ "mac=aa:bb:cc:00:00:01,type=vif,script=/bin/true", "mac=aa:bb:cc:00:00:02,type=vif,script=/bin/true" ]'
    ) in config(found)
    assert (found.netns, found.macs) == ("/run/netns/x", (ETH0.mac, ETH1.mac))
    assert b"net=1\0" in found.initrd
    assert "net: in the place of eth0, net1 of the container's network namespace" in found.explain


def test_a_card_on_a_bridge_excludes_the_containers_interfaces() -> None:
    facts = msgspec.structs.replace(FACTS, links=(ETH0,), no_vifs="not asked for")
    found = linux(facts, **annotated({"vif": "bridge=xenbr0"}))
    assert 'vif = [ "bridge=xenbr0" ]' in config(found)
    assert (found.netns, found.macs) == (None, ())
    assert b"net=1" not in found.initrd
    assert "net: bridge=xenbr0" in found.explain


def test_a_dom0_that_can_make_no_cards() -> None:
    facts = msgspec.structs.replace(FACTS, links=(ETH0,), no_vifs="modprobe xen-netback")
    with pytest.raises(PlanError, match="cannot give the guest a network: modprobe xen-netback"):
        linux(facts)
    for found in (linux(facts, **annotated(net="no")), linux(msgspec.structs.replace(facts, links=()))):
        assert "vif = []" in config(found)
        assert found.macs == ()


def test_the_engines_files_are_copied_into_the_ram_disk() -> None:
    mount = MountSpec("/etc/resolv.conf", "bind", "/run/x/resolv.conf", ("rbind", "ro"), source_is="file")
    facts = msgspec.structs.replace(FACTS, copies={"/run/x/resolv.conf": b"nameserver 10.0.0.1\n"})
    found = linux(facts, mounts=(mount, msgspec.structs.replace(mount, destination="/etc/mtab")))
    assert b"share/m0\0" in found.initrd
    assert b"nameserver 10.0.0.1\n" in found.initrd
    assert "mount: /etc/resolv.conf is a copy of /run/x/resolv.conf, read-only" in found.explain
    assert "mount: /etc/mtab is the image's, as the engine's cannot be shared" in found.explain
