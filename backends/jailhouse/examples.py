# SPDX-License-Identifier: Apache-2.0
"""Plans of made-up guests, one or more for each shipped board: what docs/reference/boards.md shows.

``python -m backends.jailhouse.examples`` prints that part of the page, with ``picture`` behind it the map in
docs/images; tests keep both current.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backends.jailhouse import generator
from backends.jailhouse.desk import Facts
from runphi_async.board import drawing, loading
from runphi_async.board.claims import Held, Owner
from runphi_async.partition import conf
from runphi_async.partition.image import ImageFacts, ImageFormat, Segment
from runphi_async.partition.spec import GuestKind, GuestSpec, ProcessSpec
from runphi_async.partition.wishes import NetWish
from runphi_async.units import KIB, MIB

if TYPE_CHECKING:
    from backends.jailhouse.plan import JailhousePlan


class Example(NamedTuple):
    """A guest for a board."""

    title: str
    board: str
    image: ImageFacts
    spec: dict[str, Any]


_FLAT: Final = ImageFacts(ImageFormat.FLAT, 40 * KIB)
_ZEPHYR: Final = ImageFacts(
    ImageFormat.ELF, 300 * KIB, "aarch64", 64, 0x7000_0C34, (Segment(0x7000_0000, 0x7003_2000),)
)
_KERNEL: Final = ImageFacts(ImageFormat.ARM64_IMAGE, 9 * MIB, "aarch64")
_R5: Final = ImageFacts(ImageFormat.ELF, 90 * KIB, "arm", 32, 0, (Segment(0, 0x800), Segment(0x3ED0_0000, 0x3ED1_0000)))
_INMATE: Final = {"kind": GuestKind.INMATE}
_SIZES: Final = {
    "Image": 9 * MIB, "initrd.cpio": 2 * MIB, "board.dtb": 3000, "runphi/initrd": 700 * KIB, "rootfs": 4 * MIB,
}  # fmt: skip

EXAMPLES: Final = (
    Example(
        "A flat image linked for address 0, as Jailhouse's own demos are",
        "qemu-arm64",
        _FLAT,
        {**_INMATE, "id": "demo", "inmate": "demo.bin", "cmdline": "con-virtual=true"},
    ),
    Example(
        "A Zephyr image linked for 0x70000000, with a network and 4 MiB",
        "qemu-arm64",
        _ZEPHYR,
        {**_INMATE, "id": "zephyr", "inmate": "zephyr.elf", "net": NetWish(True), "memory_limit": 4 * MIB},
    ),
    Example(
        "A flat image linked for address 0, as Jailhouse's own demos are",
        "kria-kv260",
        _FLAT,
        {**_INMATE, "id": "kria-demo", "inmate": "demo.bin", "cmdline": "x=1"},
    ),
    Example(
        "A Zephyr image linked for 0x40000000, as Zephyr's board kv260_a53 is, with 16 MiB",
        "kria-kv260",
        ImageFacts(ImageFormat.ELF, 300 * KIB, "aarch64", 64, 0x4000_0C34, (Segment(0x4000_0000, 0x4003_2000),)),
        {**_INMATE, "id": "kria-zephyr", "inmate": "zephyr.elf", "memory_limit": 16 * MIB},
    ),
    Example(
        "An image for a Cortex-R5",
        "kria-kv260",
        _R5,
        {**_INMATE, "id": "motor", "inmate": "motor.elf", "rpu": True, "memory_limit": MIB},
    ),
    Example(
        "A flat image whose memory has a quarter of the cache",
        "kria-kv260",
        _FLAT,
        {**_INMATE, "id": "control", "inmate": "control.bin", "colors": (0, 1, 2, 3)},
    ),
    Example(
        "A flat image linked for address 0, as Jailhouse's own demos are",
        "zcu104",
        _FLAT,
        {**_INMATE, "id": "zcu-demo", "inmate": "demo.bin"},
    ),
    Example(
        "A Linux kernel with its RAM disk on two CPUs",
        "zcu104",
        _KERNEL,
        {
            "kind": GuestKind.KERNEL,
            "id": "linux",
            "kernel": "Image",
            "ramdisk": "initrd.cpio",
            "dtb": "board.dtb",
            "cpu_quota": 200_000,
            "net": NetWish(True, "net1"),
        },
    ),
    Example(
        "The process of a container, on a guest kernel with the image's root file system in RAM",
        "zcu104",
        _KERNEL,
        {"kind": GuestKind.LINUX, "id": "shell", "kernel": "Image", "process": ProcessSpec(("sh",), terminal=True)},
    ),
)


def plan(example: Example, held: tuple[Held, ...] = ()) -> JailhousePlan:
    """Return the plan of an example on a board that is empty unless somebody holds a part of it."""
    board = loading.load(example.board)
    facts = Facts(
        board=board,
        image=example.image,
        held=held,
        loader="linux-loader.bin",
        initrd="runphi/initrd",
        sizes=dict(_SIZES),
    )
    return generator.plan(GuestSpec(rootfs="rootfs", **example.spec), facts)


def page() -> str:
    """Return the part of the page, in Markdown."""
    lines = ["<!-- made by `python -m backends.jailhouse.examples` -->"]
    for example in EXAMPLES:
        lines += ["", f"### `{example.board}`: {example.title}", "", "```", conf.render(plan(example)).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def picture(board: str = "kria-kv260") -> str:
    """Return the map of a board, as ``runphi map --svg`` draws it, when its examples for CPUs run side by side."""
    held: tuple[Held, ...] = ()
    for example in EXAMPLES:
        if example.board == board and not example.spec.get("rpu"):
            made = plan(example, held)
            owner = Owner(example.spec["id"], cell=made.cell.name)
            held += tuple(Held(owner, claim) for claim in made.claims)
    return drawing.svg(loading.load(board), held)


if __name__ == "__main__":
    sys.stdout.write(picture() if sys.argv[1:] == ["picture"] else page())
