# SPDX-License-Identifier: Apache-2.0
"""Damaged images under the real QEMU: its loader runs on the host, before the guest's first instruction.

QEMU may refuse what `handed` made of an image, with its words and a status; it may not die of it. A few images, the
same in each run; ``RUNPHI_FUZZ=1`` takes many that nobody has seen yet, ``RUNPHI_FUZZ_IMAGES`` another number of them
and ``RUNPHI_FUZZ_SEED`` those of a run that failed.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from backends.guest import elf, handed
from runphi_async.errors import BackendError, PlanError
from runphi_async.partition.image import Handed
from tests.unit.imagekit import pvh_image
from tests.unit.test_handed import MULTIBOOT

if TYPE_CHECKING:
    from pathlib import Path

QEMU: Final = shutil.which("qemu-system-x86_64")
FUZZ: Final = bool(os.environ.get("RUNPHI_FUZZ"))
IMAGES: Final = int(os.environ.get("RUNPHI_FUZZ_IMAGES") or (2000 if FUZZ else 60))
SEED: Final = int(os.environ.get("RUNPHI_FUZZ_SEED") or (random.randrange(1 << 32) if FUZZ else 14))
#: ``raw`` shows what QEMU makes of the images themselves: for a look, not for the test
RAW: Final = os.environ.get("RUNPHI_FUZZ_RAW") == "1"
MEMORY: Final = 16 << 20
#: seconds for a QEMU that loads, or refuses, and quits
PATIENCE: Final = 20.0
#: values that loaders stumble over
EDGES: Final = (0, 1, 3, 4, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
QUIT: Final = b'{"execute":"qmp_capabilities"}{"execute":"quit"}'


def damaged(chance: random.Random) -> bytes:
    """Return an image with a few words of its headers changed."""
    data = bytearray(chance.choice((pvh_image(), MULTIBOOT)))
    for _ in range(chance.randint(1, 4)):
        form = chance.choice(("<B", "<H", "<I"))
        mask = (1 << 8 * struct.calcsize(form)) - 1
        at = chance.randrange(4, min(len(data), 240) - 4)
        struct.pack_into(
            form, data, at, (chance.choice(EDGES) if chance.random() < 0.7 else chance.getrandbits(32)) & mask
        )
    return bytes(data)


def notes(chance: random.Random) -> bytes:
    """Return an image whose note segment plays tricks."""
    data = bytearray(pvh_image())
    align, name, value = (chance.choice(EDGES) for _ in range(3))
    struct.pack_into("<Q", data, 64 + 56 + 48, align)
    struct.pack_into("<II", data, 176, name, value)
    if chance.random() < 0.5:
        struct.pack_into("<Q", data, 64 + 56 + 32, chance.choice(EDGES))
    return bytes(data)


def load(path: Path) -> subprocess.CompletedProcess[bytes]:
    """Let QEMU load an image, as a container's is, and quit."""
    assert QEMU is not None
    argv = [
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S", "-qmp", "stdio",
        "-machine", "microvm,acpi=off", "-bios", "qboot.rom", "-accel", "tcg", "-m", "16M", "-kernel", path.name,
    ]  # fmt: skip
    return subprocess.run(argv, cwd=path.parent, input=QUIT, capture_output=True, timeout=PATIENCE, check=False)


@pytest.mark.qemu
@pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86")
@pytest.mark.timeout(max(120, IMAGES))
def test_no_image_kills_qemu_before_it_runs(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    loaded = 0
    killed = []
    for number in range(IMAGES):
        image = notes(chance) if number % 3 == 0 else damaged(chance)
        source = tmp_path / f"{number}.elf"
        source.write_bytes(image)
        target = tmp_path / "image"
        target.unlink(missing_ok=True)
        if RAW:
            target.write_bytes(image)
        else:
            try:
                facts = elf.inspect(str(source))
                if any(segment.end > MEMORY for segment in facts.segments):
                    continue  # the plan refuses what does not fit into the guest's memory
                handed.hand_over([Handed("image", str(source), facts, anew=True)], str(tmp_path), MEMORY)
            except (PlanError, BackendError):
                continue
        try:
            done = load(target)
        except subprocess.TimeoutExpired:
            killed.append((number, 0, image.hex()))
            continue
        loaded += done.returncode == 0
        if done.returncode < 0 or done.returncode >= 128:
            killed.append((number, done.returncode, image.hex()))
    assert not killed, f"of {IMAGES} images (seed {SEED}) {len(killed)} killed QEMU (0: it hung): {killed[:3]}"
    assert loaded, "QEMU loaded none: nothing was tried"
