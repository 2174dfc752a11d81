# SPDX-License-Identifier: Apache-2.0
"""The configuration file: defaults, sizes, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends import configured
from backends.qemu.settings import ACCEL_VARIABLE, Qemu
from runphi_async.config import loading, realrunc, reference
from runphi_async.config.schema import Config
from runphi_async.config.section import Size
from runphi_async.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites may have been told an accelerator."""
    monkeypatch.delenv(ACCEL_VARIABLE, raising=False)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return str(path)


def test_defaults(tmp_path: Path) -> None:
    got = configured.load(write(tmp_path, ""))
    assert got == configured.schema().kind()
    assert (got.runc, got.backend) == ("", "qemu")
    assert (got.console.window_bytes, got.console.replay_bytes) == (1048576, 65536)
    assert (got.log.max_bytes, got.of(Qemu).overhead_bytes) == (67108864, 134217728)
    assert got.of(Qemu).memory_default.inmate == 32 << 20
    assert got.inmate.host_paths == ()


def test_values(tmp_path: Path) -> None:
    got = configured.load(
        write(
            tmp_path,
            """
            runc = "/opt/runc"
            [supervisor]
            log_level = "debug"
            [console]
            window_bytes = "64 KiB"
            drain_seconds = 3
            [log]
            enabled = false
            max_bytes = 5000
            [qemu]
            accel = "tcg"
            [qemu.memory_default]
            linux = "1GiB"
            [inmate]
            host_paths = ["/srv/inmates"]
            """,
        )
    )
    assert got.runc == "/opt/runc"
    assert got.console.window_bytes == 65536
    assert isinstance(got.log.max_bytes, Size)
    assert got.console.drain_seconds == 3.0
    assert got.of(Qemu).memory_default.linux == 1 << 30
    assert got.of(Qemu).memory_default.inmate == 32 << 20
    assert got.inmate.host_paths == ("/srv/inmates",)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("bakend = 1", "bakend: unknown key", "did you mean backend?"),
        (
            "[console]\nwindow_byte = 1",
            "console.window_byte: unknown key",
            "did you mean console.window_bytes?",
        ),
        ("window_bytes = 1", "window_bytes: unknown key", "did you mean console.window_bytes?"),
        ("[inmate]\nzzzz = 1", "inmate.zzzz: unknown key", "known here: host_paths"),
        (
            "[qemu.memory_default]\nlinu = 1",
            "qemu.memory_default.linu: unknown",
            "qemu.memory_default.linux?",
        ),
        ("[qemu]\naccel = 'xen'", "qemu.accel: invalid enum value 'xen'", 'one of "auto", "kvm", "tcg"'),
        ("[log]\nenabled = 'yes'", "log.enabled: expected bool, got str", "the default is true"),
        ("log = 3", "log: expected object, got int", ""),
        ("[log]\nmax_bytes = '1 XB'", "log.max_bytes: expected a size such as", ""),
        ("[log]\nmax_bytes = -1", "log.max_bytes: expected a size of 0 or more, got -1", ""),
        ("[log]\nmax_bytes = 1.5", 'log.max_bytes: expected a size such as 65536 or "64 KiB", got float', ""),
        ("[log]\nmax_bytes = true", "got bool", ""),
        ("[console]\ndrain_seconds = -1", "console.drain_seconds: expected float >= 0.0", ""),
        ("[console]\nwindow_bytes = 0", "console: window_bytes: expected at least 4 KiB, got 0 B", ""),
        ("[inmate]\nhost_paths = ['x']", "inmate: host_paths: expected absolute paths, got 'x'", ""),
        ("[inmate]\nhost_paths = [1]", "inmate.host_paths[0]: expected str, got int", ""),
        ("a = ?", "not TOML: Invalid value (at line 1, column 5)", "toml.io"),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, text: str, message: str, hint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        configured.load(path)
    assert path in caught.value.msg
    assert message in caught.value.msg
    assert hint in (caught.value.hint or "")


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b'a = "\xff"')
    with pytest.raises(ConfigError, match="not TOML"):
        configured.load(str(tmp_path / "c.toml"))


def test_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPHI_CONFIG", raising=False)
    monkeypatch.setattr(loading, "DEFAULT_PATH", str(tmp_path / "none.toml"))
    assert configured.load() == configured.schema().kind()
    with pytest.raises(ConfigError, match="not found"):
        configured.load(str(tmp_path / "none.toml"))
    monkeypatch.setenv("RUNPHI_CONFIG", write(tmp_path, "backend = 'x'"))
    assert configured.load().backend == "x"
    monkeypatch.setenv("RUNPHI_CONFIG", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot read configuration"):
        configured.load()


@pytest.mark.parametrize(
    ("text", "accel"),
    [("", "tcg"), ("[qemu]\nstop_seconds = 1", "tcg"), ('[qemu]\naccel = "kvm"', "kvm"), ('runc = "/opt/runc"', "tcg")],
)
def test_accelerator_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, accel: str) -> None:
    monkeypatch.setenv(ACCEL_VARIABLE, "tcg")
    assert configured.load(write(tmp_path, text)).of(Qemu).accel == accel


def test_accelerator_of_the_environment_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ACCEL_VARIABLE, "fast")
    monkeypatch.setattr(loading, "DEFAULT_PATH", "/nonexistent/config.toml")
    with pytest.raises(ConfigError, match=r"RUNPHI_ACCEL: qemu.accel: invalid enum value 'fast'.*one of"):
        configured.load()


def test_real_runc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    monkeypatch.setattr(realrunc, "CANDIDATES", tuple(map(str, paths)))
    assert Config().real_runc() is None
    paths[1].touch(0o755)
    assert Config().real_runc() == str(paths[1])
    assert Config(runc=str(paths[0])).real_runc() is None
    # our own launcher under that name is passed over
    paths[0].symlink_to(Path(__file__).parents[2] / "bin" / "runphi")
    assert Config().real_runc() == str(paths[1])
    assert Config(runc=str(paths[0])).real_runc() is None
    (tmp_path / "a_vanilla").touch(0o755)
    assert Config(runc=str(paths[0])).real_runc() == str(tmp_path / "a_vanilla")


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (7, 7),
        ("7", 7),
        (" 64 MiB ", 64 << 20),
        ("64mib", 64 << 20),
        ("3 kB", 3000),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(value: object, size: int) -> None:
    assert Size.parse(value) == size


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1 << 20, 3 << 30, (1 << 20) + 1])
def test_size_text_reads_back(size: int) -> None:
    assert Size.parse(Size(size).text()) == size
    assert f"{Size(size)}" == str(size)


def test_reference_is_current() -> None:
    page = reference.reference(configured.schema().kind())
    assert PAGE.read_text() == page, f"run: python -m backends.configured > {PAGE}"


@pytest.mark.parametrize("text", ["x = " + "9" * 5000, "x = " + "[" * 5000, "\x00"], ids=["digits", "depth", "nul"])
def test_toml_that_is_too_much(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match="not TOML"):
        configured.load(str(tmp_path / "config.toml"))
