# SPDX-License-Identifier: Apache-2.0
"""What `configure -c` puts into a tree and takes out of it; the Python environment is left to the system tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends import configured
from backends.jailhouse.settings import Jailhouse
from runphi_async.install import cli, layout, settings, tree
from runphi_async.install.root import CONFIG, HOME, Root

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "make_venv", lambda path, wanted, wheels: os.mkdir(path))
    monkeypatch.setattr(tree, "_compile", lambda stage, destdir: None)


@pytest.fixture
def destdir(tmp_path: Path) -> Path:
    return tmp_path / "root"


def configure(destdir: Path, *words: str) -> int:
    return cli.main([*words, "--destdir", str(destdir)])


def files(top: Path) -> dict[str, bytes | str | None]:
    return {
        str(path.relative_to(top)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in top.rglob("*")
    }


def test_an_empty_tree_is_empty_again(destdir: Path) -> None:
    assert configure(destdir, "-c", "qemu") == 0
    assert (destdir / "usr/sbin/runphi").resolve() == destdir / "usr/share/runPHI/bin/runphi"
    assert os.access(destdir / "usr/sbin/runphi", os.X_OK)
    assert configured.load(str(destdir / CONFIG[1:])).backend == "qemu"
    unit = (destdir / "etc/systemd/system/runphid.service").read_text()
    assert f"ExecStart={HOME}/venv/bin/python -I {HOME}/bin/runphid\n" in unit
    assert "@" not in unit
    assert not list(destdir.rglob("__pycache__"))
    assert configure(destdir, "-c", "xen") == 0
    assert configured.load(str(destdir / CONFIG[1:])).backend == "xen"
    assert configure(destdir, "--uninstall") == 0
    assert files(destdir) == {}


def test_what_others_have_there_stays(destdir: Path) -> None:
    for name in ("usr/share/runPHI/log.txt", "etc/runphi/other", "usr/sbin/other", "var/lib/runphi/guest/vmlinux"):
        (destdir / name).parent.mkdir(parents=True, exist_ok=True)
        (destdir / name).write_text(name)
    before = files(destdir)
    assert configure(destdir, "-c", "qemu") == 0
    assert configure(destdir, "--uninstall") == 0
    assert files(destdir) == before


def test_a_file_in_our_place_is_an_error_and_nothing_is_done(destdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (destdir / "usr/sbin").mkdir(parents=True)
    (destdir / "usr/sbin/runphi").write_text("mine")
    before = files(destdir)
    assert configure(destdir, "-c", "qemu") == 1
    assert "was not made by us" in capsys.readouterr().err
    assert files(destdir) == before


def test_a_person_s_configuration_is_never_written(destdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = destdir / CONFIG[1:]
    mine.parent.mkdir(parents=True)
    mine.write_text('# mine\nbackend = "qemu"\n')
    before = files(destdir)
    assert configure(destdir, "-c", "jailhouse", "--board", "kria-kv260") == 0
    assert 'write into it: backend = "jailhouse", jailhouse.board = "kria-kv260"' in capsys.readouterr().out
    assert configure(destdir, "-c", "qemu") == 0
    assert "write into it" not in capsys.readouterr().out
    assert configure(destdir, "--uninstall") == 0
    assert files(destdir) == before


def test_a_configuration_that_was_changed_stays(destdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert configure(destdir, "-c", "qemu") == 0
    file = destdir / CONFIG[1:]
    file.write_text(file.read_text() + "[log]\nenabled = false\n")
    changed = file.read_bytes()
    assert configure(destdir, "-c", "xen") == 0
    assert file.read_bytes() == changed
    assert configure(destdir, "--uninstall") == 0
    assert "was changed by somebody and stays" in capsys.readouterr().out
    assert files(destdir) == {"etc": None, "etc/runphi": None, CONFIG[1:]: changed}


def test_a_unit_that_was_changed_stays(destdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert configure(destdir, "-c", "qemu") == 0
    unit = destdir / "etc/systemd/system/runphid.service"
    unit.write_text("mine")
    assert configure(destdir, "-c", "qemu") == 0
    assert f"{unit} was changed by somebody and stays so" in capsys.readouterr().out
    assert configure(destdir, "--uninstall") == 0
    assert unit.read_text() == "mine"


def test_partitions_keep_the_installation(destdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert configure(destdir, "-c", "qemu") == 0
    (destdir / "run/runPHI/demo").mkdir(parents=True)
    (destdir / "run/runPHI/demo/state.json").touch()
    before = files(destdir)
    assert configure(destdir, "--uninstall") == 1
    assert "there are partitions: demo; delete them first" in capsys.readouterr().err
    assert files(destdir) == before


@pytest.mark.parametrize(("backend", "board"), [("docker", ""), ("jailhouse", ""), ("jailhouse", "qemu-arm64")])
def test_every_configuration_that_is_written_can_be_read(tmp_path: Path, backend: str, board: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(settings.text(backend, board))
    read = configured.load(str(file))
    assert (read.backend, read.of(Jailhouse).board) == (backend, board)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "nothing to do"),
        (["-c", "kvm"], "invalid choice: 'kvm'"),
        (["-a", "-c", "qemu"], "not allowed with"),
        (["-c", "jailhouse", "--board", "/nowhere.toml"], "cannot use board file"),
        (["-a"], "cannot find any backend"),
        (["--replace-runc"], "cannot find the runc to replace"),
    ],
)
def test_refusals(destdir: Path, words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert configure(destdir, *words) == 1
    assert error in capsys.readouterr().err
    assert files(destdir) == {}


def test_the_installation_names_what_it_consists_of() -> None:
    assert set(tree.parts()) == {f"{HOME}/{name}" for name in (*tree.PARTS, "venv", ".new")}
    for name in tree.PARTS:
        assert (ROOT / name).exists()
    assert set(layout.files(str(ROOT))) >= {f"{layout.UNITS}/runphid.service", f"{layout.UNITS}/runphid.socket"}
    assert not layout.is_package(Root("/nonexistent"))
