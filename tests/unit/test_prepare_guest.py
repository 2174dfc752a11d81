# SPDX-License-Identifier: Apache-2.0
"""How bin/prepare-guest finds its way in the kernel packages of different releases."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import lzma
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPT = Path(__file__).resolve().parents[2] / "bin" / "prepare-guest"
RELEASE = "6.12.1-cloud"


@pytest.fixture(scope="module")
def prepare() -> Any:
    """The script as a module."""
    loader = importlib.machinery.SourceFileLoader("prepare_guest", str(SCRIPT))
    spec = importlib.util.spec_from_loader("prepare_guest", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    """Makes the tree of a kernel package with modules that depend on others."""
    if not (shutil.which("gcc") and shutil.which("modinfo")):
        pytest.skip("needs gcc and kmod")

    def make(lib: str, modules: dict[str, str], builtin: str = "", pack: bool = False) -> Path:
        where = tmp_path / lib / "modules" / RELEASE
        (where / "kernel").mkdir(parents=True)
        (where / "modules.builtin").write_text(builtin)
        for name, depends in modules.items():
            source = f'const char said[] __attribute__((section(".modinfo"), used)) = "depends={depends}";\n'
            path = where / "kernel" / f"{name}.ko"
            argv = ["gcc", "-x", "c", "-c", "-o", str(path), "-"]
            subprocess.run(argv, input=source, text=True, check=True)
            if pack:
                path.with_suffix(".ko.xz").write_bytes(lzma.compress(path.read_bytes()))
                path.unlink()
        return tmp_path

    return make


MODULES = {"virtiofs": "fuse", "fuse": "", "virtio-blk": "virtio_ring,virtio", "virtio_ring": "virtio", "virtio": ""}


@pytest.mark.parametrize("lib", ["lib", "usr/lib"])
@pytest.mark.parametrize("pack", [False, True])
def test_modules_of_either_layout_packed_or_not(prepare: Any, package: Any, lib: str, pack: bool) -> None:
    tree = package(lib, MODULES, builtin="kernel/drivers/net/virtio-net.ko\n", pack=pack)
    found = prepare.modules_of(tree, RELEASE)
    assert found == tree / lib / "modules" / RELEASE
    order = prepare.load_order(found, ("virtio_blk", "virtio_net", "virtiofs", "virtio"))
    assert [path.name for path in order] == ["virtio.ko", "virtio_ring.ko", "virtio-blk.ko", "fuse.ko", "virtiofs.ko"]
    assert all(path.read_bytes().startswith(b"\x7fELF") for path in order)


def test_modules_that_are_nowhere_are_told(prepare: Any, package: Any, tmp_path: Path) -> None:
    found = prepare.modules_of(package("lib", {"virtiofs": "fuse"}), RELEASE)
    with pytest.raises(prepare.StepError, match=r"cannot find the module fuse: .* neither as a file nor built in"):
        prepare.load_order(found, ("virtiofs",))
    assert prepare.load_order(found, prepare.SOMETIMES) == []
    with pytest.raises(prepare.StepError, match="cannot find the kernel's modules"):
        prepare.modules_of(tmp_path, "another")


def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int = 0) -> Path:
    """Put an apt-get in front that only writes down what it is asked."""
    asked = tmp_path / "asked"
    tool = tmp_path / "apt-get"
    tool.write_text(f'#!/bin/sh\necho "$@" >>{asked}\nexit {status}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return asked


def test_lists_that_are_too_old_are_read_anew_once(
    prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    asked = apt(tmp_path, monkeypatch)
    tries: list[int] = []

    def step() -> str:
        tries.append(1)
        if len(tries) < 2:
            raise prepare.StepError("cannot download the kernel: 404")
        return "found"

    assert prepare.with_fresh_lists(step) == "found"
    assert asked.read_text() == "-q update\n"
    assert prepare.with_fresh_lists(step) == "found"
    assert asked.read_text() == "-q update\n"

    def never() -> None:
        raise prepare.StepError("cannot download the kernel: 404")

    with pytest.raises(prepare.StepError, match="404"):
        prepare.with_fresh_lists(never)
    # who may not, does not
    asked.unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(prepare.StepError, match="404"):
        prepare.with_fresh_lists(never)
    assert not asked.exists()


def test_a_network_that_is_away_is_told(prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    apt(tmp_path, monkeypatch, status=100)

    def never() -> None:
        raise prepare.StepError("cannot download the kernel: 404")

    with pytest.raises(prepare.StepError, match=r"cannot read the package lists.*check the network"):
        prepare.with_fresh_lists(never)
