# SPDX-License-Identifier: Apache-2.0
"""Sources as people write them, and what an annotation may name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consoles.errors import SourceError
from consoles.sources import describe
from consoles.sources.describe import Exec, Pty, Unix
from consoles.sources.process import ProcessSource
from consoles.sources.pty import PtySource
from consoles.sources.serial import SerialSource
from consoles.sources.settings import SerialSettings
from consoles.sources.unixsocket import UnixSource
from runphi_async.config.loading import from_table
from runphi_async.errors import ConfigError, SpecError
from runphi_async.partition.sources import from_annotation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("pty:/dev/pts/5", Pty("/dev/pts/5")),
        ("unix:/run/a b.sock", Unix("/run/a b.sock")),
        ("serial:/dev/ttyUSB0,9600n8,rtscts", SerialSettings("/dev/ttyUSB0", 9600, rtscts=True)),
        ("exec:jailhouse console -f", Exec(("jailhouse", "console", "-f"))),
        ("exec:sh -c 'a b'", Exec(("sh", "-c", "a b"))),
    ],
)
def test_what_is_understood(text: str, what: describe.Description) -> None:
    assert describe.parse(text, commands=True) == what


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it must begin with one of pty:, unix:, serial:$"),
        ("/dev/ttyS0", "it must begin with one of"),
        ("tcp:host:1", "it must begin with one of"),
        ("pty:", "at character 5: the path is missing"),
        ("pty:pts/5", "at character 5: 'pts/5' is not an absolute path"),
        ("unix:/run/a\0b", "at character 12: a path cannot hold a NUL"),
        ("serial:/dev/ttyS0,q", "at character 19: 'q' is none of a speed"),
        ("exec:rm -rf /", "only the configuration may name a command"),
    ],
)
def test_what_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        describe.parse(text)


@pytest.mark.parametrize(("text", "problem"), [("exec:", "missing"), ("exec:'a", "no closing quotation")])
def test_commands_that_are_refused(text: str, problem: str) -> None:
    with pytest.raises(SourceError, match=f"at character 6: .*{problem}"):
        describe.parse(text, commands=True)


@settings(deadline=None)  # a busy machine
@given(st.text(max_size=40), st.booleans())
def test_any_text_is_understood_or_refused(text: str, commands: bool) -> None:
    try:
        what = describe.parse(text, commands=commands)
    except SourceError:
        return
    assert commands or not isinstance(what, Exec)


def test_each_kind_has_its_source() -> None:
    made = [describe.make(what) for what in (Pty("/a"), Unix("/a"), SerialSettings("/a"), Exec(("a",)))]
    assert [type(source) for source in made] == [PtySource, UnixSource, SerialSource, ProcessSource]


def test_what_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "by-id").mkdir()
    (tmp_path / "ttyUSB0").touch()
    (tmp_path / "ttyUSB1").touch()
    link = tmp_path / "by-id" / "board"
    link.symlink_to(tmp_path / "ttyUSB0")
    by_id, port = str(tmp_path / "by-id"), str(tmp_path / "ttyUSB0")

    assert describe.is_allowed(str(link), [by_id])  # whoever may write there decides where the links lead
    assert describe.is_allowed(str(link), [str(link)])
    assert describe.is_allowed(str(link), [port])  # what it really is
    assert describe.is_allowed(port, [str(link)])
    assert not describe.is_allowed(str(link), [])
    assert not describe.is_allowed(port, [by_id])
    assert not describe.is_allowed(f"{by_id}/../ttyUSB1", [by_id])
    assert not describe.is_allowed(str(tmp_path / "ttyUSB1"), [port])
    assert not describe.is_allowed(port + "1", [port])
    assert describe.is_allowed(port, ["/"])


def test_annotations_name_only_what_the_configuration_allows() -> None:
    key = "org.runphi.channel.gps"
    assert from_annotation(key, "serial:/dev/ttyS7,9600 ", ["/dev/ttyS7"]) == SerialSettings("/dev/ttyS7", 9600)
    with pytest.raises(SpecError, match=f"cannot use annotation {key}: .* no source /dev/ttyS7; .*host_paths"):
        from_annotation(key, "serial:/dev/ttyS7,9600", ["/dev/ttyS8"])
    with pytest.raises(SpecError, match=f"cannot understand annotation {key}: .*at character 19"):
        from_annotation(key, "serial:/dev/ttyS7,x", ["/dev"])
    with pytest.raises(SpecError, match="only the configuration may name a command"):
        from_annotation(key, "exec:id", ["/"])


def test_the_configuration_is_checked_when_it_is_read() -> None:
    config = from_table({"hypervisor": {"console": "exec:jailhouse console -f"}, "source": {"host_paths": ["/dev/x"]}})
    assert config.hypervisor.console == "exec:jailhouse console -f"
    with pytest.raises(ConfigError, match="hypervisor: console: cannot understand source"):
        from_table({"hypervisor": {"console": "jailhouse console -f"}})
    with pytest.raises(ConfigError, match="source: host_paths: expected absolute paths"):
        from_table({"source": {"host_paths": ["dev"]}})
