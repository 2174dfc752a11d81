# SPDX-License-Identifier: Apache-2.0
"""What a container asks for is decoded once: no text is left that a half or a backend would have to take apart."""

from __future__ import annotations

import ast
import typing
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from backends.xen.wishes import WISHES, XenWishes
from runphi_async.partition.request import ANNOTATIONS, PartitionRequest
from runphi_async.partition.spec import GuestSpec
from runphi_async.partition.wishes import NetWish, Wishes, common, net

ROOT: Final = Path(__file__).resolve().parents[2]

#: fields that are texts for good: names, paths, and words that only the guest understands
TEXTS: Final[dict[type[msgspec.Struct], set[str]]] = {
    Wishes: {
        *("arch", "machine", "console_port", "console"),  # names
        *("cmdline", "netconf"),  # the guest's own words
        "own",  # a backend's, which `OWNERS` shows decoded
    },
    PartitionRequest: {"source", "backend", "inmate", "kernel", "ramdisk", "dtb"},
    GuestSpec: {"id", "rootfs", "inmate", "kernel", "ramdisk", "dtb", "devices", "netns"},
    # xl's own words for devices, each matched against what it may be; and what a card or disk says, field by field
    XenWishes: {
        *("pool", "rootfs", "channel", "pci", "iomem", "irqs", "dtdev"),
        *("vif", "disk", "p9", "static_shm"),
    },
    NetWish: {"name"},
}
#: what makes values of the words of people
DECODERS: Final = {"parse_bool", "parse_int", "parse_numbers", "parse_size", "whole", "whole_or_hex", "hexadecimal"}
#: modules of the way from a request to a plan that may: each has words of its own, and everything else gets values
MAY_DECODE: Final = {
    "runphi_async/partition/request.py",  # annotations, environment, the image's /boot/config.json
    "runphi_async/partition/wishes.py",
    "runphi_async/partition/logplan.py",  # org.runphi.log
    "runphi_async/partition/channels.py",  # org.runphi.channel.*
    "runphi_async/partition/guest.py",  # config.json's cpuset, a text by the specification
    "runphi_async/partition/mountoptions.py",  # options of a mount, texts by the specification
    "runphi_async/partition/mounts.py",
    "backends/xen/wishes.py",  # org.runphi.xen.*
}
#: modules that read other texts than a request's: the hypervisor's, the guest's, the kernel's, a file's
OTHERS_WORDS: Final = {
    "backends/guest/initchannel.py",
    "backends/jailhouse/marks.py",
    "backends/jailhouse/sysfs.py",
    "backends/qemu/virtiofs.py",
    "backends/xen/examine.py",
    "backends/xen/states.py",
    "backends/xen/words.py",
    "backends/xen/xlcfg.py",
}


def own(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the fields that a type has beside those of the wishes."""
    hints = typing.get_type_hints(kind)
    inherited = set(Wishes.__struct_fields__) if kind is not Wishes else set()
    return {name: hints[name] for name in kind.__struct_fields__ if name not in inherited}


def is_text(kind: Any) -> bool:
    return kind is str or any(is_text(part) for part in typing.get_args(kind))


@pytest.mark.parametrize("kind", TEXTS, ids=lambda kind: kind.__name__)
def test_no_field_is_a_text_that_somebody_would_have_to_understand(kind: type[msgspec.Struct]) -> None:
    assert {name for name, hint in own(kind).items() if is_text(hint)} == TEXTS[kind]


def test_every_annotation_is_a_field() -> None:
    fields = set(PartitionRequest.__struct_fields__) | {"linux"}  # which is the kind
    assert {name.replace("-", "_") for name in ANNOTATIONS} <= fields
    assert {name.replace("-", "_") for name in WISHES} == set(XenWishes.__struct_fields__)


def test_a_guest_has_all_wishes_of_its_request() -> None:
    for kind in (PartitionRequest, GuestSpec):
        assert set(Wishes.__struct_fields__) <= set(kind.__struct_fields__)
    assert set(common(Wishes())) == set(Wishes.__struct_fields__)


def decoders(source: str) -> set[str]:
    """Return which of the decoders a module uses, or hands on."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("runphi_async.units", "runphi_async.digits"):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {node.attr} if node.value.id in ("units", "digits") else set()
    return found & DECODERS


def planning() -> dict[str, str]:
    paths = [path for place in ("runphi_async/partition", "backends") for path in (ROOT / place).rglob("*.py")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def test_nobody_else_takes_words_apart() -> None:
    """A half or a backend that does is handed a text where it should have been handed a value."""
    found = {name for name, source in planning().items() if decoders(source)}
    assert found - OTHERS_WORDS <= MAY_DECODE


def reads_annotations(source: str) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == "annotations" for node in ast.walk(ast.parse(source)))


def test_no_half_reads_annotations() -> None:
    """They end where wishes are made; what else reads them has the container's, or an image's, in its hands."""
    reading = {Path(name).stem for name, source in planning().items() if reads_annotations(source)}
    assert reading == {"origin", "request"}


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("yes", NetWish(True)),
        ("0", NetWish(False)),
        ("none", NetWish(False, "none")),
        ("None ", NetWish(False, "None")),
        (" net0", NetWish(True, "net0")),
    ],
)
def test_networks(text: str, wish: NetWish) -> None:
    assert net(text) == wish
    assert net(text, annotated=True) == msgspec.structs.replace(wish, annotated=True)
