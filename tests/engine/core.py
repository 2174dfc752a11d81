# SPDX-License-Identifier: Apache-2.0
"""The core of the engine tests: one guest of each kind under each engine, for those who cannot wait for all of them.

``pytest tests/engine -m core`` runs it, with ``-m "core(engine='containerd')"`` for one engine, as ``bin/test --quick``
does. Cells need a board, which one engine's tests have.
"""

from __future__ import annotations

from typing import Final

#: engine -> kind of guest -> its test, by the name that pytest has for it below tests/engine
CORE: Final[dict[str, dict[str, str]]] = {
    "containerd": {
        "bare-metal": "test_ctr_console.py::test_exit_code_is_the_guests[3]",
        "linux": "test_ctr_linux.py::test_output_and_exit_code[guest-7]",
        "plain": "test_ctr_plain.py::test_output_and_exit_code[passed-through]",
        "cell": "test_ctr_cells.py::test_a_cell_on_a_terminal_lives_in_both_directions",
    },
    "podman": {
        "bare-metal": "test_podman_docker.py::test_exit_code_and_output_on_pipes[podman]",
        "linux": "test_podman_docker.py::test_a_linux_guest[podman]",
        "plain": "test_podman_docker.py::test_an_ordinary_container[podman]",
    },
    "docker": {
        "bare-metal": "test_podman_docker.py::test_exit_code_and_output_on_pipes[docker]",
        "linux": "test_podman_docker.py::test_a_linux_guest[docker]",
        "plain": "test_podman_docker.py::test_an_ordinary_container[docker]",
    },
    "cri": {
        "bare-metal": "test_cri_guest.py::test_life_of_a_guest",
        "linux": "test_cri_pods.py::test_process_of_a_pod[guest]",
        "plain": "test_cri_pods.py::test_ordinary_pod[runphi]",
    },
}


def engine_of(name: str) -> str | None:
    """Return the engine of which this test is the core, if it is of any."""
    return next((engine for engine, tests in CORE.items() if name in tests.values()), None)
