# SPDX-License-Identifier: Apache-2.0
"""Ordinary containers are the same with this runtime in runc's place: output, errors, exit codes, states, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runphi_async.testing.containerd import RUNPHI
from tests.engine import same_cli, same_ctr, same_verbs
from tests.engine.harness import RUNC
from tests.engine.same import cli_sides, ctr_sides, play
from tests.engine.same_verbs import VerbSide

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.cli import CommandLine
    from tests.engine.harness import Engine
    from tests.engine.same import CliSide, CtrSide


@pytest.mark.parametrize("scenario", same_cli.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_podman_and_docker(cli: CommandLine, scenario: Callable[[CliSide], None]) -> None:
    ours, runc = play(scenario, cli_sides(cli), cli.remove_containers)
    assert ours
    assert ours == runc


@pytest.mark.parametrize("scenario", same_ctr.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_containerd(engine: Engine, scenario: Callable[[CtrSide], None]) -> None:
    ours, runc = play(scenario, ctr_sides(engine), engine.remove_containers)
    assert ours
    assert ours == runc


@pytest.mark.parametrize("scenario", same_verbs.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_verbs(engine: Engine, tmp_path: Path, scenario: Callable[[VerbSide], None]) -> None:
    sides = [VerbSide(engine, runtime, tmp_path) for runtime in (RUNPHI, RUNC)]
    ours, runc = play(scenario, sides, sides[0].clear)
    assert ours
    assert ours == runc
