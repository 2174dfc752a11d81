# SPDX-License-Identifier: Apache-2.0
"""A Linux guest in the network and with the mounts that ``ctr`` gives its container."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.harness import BUSYBOX, LINUX_GUEST
from tests.system.linuxkit import NETNS, Lan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.harness import Engine, Runtime

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def lan() -> Iterator[Lan]:
    made = Lan()
    yield made
    made.close()


def test_network_and_mounts(engine: Engine, linux: Runtime, lan: Lan, tmp_path: Path) -> None:
    netns = lan.container(2)
    before = lan.shape(netns)
    data, settings = tmp_path / "data", tmp_path / "settings"
    data.mkdir()
    (data / "in").write_text("from the host\n")
    settings.write_text("key=value\n")
    script = """
    cat /data/in /etc/settings; echo from inside >/data/out
    echo x 2>/dev/null >>/etc/settings || echo kept
    ip -4 -o addr show dev eth0 | awk '{print $4}'; ping -c 1 -W 30 10.77.0.1 >/dev/null && echo pinged
    """
    options = (
        "--with-ns", f"network:{NETNS / netns}",
        "--mount", f"type=bind,src={data},dst=/data,options=rbind:rw",
        "--mount", f"type=bind,src={settings},dst=/etc/settings,options=rbind:ro",
    )  # fmt: skip
    words = engine.run_args(
        BUSYBOX, engine.name(), "/bin/sh", "-c", script, runtime=linux.binary, env=linux.env, options=options
    )
    done = engine.ctr(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "from the host\nkey=value\nkept\n10.77.0.2/24\npinged\n"
    assert (data / "out").read_text() == "from inside\n"
    assert settings.read_text() == "key=value\n"
    assert lan.shape(netns) == before


@pytest.mark.qemu
def test_a_mount_that_a_guest_cannot_have(engine: Engine) -> None:
    name = engine.name()
    mount = "type=bind,src=/nowhere/at/all,dst=/data,options=rbind:ro"
    words = engine.run_args(BUSYBOX, name, "/bin/true", env=LINUX_GUEST.env, options=("--mount", mount))
    done = engine.ctr(*words)
    assert done.returncode == 1
    assert "cannot mount /nowhere/at/all at /data: there is no such file or directory on the host" in done.stderr
