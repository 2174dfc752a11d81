# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the engine tests: one private containerd a session, checked for left-overs after each test."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from runphi_async.testing.containerd import CHECKOUT
from tests.engine.core import engine_of
from tests.engine.docker import Docker
from tests.engine.harness import LINUX_GUEST, PLAIN_RUNC, PLAIN_RUNPHI, Engine, Runtime
from tests.engine.podman import Podman
from tests.engine.pods import PodEngine
from tests.once import made_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.cli import CommandLine

AnyCommandLine = TypeVar("AnyCommandLine", Podman, Docker)

#: size of the image that must not be copied into the guest's memory
LARGE_MIB = 200
#: shims, supervisors' clients and virtual machines end a moment after ctr does
SETTLE = 5.0
#: archives that pods are made of
POD_IMAGES = ("demo", "busybox", "pause")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this directory drives a real engine; some are the core."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.engine)
            if (engine := engine_of(item.nodeid.rpartition("tests/engine/")[2])) is not None:
                item.add_marker(pytest.mark.core(engine=engine))


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A directory with a short name: unix sockets below it must fit into 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="rp", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo images as OCI archives, built from this checkout."""
    tools = CHECKOUT / "bin"

    def build(top: Path) -> None:
        inmates = str(top / "inmates")
        subprocess.run([tools / "build-inmates", inmates], check=True, capture_output=True)
        words = [str(top / "images"), "--inmates", inmates, "--large", str(LARGE_MIB), "--pause"]
        subprocess.run([tools / "build-images", *words], check=True, capture_output=True)

    return sorted((made_once(tmp_path_factory, "images", build) / "images").glob("*.tar"))


@pytest.fixture(scope="session")
def inmates(images: list[Path]) -> Path:
    """The demo inmates that are in the images."""
    return images[0].parent.parent / "inmates"


@pytest.fixture(scope="session")
def containerd(place: Path, images: list[Path]) -> Iterator[Engine]:
    """The session's containerd with all images; fails the session when anything outlives it."""
    if os.geteuid() != 0:
        pytest.skip("containerd needs root")
    config = place / "config.toml"
    config.write_text(f'[log]\ndir = "{place}/log"\n')
    engine = Engine(place / "s", place / "r", f"rp{os.getpid()}", {"RUNPHI_CONFIG": str(config)})
    try:
        engine.start()
        engine.import_images(images)
        yield engine
    finally:
        left = engine.stop()
    assert not left, "left over after the session:\n" + "\n".join(left)


@pytest.fixture
def engine(containerd: Engine) -> Iterator[Engine]:
    """The session's containerd for one test, which must not leave a process or a cgroup behind."""
    yield containerd
    settle(containerd)


def settle(engine: Engine | CommandLine) -> None:
    """Removes a test's containers; fails it when a process or a cgroup stays all the same."""
    engine.sweep()
    deadline = time.monotonic() + SETTLE
    while (left := [*engine.strays(), *map(str, engine.cgroups())]) and time.monotonic() < deadline:
        time.sleep(0.02)
    if left:
        # the next test must not inherit them
        for line in engine.strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.partition(":")[0]), 9)
        for group in engine.cgroups():
            with contextlib.suppress(OSError):
                group.rmdir()
    assert not left, "left over after the test:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def podmans(place: Path, images: list[Path]) -> Iterator[Podman]:
    """The session's podman; fails the session when anything outlives it."""
    yield from session(Podman, place, images)


@pytest.fixture(scope="session")
def dockerd(place: Path, images: list[Path]) -> Iterator[Docker]:
    """The session's dockerd; fails the session when anything outlives it."""
    yield from session(Docker, place, images)


@pytest.fixture
def podman(podmans: Podman) -> Iterator[Podman]:
    """The session's podman for one test, which must not leave a process or a cgroup behind."""
    yield podmans
    settle(podmans)


@pytest.fixture
def docker(dockerd: Docker) -> Iterator[Docker]:
    """The session's dockerd for one test, which must not leave a process or a cgroup behind."""
    yield dockerd
    settle(dockerd)


@pytest.fixture(params=["podman", "docker"])
def cli(request: pytest.FixtureRequest) -> CommandLine:
    """Each engine with docker's command line in turn."""
    engine: CommandLine = request.getfixturevalue(request.param)
    return engine


def session(kind: type[AnyCommandLine], place: Path, images: list[Path]) -> Iterator[AnyCommandLine]:
    """Starts an engine and stops it."""
    name = kind.__name__.lower()
    if os.geteuid() != 0:
        pytest.skip(f"{name} needs root")
    if shutil.which(kind.daemon) is None:
        pytest.skip(f"{kind.daemon} is not installed: bin/test installs it")
    config = place / f"{name}.toml"
    config.write_text(f'[log]\ndir = "{place}/{name}-log"\n')
    short = place / name[0]
    engine = kind(short / "s", short / "r", f"rp{name[0]}{os.getpid()}", env={"RUNPHI_CONFIG": str(config)})
    try:
        engine.start([path for path in images if path.stem in ("busybox", "demo")])
        yield engine
    finally:
        left = engine.stop()
    assert not left, "left over after the session:\n" + "\n".join(left)


@pytest.fixture(params=[PLAIN_RUNC, LINUX_GUEST], ids=lambda runtime: str(runtime.name))
def linux(request: pytest.FixtureRequest) -> Runtime:
    """The same Linux scenario in a plain runc container (which proves the test) and in a guest."""
    runtime: Runtime = request.param
    if runtime is LINUX_GUEST:
        request.applymarker(pytest.mark.qemu)
    return runtime


@pytest.fixture(params=[PLAIN_RUNC, PLAIN_RUNPHI], ids=lambda runtime: str(runtime.name))
def plain(request: pytest.FixtureRequest) -> Runtime:
    """A plain container run by runc and by this project's runtime, which must be the same."""
    runtime: Runtime = request.param
    return runtime


@pytest.fixture(scope="session")
def pod_engine(place: Path, images: list[Path]) -> Iterator[PodEngine]:
    """The session's containerd with its CRI plugin, in a network namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("containerd needs root")
    config = place / "pods.toml"
    config.write_text(f'[log]\ndir = "{place}/pod-log"\n')
    engine = PodEngine(place / "ks", place / "k", {"RUNPHI_CONFIG": str(config)})
    try:
        engine.start()
        engine.load([path for path in images if path.stem in POD_IMAGES])
        yield engine
    finally:
        left = engine.stop()
    assert not left, "left over after the session:\n" + "\n".join(left)


@pytest.fixture
def pods(pod_engine: PodEngine) -> Iterator[PodEngine]:
    """The session's containerd with CRI for one test, which must not leave a process or a cgroup behind."""
    yield pod_engine
    settle(pod_engine)
