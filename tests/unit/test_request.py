# SPDX-License-Identifier: Apache-2.0
"""Does a container ask for a partition, for which, and where do its paths end up?"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runphi_async import units
from runphi_async.errors import SpecError
from runphi_async.oci import spec as oci
from runphi_async.partition import bootconfig
from runphi_async.partition.guest import guest_spec, parse_cpuset
from runphi_async.partition.request import ANNOTATIONS, PartitionRequest, request
from runphi_async.partition.spec import GuestKind, ProcessSpec
from runphi_async.partition.wishes import NetWish
from tests.unit.wishkit import boot_config

if TYPE_CHECKING:
    from pathlib import Path

INMATE, LINUX, KERNEL = GuestKind.INMATE, GuestKind.LINUX, GuestKind.KERNEL


def make(env: tuple[str, ...] = (), annotations: dict[str, str] | None = None, **more: Any) -> oci.Spec:
    document = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["/x"], "env": list(env), "cwd": "/"},
        "annotations": annotations or {},
        **more,
    }
    return oci.from_bytes(json.dumps(document).encode())


def runphi(**settings: str) -> dict[str, str]:
    return {f"org.runphi.{name.replace('_', '-')}": value for name, value in settings.items()}


@pytest.mark.parametrize(
    ("env", "annotations", "boot", "kind", "source"),
    [
        ((), {}, None, None, None),
        (("PATH=/bin", "INMATE=", "LINUX=0"), {}, None, None, None),
        (("LINUX=",), {}, None, None, None),
        (("LINUX=false",), {}, {}, None, None),
        (("INMATE=/boot/a.elf",), {}, None, INMATE, "environment"),
        (("LINUX=1",), {}, None, LINUX, "environment"),
        (("LINUX=yes", "KERNEL=/k"), {}, None, LINUX, "environment"),
        (("KERNEL=/k", "RAMDISK=/r"), {}, None, KERNEL, "environment"),
        (("RAMDISK=/r",), {}, None, KERNEL, "environment"),
        (("INMATE=/a", "LINUX=1", "KERNEL=/k"), {}, None, INMATE, "environment"),
        ((), runphi(backend="qemu"), None, LINUX, "annotation"),
        ((), runphi(memory="64M"), None, LINUX, "annotation"),
        ((), runphi(linux="0"), None, None, None),
        ((), runphi(backend=""), None, None, None),
        (("LINUX=1",), runphi(inmate="/i"), None, INMATE, "annotation"),
        (("INMATE=/i",), runphi(vcpus="2"), None, INMATE, "environment"),
        (("INMATE=/i",), runphi(backend="runc"), None, None, None),
        ((), {}, {"inmate": "/boot/i.elf"}, INMATE, "/boot/config.json"),
        ((), {}, {"os_var": "zephyr", "inmate": "/boot/i.elf"}, INMATE, "/boot/config.json"),
        ((), {}, {"os_var": "linux"}, LINUX, "/boot/config.json"),
        ((), {}, {"os_var": "linux", "inmate": "/boot/Image", "ramdisk": "/r"}, KERNEL, "/boot/config.json"),
        ((), {}, {"kernel": "/k", "cpio": "/r"}, KERNEL, "/boot/config.json"),
        ((), {}, {"net": "no", "other": [1]}, None, None),
        (("LINUX=1",), {}, {"inmate": "/i"}, LINUX, "environment"),
        (("INMATE=/i",), {"io.kubernetes.cri.container-type": "sandbox"}, None, None, None),
        (("INMATE=/i",), {"io.kubernetes.cri.container-type": "container"}, None, INMATE, "environment"),
        ((), {"io.kubernetes.cri-o.ContainerType": "sandbox", **runphi(inmate="/i")}, None, None, None),
        ((), {"io.podman.annotations.infra": "true", **runphi(inmate="/i")}, None, None, None),
    ],
)
def test_who_asks(
    env: tuple[str, ...],
    annotations: dict[str, str],
    boot: dict[str, Any] | None,
    kind: GuestKind | None,
    source: str | None,
) -> None:
    found = request(make(env, annotations), boot_config(boot))
    if kind is None:
        assert found is None
    else:
        assert found is not None
        assert (found.kind, found.source) == (kind, source)


def test_no_process_asks_nothing() -> None:
    assert request(make(process=None)) is None


def test_details_come_from_annotations_and_the_deciding_layer_only() -> None:
    spec = make(
        ("INMATE=/env.elf",),
        runphi(cmdline="a=1", memory="64MiB", vcpus="2", arch="arm64", load_address="0x40200000", backend="qemu"),
    )
    found = request(spec, boot_config({"kernel": "/boot/k", "starting_vaddress": "0x1000"}))
    assert found == PartitionRequest(
        kind=INMATE,
        source="environment",
        backend="qemu",
        arch="aarch64",
        inmate="/env.elf",
        cmdline="a=1",
        load_address=0x4020_0000,
        memory=64 << 20,
        vcpus=2,
    )


def test_boot_config_of_the_original() -> None:
    raw = {
        "os_var": "linux",
        "inmate": "/boot/Image",
        "ramdisk": "/boot/rootfs.cpio.gz",
        "dtb": "/boot/a.dtb",
        "starting_vaddress": "0x1000",
        "net": "no",
        "netconf": "x",
        "rpu_req": True,
        "memory": 1024,
    }
    found = request(make(), boot_config(raw))
    assert found is not None
    assert (found.kernel, found.ramdisk, found.dtb) == ("/boot/Image", "/boot/rootfs.cpio.gz", "/boot/a.dtb")
    assert (found.inmate, found.load_address, found.net, found.rpu) == (None, 0x1000, NetWish(False), True)


@pytest.mark.parametrize(
    ("env", "annotations", "boot", "text"),
    [
        ((), runphi(inmat="/x"), None, r"org.runphi.inmat: .*did you mean org.runphi.inmate\?"),
        ((), runphi(load_adress="1"), None, r"did you mean org\.runphi\.load-address"),
        ((), runphi(zzzz="1"), None, r"known: org\.runphi\.backend"),
        ((), runphi(arch="sparc"), None, "org.runphi.arch: 'sparc' is not one of"),
        ((), runphi(vcpus="0"), None, "not between 1 and 255"),
        ((), runphi(memory="much"), None, "'much' is not a size"),
        ((), runphi(memory="0"), None, "a guest needs memory"),
        ((), runphi(load_address="-4"), None, "is negative"),
        (("INMATE=boot/x",), {}, None, "variable INMATE: 'boot/x' is not an absolute path; .*backend=runc"),
        (("LINUX=debian",), {}, None, "variable LINUX: 'debian' is neither yes nor no"),
        ((), {}, {"inmate": 5}, r"/boot/config.json of the image: \$.inmate: expected str, got int"),
        ((), {}, {"rpu_req": "yes"}, r"\$.rpu_req: expected bool, got str"),
        ((), {}, {"inmate": "host:/etc/shadow"}, "an image cannot name files of the host"),
        ((), {}, {"inmate": "x"}, "inmate in /boot/config.json: 'x' is not an absolute path"),
        ((), {}, {"os_var": "zephyr"}, "os_var 'zephyr' without inmate"),
        ((), {}, {"inmate": "/x", "starting_vaddress": "there"}, "'there' is not a number"),
    ],
)
def test_what_cannot_be_understood(
    env: tuple[str, ...], annotations: dict[str, str], boot: dict[str, Any] | None, text: str
) -> None:
    with pytest.raises(SpecError, match=text):
        request(make(env, annotations), boot_config(boot))


def test_boot_config_bytes() -> None:
    assert bootconfig.parse(b'{"inmate": "/i", "new": {}}').inmate == "/i"
    for bad in (b"", b"[]", b"{", b'{"inmate": 1}', b"\xff\xfe"):
        with pytest.raises(SpecError, match=r"cannot read /boot/config\.json of the image"):
            bootconfig.parse(bad)


def test_boot_config_is_looked_at_only_when_it_matters() -> None:
    looks: list[int] = []

    def looked(spec: oci.Spec) -> bool:
        looks.clear()
        request(spec, lambda: looks.append(1))
        return bool(looks)

    assert looked(make())
    assert looked(make(annotations=runphi(vcpus="1")))
    assert not looked(make(("INMATE=/i",)))
    assert not looked(make(annotations=runphi(backend="runc")))
    assert not looked(make(annotations={"io.kubernetes.cri.container-type": "sandbox"}))


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@given(st.dictionaries(st.sampled_from([*ANNOTATIONS]) | TEXT, TEXT, max_size=4), st.lists(TEXT))
def test_any_container_gets_an_answer_or_a_spec_error(annotations: dict[str, str], env: list[str]) -> None:
    message = "cannot "
    try:
        request(make(tuple(env), {f"org.runphi.{key}": value for key, value in annotations.items()}))
    except SpecError as exc:
        message = str(exc)
    assert message.startswith("cannot ")


# Section: paths


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    boot = tmp_path / "rootfs" / "boot"
    boot.mkdir(parents=True)
    (boot / "i.elf").write_bytes(b"x")
    (boot / "link").symlink_to("/boot/i.elf")
    (boot / "out").symlink_to("../../../../../../etc/hostname")
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "h.elf").write_bytes(b"h")
    (tmp_path / "host2").mkdir()
    (tmp_path / "host2" / "h.elf").write_bytes(b"h")
    return tmp_path


def resolve(bundle: Path, name: str, *host_paths: str) -> str | None:
    spec = make((f"INMATE={name}",))
    found = request(spec)
    assert found is not None
    return guest_spec(found, spec, "c1", str(bundle), SimpleNamespace(host_paths=host_paths)).inmate


def test_paths_stay_in_the_rootfs(bundle: Path) -> None:
    inside = str(bundle / "rootfs" / "boot" / "i.elf")
    for name in ("/boot/i.elf", "/boot/link", "/../../boot/i.elf", "/boot/../boot/i.elf"):
        assert resolve(bundle, name) == inside
    for name in ("/boot/out", "/boot/absent", "/boot"):
        with pytest.raises(SpecError, match=r"cannot"):
            resolve(bundle, name)


def test_host_files_need_leave(bundle: Path) -> None:
    host = str(bundle / "host")
    assert resolve(bundle, f"host:{host}/h.elf", host) == f"{host}/h.elf"
    assert resolve(bundle, f"host:{host}/h.elf", f"{host}/h.elf") == f"{host}/h.elf"
    for name, allowed in (
        (f"{host}/h.elf", ()),
        (f"{host}2/h.elf", (host,)),
        (f"{host}/../host2/h.elf", (host,)),
    ):
        with pytest.raises(SpecError, match="the configuration allows no such host file"):
            resolve(bundle, f"host:{name}", *allowed)
    (bundle / "host" / "sly").symlink_to("/etc/hostname")
    with pytest.raises(SpecError, match="allows no such host file"):
        resolve(bundle, f"host:{host}/sly", host)


def test_guest_spec_carries_everything(bundle: Path) -> None:
    spec = make(
        annotations=runphi(linux="1", vcpus="3", kernel="/boot/i.elf"),
        root={"path": "rootfs", "readonly": True},
        hostname="box",
        process={
            "args": ["sh"],
            "env": ["A=b"],
            "cwd": "/w",
            "terminal": True,
            "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 1, "gid": 2, "additionalGids": [3], "umask": 18},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        },
        linux={
            "resources": {
                "memory": {"limit": 1 << 28},
                "cpu": {"quota": 150000, "period": 100000, "cpus": "0-1"},
            }
        },
    )
    found = request(spec)
    assert found is not None
    guest = guest_spec(found, spec, "c1", str(bundle), SimpleNamespace(host_paths=()))
    assert guest.rootfs == str(bundle / "rootfs")
    assert guest.kernel == str(bundle / "rootfs/boot/i.elf")
    assert (guest.memory_limit, guest.cpu_quota, guest.cpu_period, guest.cpuset) == (
        1 << 28,
        150000,
        100000,
        (0, 1),
    )
    assert guest.readonly_root
    assert guest.vcpus == 3
    assert isinstance(guest.process, ProcessSpec)
    assert (guest.process.rows, guest.process.cols, guest.process.umask) == (24, 80, 18)
    assert (guest.process.additional_gids, guest.process.hostname) == ((3,), "box")


def test_no_limits_in_all_spellings(bundle: Path) -> None:
    spec = make(
        ("INMATE=/boot/i.elf",),
        linux={"resources": {"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 0}}},
    )
    found = request(spec)
    assert found is not None
    guest = guest_spec(found, spec, "c1", str(bundle), SimpleNamespace(host_paths=()))
    assert (guest.memory_limit, guest.cpu_quota, guest.cpu_period, guest.cpuset) == (None, None, None, ())


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", ()), ("3", (3,)), ("0-2,1,7", (0, 1, 2, 7)), (" 1 , 0 \n", (0, 1)), ("0,,1", (0, 1))],
)
def test_cpuset(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpuset(text) == cpus


@pytest.mark.parametrize("text", ["a", "1-", "-1", "2-1", "0-99999999999", "1-2-3"])
def test_bad_cpuset(text: str) -> None:
    with pytest.raises(SpecError, match=r"cannot read linux\.resources\.cpu\.cpus"):
        parse_cpuset(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("64k", 1 << 16),
        ("64M", 1 << 26),
        ("1Gi", 1 << 30),
        ("2 MiB", 2 << 20),
        ("1MB", 10**6),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1x", "1ii"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_size(text)


@pytest.mark.parametrize(("size", "text"), [(0, "0 bytes"), (1 << 20, "1 MiB"), (3 << 29, "1.5 GiB"), (2048, "2 KiB")])
def test_human(size: int, text: str) -> None:
    assert units.human(size) == text
