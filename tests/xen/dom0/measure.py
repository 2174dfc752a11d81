# SPDX-License-Identifier: Apache-2.0
"""Time from create to a guest's first byte, ours against Xen's tools alone, in turns; run in dom0.

Ours is ``runphi create`` and ``runphi start`` with a pipe as the console; theirs ``xl create -p``, finding the pty,
``xl unpause`` and reading it. The same image, memory and kind of guest. Then Linux guests, by both ways for the
rootfs. ``python -m tests.xen --measure`` runs it. An argument says how many turns, besides a warm-up.
"""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from tests.system import place as places
from tests.xen.dom0.kit import CONFIG, INMATE, XenPlace

if TYPE_CHECKING:
    from collections.abc import Callable

TURNS = 8
LINUX_TURNS = 3


def first_byte(fd: int, begun: float) -> float:
    """Wait for a byte; return the seconds since ``begun``."""
    while True:
        assert select.select([fd], [], [], places.PATIENCE)[0], "no byte came"
        if os.read(fd, 4096):
            return time.monotonic() - begun


def run(*argv: str) -> str:
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def plain(directory: Path, kind: str) -> float:
    """One guest by Xen's tools alone."""
    name = uuid.uuid4().hex
    config = directory / "plain.cfg"
    config.write_text(f'name = "{name}"\ntype = "{kind}"\nkernel = "{INMATE}"\nmemory = 32\nvcpus = 1\nvif = []\n')
    begun = time.monotonic()
    run("xl", "create", "-q", "-e", "-p", str(config))
    domid = run("xl", "domid", name)
    tty = os.open(run("xenstore-read", f"/local/domain/{domid}/console/tty"), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    run("xl", "unpause", domid)
    took = first_byte(tty, begun)
    os.close(tty)
    run("xl", "destroy", domid)
    return took


def ours(place: XenPlace, kind: str) -> float:
    """One container."""
    name = f"m{next(place.numbers)}"
    bundle = place.bundle(name, backend="xen", annotations={"org.runphi.machine": kind})
    begun = time.monotonic()
    container = place.create(name, made=bundle)
    container.must("start")
    took = first_byte(container.stdout, begun)
    place.must("kill", name, "KILL")
    container.wait()
    container.must("delete")
    return took


def linux(place: XenPlace, how: str) -> tuple[float, float, float]:
    """One Linux guest of a busybox image: seconds of create, from there to its first byte, and of its removal."""
    name = f"l{next(place.numbers)}"
    bundle = place.linux(name, "echo here; read line", annotations={"org.runphi.xen.rootfs": how})
    begun = time.monotonic()
    container = place.create(name, made=bundle)
    created = time.monotonic()
    container.must("start")
    shown = first_byte(container.stdout, created)
    ending = time.monotonic()
    place.must("kill", name, "KILL")
    container.wait()
    container.must("delete")
    return created - begun, shown, time.monotonic() - ending


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else TURNS
    setattr(places, "PATIENCE", 240.0)  # noqa: B010 - a constant everywhere else
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "demo-x86_64.elf").write_bytes(INMATE.read_bytes())
        place = XenPlace(directory, CONFIG)
        try:
            for kind in ("pv", "pvh"):
                sides: dict[str, Callable[[], float]] = {
                    "ours": lambda kind=kind: ours(place, kind),  # type: ignore[misc]
                    "xl": lambda kind=kind: plain(directory, kind),  # type: ignore[misc]
                }
                taken: dict[str, list[float]] = {side: [] for side in sides}
                for turn in range(turns + 1):
                    for side, measure in sides.items():
                        seconds = measure()
                        if turn:  # the first is a warm-up
                            taken[side].append(seconds)
                medians = {side: statistics.median(values) for side, values in taken.items()}
                for side, values in taken.items():
                    sys.stdout.write(f"{kind} {side}: {' '.join(f'{value:.2f}' for value in values)}\n")
                sys.stdout.write(
                    f"{kind}: create to first byte {medians['ours']:.2f} s, xl alone {medians['xl']:.2f} s, "
                    f"ratio {medians['ours'] / medians['xl']:.2f}\n"
                )
                sys.stdout.flush()
            for how in ("ramdisk", "disk"):
                lives = [linux(place, how) for _ in range(LINUX_TURNS)]
                create, start, end = (statistics.median(values) for values in zip(*lives, strict=True))
                sys.stdout.write(
                    f"linux, rootfs by {how}: create {create:.1f} s, start to first byte {start:.1f} s, "
                    f"kill and delete {end:.1f} s\n"
                )
                sys.stdout.flush()
        finally:
            left = place.close()
            sys.stdout.write("".join(f"left: {line}\n" for line in left))


if __name__ == "__main__":
    main()
