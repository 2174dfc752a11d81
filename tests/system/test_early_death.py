# SPDX-License-Identifier: Apache-2.0
"""A QEMU that dies before its monitor has answered: the verb that waits for it fails, and nothing else does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.qemu


@pytest.fixture
def dying(inmates_built: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(
        f'#!/bin/sh\ncase " $* " in *" -kernel "*) sleep {request.param}; kill -ABRT $$ ;; esac\n'
        'exec qemu-system-x86_64 "$@"\n'
    )
    program.chmod(0o755)
    made = Place(inmates_built, f'[qemu]\naccel = "tcg"\nx86_64 = "{program}"\n')
    yield made
    left = made.close()
    assert not left, "left over:\n" + "\n".join(left)


@pytest.mark.parametrize("dying", [0, 0.1, 0.5, 2], indirect=True)
def test_the_supervisor_outlives_it(dying: Place) -> None:
    dying.must("list")
    pid = dying.pid()
    bystander = dying.create("bystander", backend="fake")
    container = dying.create("c1")
    if container.created == 0:
        error = container.refused("start")
        assert "fell silent" not in error
        assert error
        assert container.wait() in (134, 137)
    assert bystander.state()["status"] == "created"
    assert dying.pid() == pid
    assert "Traceback" not in dying.log()
