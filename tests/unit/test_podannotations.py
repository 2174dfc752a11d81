# SPDX-License-Identifier: Apache-2.0
"""Annotations of a pod and which of its containers they are about."""

from __future__ import annotations

import pytest

from runphi_async.errors import SpecError
from runphi_async.partition.podannotations import of_container

PLC = {"io.kubernetes.cri.container-name": "plc"}
CRIO = {"io.kubernetes.container.name": "plc"}


@pytest.mark.parametrize("engine", [PLC, CRIO], ids=["containerd", "CRI-O"])
def test_what_names_the_container_holds_for_it_alone(engine: dict[str, str]) -> None:
    pod = {
        "org.runphi.inmate/plc": "/boot/plc.elf",
        "org.runphi.inmate/other": "/boot/x.elf",
        "org.runphi.memory": "8M",
    }
    wanted = {**engine, "org.runphi.inmate": "/boot/plc.elf", "org.runphi.memory": "8M"}
    assert of_container({**engine, **pod}) == wanted


@pytest.mark.parametrize("turn", [1, -1])
def test_what_names_the_container_counts_before_the_pods_own(turn: int) -> None:
    said = [("org.runphi.backend", "qemu"), ("org.runphi.backend/plc", "runc")]
    assert of_container({**PLC, **dict(said[::turn])})["org.runphi.backend"] == "runc"


def test_annotations_of_others_stay_as_they_are() -> None:
    pod = {"example.org/owner": "me", "org.runphiX/plc": "x"}
    assert of_container(pod) == pod


def test_a_name_under_an_engine_without_names_is_refused() -> None:
    with pytest.raises(SpecError, match=r"org\.runphi\.inmate/plc") as refused:
        of_container({"org.runphi.inmate/plc": "/boot/plc.elf"})
    assert refused.value.hint == "write org.runphi.inmate"


def test_a_pause_container_has_none_of_them() -> None:
    pause = {"io.kubernetes.cri.container-type": "sandbox"}
    assert of_container({**pause, "org.runphi.inmate/plc": "/boot/plc.elf"}) == pause
