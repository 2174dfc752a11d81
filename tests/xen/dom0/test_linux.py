# SPDX-License-Identifier: Apache-2.0
"""Linux guests on real Xen: our init, the image's root file system and process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.xen.dom0.kit import XenPlace

pytestmark = pytest.mark.timeout(900)

SCRIPT = "cat /marker; stat -c '%u %g' /marker; read x; echo got $x; echo new > /tmp/f && cat /tmp/f; cat; exit 42"


@pytest.mark.parametrize("how", ["ramdisk", "disk"])
def test_the_images_process_and_files(place: XenPlace, how: str) -> None:
    bundle = place.linux(f"linux-{how}", SCRIPT, annotations={"org.runphi.xen.rootfs": how})
    container = place.create(f"linux-{how}", made=bundle)
    assert container.created == 0, container.error
    assert not (container.record / "initrd").exists(), "its RAM disk is in the domain's memory by now"
    container.must("start")
    container.expect(b"of the image\n1234 4321\n")
    container.type(b"one line\n")
    container.expect(b"got one line\nnew\n")
    container.type(b"last words\n")
    os.close(container.stdin)
    container.stdin = -1
    assert container.rest() == b"last words\n"
    assert container.wait() == 42
    assert container.state()["annotations"]["org.runphi.exit-reason"] == "exited with 42"
    assert (bundle / "rootfs" / "marker").read_text() == "of the image\n"
    container.must("delete")


def test_signals_and_window_size(place: XenPlace) -> None:
    script = "trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 1; done"
    container = place.create("linux-term", made=place.linux("linux-term", script))
    container.must("start")
    container.expect(b"ready\n")
    place.must("kill", "linux-term", "TERM")
    assert container.rest() == b"asked\n"
    assert container.wait() == 7
    container.must("delete")


def test_what_cannot_be_run_says_why(place: XenPlace) -> None:
    bundle = place.linux("linux-none", "x")
    config = (bundle / "config.json").read_text()
    (bundle / "config.json").write_text(config.replace("/bin/sh", "/bin/nosuch"))
    container = place.create("linux-none", made=bundle)
    container.must("start")
    assert b"/bin/nosuch" in container.rest()
    assert container.wait() == 127
    container.must("delete")
