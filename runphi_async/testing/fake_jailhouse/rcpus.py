# SPDX-License-Identifier: Apache-2.0
"""Remote processors as the Omnivisor's driver treats them: handed out, loaded by remoteproc, stopped by destruction.

Source: driver/rcpu.c and driver/cell.c of https://github.com/DanieleOttaviano/jailhouse (628a02d8); not recorded on a
board. What surprises there is kept: a cell's shutdown leaves its remote processor running, and one that has been loaded
takes no second image before the cell is destroyed.
"""

from __future__ import annotations

import os
from errno import EBUSY, EINVAL
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from runphi_async.errors import PlanError
from runphi_async.testing.fake_jailhouse.place import Errno

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.testing.fake_jailhouse.place import Place

#: Bytes of a name that the tool copies.
NAME_MAX: Final = 31


class RcpuImage(NamedTuple):
    """An image that remoteproc is to load: a name below the firmware directory, and a processor."""

    name: str
    rcpu: int


def take(place: Place, root: dict[str, Any], rcpus: Sequence[int]) -> None:
    """Hand remote processors to a new cell.

    :raises Errno: another cell has one of them; what was taken before it is lost.
    """
    for rcpu in rcpus:
        if rcpu not in root["rcpus"]:
            place.dmesg(f"ERROR: rCPU {rcpu} is already assigned to a different cell")
            raise Errno(EINVAL)
        place.dmesg(f"Removing rCPU {rcpu} from rootcell.")
        root["rcpus"].remove(rcpu)


def load(place: Place, record: dict[str, Any], image: RcpuImage) -> None:
    """Let remoteproc load an image; the hypervisor holds the processor back until the cell is started.

    :raises Errno: it cannot be loaded.
    """
    try:
        _load(place, record, image)
    except Errno:
        place.dmesg(f"Unable to load rcpu image {image.name}")
        raise


def _load(place: Place, record: dict[str, Any], image: RcpuImage) -> None:
    from backends.guest import elf  # costs as much as the rest of a call that has no such image

    if image.rcpu not in record["rcpus"]:
        place.dmesg(f"rcpu ID {image.rcpu} not valid")
        raise Errno(EINVAL)
    try:
        data = (place.firmware.parent / image.name).read_bytes()
    except OSError as exc:
        place.dmesg(f"Failed to open Image file /lib/firmware/{image.name}: -{exc.errno}")
        raise Errno(exc.errno or EINVAL) from None
    if record["loaded"]:  # rproc_set_firmware wants a processor that is offline
        place.dmesg(f"Failed to set firmware for rcpu {image.rcpu}")
        raise Errno(EBUSY)
    try:
        pieces = elf.pieces(lambda at, size: data[at : at + size], len(data), image.name)
    except PlanError:
        place.dmesg(f"Failed to load firmware for rcpu {image.rcpu}")
        raise Errno(EINVAL) from None
    first = min(pieces, key=lambda piece: piece.start)
    (place.run / f"{record['id']}.rcpu").write_bytes(data[first.offset : first.offset + first.filled])
    record["loaded"] = True


def give_back(place: Place, root: dict[str, Any], record: dict[str, Any]) -> None:
    """Stop a destroyed cell's remote processors; they are the root cell's again."""
    root["rcpus"] = sorted({*root["rcpus"], *record["rcpus"]})
    (place.run / f"{record['id']}.rcpu").unlink(missing_ok=True)


def parse(words: list[str]) -> tuple[list[str], list[RcpuImage]] | None:
    """Return the words for other images, and the images for remote processors; None: the tool shows its usage.

    The tool counts them wherever they stand and then reads all others first, so they must be last.
    """
    plain: list[str] = []
    images: list[RcpuImage] = []
    while words:
        if words[0] in ("-r", "--rcpu"):
            if len(words) < 3:
                return None
            name = os.fsencode(words[1])[:NAME_MAX].decode("utf-8", "surrogateescape")
            images.append(RcpuImage(name, _atoi(words[2])))
            words = words[3:]
        elif images:
            return ["-r", *words], images  # which it takes for a file
        else:
            plain, words = [*plain, words[0]], words[1:]
    return plain, images


def _atoi(text: str) -> int:
    digits = ""
    for letter in text.strip():
        if not letter.isdigit():
            break
        digits += letter
    return int(digits or "0")
