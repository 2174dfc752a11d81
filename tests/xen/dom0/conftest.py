# SPDX-License-Identifier: Apache-2.0
"""A supervisor of the tests' own on the real Xen, with the demo inmate and the guest kernel that came with them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from runphi_async.testing import containerd
from tests.system import place as places
from tests.xen.dom0.kit import CONFIG, INMATE, XenPlace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def _slow_machine() -> None:
    """All of dom0 is emulated: what takes a second elsewhere takes ten here."""
    for module, name, seconds in (
        (places, "PATIENCE", 240.0),
        (places, "SETTLE", 60.0),
        (containerd, "BOOT_DEADLINE", 240.0),
        (containerd, "STOP_DEADLINE", 60.0),
    ):
        setattr(module, name, seconds)  # constants everywhere else


@pytest.fixture(scope="session")
def inmates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inmate under the name that bundles are made with."""
    directory = tmp_path_factory.mktemp("inmates")
    shutil.copy(INMATE, directory / "demo-x86_64.elf")
    return directory


@pytest.fixture(scope="session")
def place(inmates: Path) -> Iterator[XenPlace]:
    here = XenPlace(inmates, CONFIG)
    yield here
    left = here.close()
    assert not left, left
    assert here.domains() == []
