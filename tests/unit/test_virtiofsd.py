# SPDX-License-Identifier: Apache-2.0
"""Both programs called virtiofsd are found and spoken to, each in its own way."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest

from backends.qemu import virtiofsd
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

OLDER = """virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)
Copyright (c) 2003-2022 Fabrice Bellard and the QEMU Project developers
using FUSE kernel interface version 7.36
"""
NEWER = "virtiofsd 1.13.2\n"


def program(path: Path, said: str, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho asked >>{path}.asked\ncat <<'END'\n{said}END\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_the_older_takes_a_list() -> None:
    assert virtiofsd.options(OLDER, 7, "/run/a,b\\c") == [
        "--fd=7", "-o", r"source=/run/a\,b\\c,sandbox=namespace,cache=auto,xattr,modcaps=+sys_admin",
    ]  # fmt: skip


@pytest.mark.parametrize("said", [NEWER, "virtiofsd 2.0.0-dev\n"])
def test_the_newer_takes_words(said: str) -> None:
    words = virtiofsd.options(said, 7, "/run/a,b\\c")
    assert words[:2] == ["--fd=7", "--shared-dir=/run/a,b\\c"]
    # what the older one does without being told
    assert {"--sandbox=namespace", "--cache=auto", "--xattr", "--modcaps=+sys_admin", "--no-announce-submounts"} < {
        *words
    }
    assert "-o" not in words


@pytest.mark.parametrize("said", [OLDER, NEWER])
def test_it_is_asked_once_as_long_as_it_is_the_same(tmp_path: Path, said: str) -> None:
    path = program(tmp_path / "virtiofsd", said)
    for _ in range(3):
        assert virtiofsd.command(str(path), 3, "/share") == [str(path), *virtiofsd.options(said, 3, "/share")]
    assert (tmp_path / "virtiofsd.asked").read_text() == "asked\n"
    upgraded = program(path, "virtiofsd 1.99.0\n")
    assert "--shared-dir=/share" in virtiofsd.command(str(upgraded), 3, "/share")


def test_a_name_is_looked_up_where_distributions_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(virtiofsd, "PLACES", (str(tmp_path / "libexec"), str(tmp_path / "lib/qemu")))
    assert virtiofsd.find("virtiofsd") is None
    older = program(tmp_path / "lib/qemu/virtiofsd", OLDER)
    assert virtiofsd.find("virtiofsd") == str(older)
    newer = program(tmp_path / "libexec/virtiofsd", NEWER)
    assert virtiofsd.find("virtiofsd") == str(newer)
    own = program(tmp_path / "bin/virtiofsd", NEWER)
    assert virtiofsd.find("virtiofsd") == str(own)
    # a path is a path
    assert virtiofsd.find(str(older)) == str(older)
    assert virtiofsd.find(str(tmp_path / "nosuch/virtiofsd")) is None


def test_what_is_missing_or_broken_is_told_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian", "VERSION_ID": "13"})
    missing, broken = tmp_path / "missing", program(tmp_path / "broken", "help!\n", status=3)
    for path in (missing, broken):
        with pytest.raises(BackendError) as caught:
            virtiofsd.command(str(path), 3, "/share")
        assert str(path) in caught.value.msg
        assert caught.value.hint == "apt-get install virtiofsd, or set qemu.virtiofsd"


@pytest.mark.parametrize(
    ("release", "package"),
    [
        ({"ID": "debian", "VERSION_ID": "12"}, "qemu-system-common"),
        ({"ID": "debian", "VERSION_ID": "13"}, "virtiofsd"),
        ({"ID": "debian"}, "virtiofsd"),
        ({"ID": "ubuntu", "VERSION_ID": "22.04"}, "qemu-system-common"),
        ({"ID": "ubuntu", "VERSION_ID": "24.04"}, "virtiofsd"),
    ],
)
def test_the_package_of_each_release(release: dict[str, str], package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    assert virtiofsd.package() == package


def test_a_machine_that_does_not_say_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> dict[str, str]:
        raise OSError("no such file")

    monkeypatch.setattr(platform, "freedesktop_os_release", nothing)
    assert virtiofsd.package() == "virtiofsd"
