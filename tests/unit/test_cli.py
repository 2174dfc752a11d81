# SPDX-License-Identifier: Apache-2.0
"""The command line: every option as engines write it, refusals with a hint, and errors in the form engines read."""

from __future__ import annotations

import datetime
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runphi_async import client, wire
from runphi_async.commands import cli, tables
from runphi_async.commands.verbs import VERBS
from runphi_async.config.schema import Config
from runphi_async.errors import NotFoundError, RunphiError, SpecError, UsageError
from tests.unit import clikit
from tests.unit.clikit import answer

if TYPE_CHECKING:
    from runphi_async.container.registry import Supervisor

HEX = "0123456789abcdef" * 4


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    return clikit.supervisor(Config(runc="/nonexistent/runc"), str(tmp_path))


def parsed(*argv: str) -> tuple[Any, Any]:
    given = cli.global_parser().parse_args(list(argv))
    parser, _ = cli.verb_parser(given.verb)
    return given, parser.parse_args(given.rest)


# Section: what engines write

SHIM = ["--root", "/run/containerd/runc/default", "--log", "/b/log.json", "--log-format", "json"]
CONMON = ["--log-format=json", "--log", "/run/oci-log"]

#: argv tails recorded from containerd, docker, CRI, podman and conmon (docs/reference/engines.md)
RECORDED = [
    ([*SHIM, "create", "--bundle", "/b", "--pid-file", "/b/init.pid", HEX], {"id": HEX, "bundle": "/b"}),
    (
        [*SHIM, "create", "--bundle", "/b", "--pid-file", "/p", "--console-socket", "/tmp/pty1/pty.sock", "c1"],
        {"id": "c1", "console_socket": "/tmp/pty1/pty.sock", "pid_file": "/p"},
    ),
    (
        ["--systemd-cgroup", *CONMON, "create", "--bundle", "/b", "--pid-file", "/p", "--no-pivot", "--no-new-keyring",
         "--preserve-fds", "2", "--console-socket", "/s", HEX],
        {"id": HEX, "preserve_fds": 2, "no_pivot": True},
    ),
    (["create", "--bundle=/b", "--pid-file=/p", "c1"], {"bundle": "/b", "pid_file": "/p", "id": "c1"}),
    ([*SHIM, "start", "c1"], {"id": "c1"}),
    ([*SHIM, "kill", "c1", "15"], {"id": "c1", "signal": "15", "all": False}),
    ([*SHIM, "kill", "--all", HEX, "9"], {"id": HEX, "signal": "9", "all": True}),
    (["kill", "c1"], {"signal": "SIGTERM"}),
    (["kill", "c1", "KILL"], {"signal": "KILL"}),
    ([*SHIM, "delete", "c1"], {"force": False}),
    ([*SHIM, "delete", "--force", "c1"], {"force": True, "id": "c1"}),
    (
        [*SHIM, "exec", "--process", "/tmp/f", "--console-socket", "/s", "--detach", "--pid-file", "/p", "c1"],
        {"id": "c1", "detach": True, "command": []},
    ),
    (["exec", "--pid-file", "/p", "--process", "/f", "--detach", "--tty", "c1"], {"tty": True, "id": "c1"}),
    (["exec", "c1", "ls", "-la", "--force"], {"id": "c1", "command": ["ls", "-la", "--force"]}),
    ([*SHIM, "ps", "--format", "json", "c2"], {"format": "json", "id": "c2"}),
    (["ps", "c2", "-ef"], {"id": "c2", "ps_options": ["-ef"]}),
    ([*SHIM, "pause", "c1"], {"id": "c1"}),
    ([*SHIM, "resume", "c1"], {"id": "c1"}),
    ([*SHIM, "update", "--resources", "-", HEX], {"resources": "-", "id": HEX}),
    ([*SHIM, "update", "--resources=-", HEX], {"resources": "-"}),
    (["update", "--memory", "-1", "--cpu-quota=-1", "c1"], {"memory": -1, "cpu_quota": -1}),
    (["state", "c1"], {"id": "c1"}),
    (["list", "-q"], {"quiet": True}),
    (["list", "--format=json"], {"format": "json"}),
    (["events", "--stats", "c1"], {"stats": True}),
    (["events", "--interval", "5s", "c1"], {"interval": "5s"}),
    (["spec", "--bundle", "/b"], {"bundle": "/b"}),
    (["run", "-d", "--bundle", "/b", "--pid-file", "/p", "c1"], {"detach": True, "id": "c1"}),
    (["attach", "--detach-keys", "", "c1"], {"detach_keys": ""}),
    (["attach", "c1", "--from", "50"], {"start": 50}),
    (["logs", "-f", "-n", "5", "c1", "--from", "7"], {"follow": True, "tail": "5", "start": 7}),
    (["logs", "--since=10m", "c1"], {"since": "10m"}),
    (["checkpoint", "--image-path", "/i", "--leave-running", "c1"], {"leave_running": True}),
    (["restore", "--image-path", "/i", "--bundle", "/b", "--detach", "c1"], {"detach": True}),
    (["--debug", "--rootless", "false", "--criu=/x", "state", "c1"], {"id": "c1"}),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "expected"), RECORDED, ids=lambda value: " ".join(value)[:60])
def test_recorded_command_lines_parse(argv: list[str], expected: dict[str, object]) -> None:
    _, given = parsed(*argv)
    assert {key: getattr(given, key) for key in expected} == expected


@pytest.mark.parametrize("form", [["--root", "/r"], ["--root=/r"]])
def test_global_options_in_both_forms(form: list[str]) -> None:
    given, _ = parsed(*form, "--log-format=json", "--log", "l", "state", "c1")
    assert (given.root, given.log_format, given.log, given.verb) == ("/r", "json", "l", "state")


def test_options_behind_the_verb_are_the_verbs() -> None:
    given, _ = parsed("delete", "--force", "c1")
    assert given.rest == ["--force", "c1"]


# Section: refusals


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["craete", "c1"], "unknown verb 'craete'; did you mean 'create'?"),
        (["xyzzy"], "unknown verb 'xyzzy'; runphi --help lists them"),
        (["state"], "the following arguments are required: ID; runphi state --help shows how"),
        (["state", "c1", "c2"], "unrecognized arguments: c2; runphi state --help shows how"),
        (["delete", "--frce", "c1"], "unrecognized arguments: --frce; runphi delete --help shows how"),
        (["delete", "--forc", "c1"], "unrecognized arguments: --forc; runphi delete --help shows how"),
        (["--rot", "/r", "state", "c1"], "unrecognized arguments: --rot; runphi --help shows how"),
        (["--log-format", "xml", "state", "c1"], "argument --log-format: invalid choice: 'xml'"),
        (["create", "--preserve-fds", "many", "c1"], "argument --preserve-fds: invalid number value: 'many'"),
        (["kill", "c1", "SIGFOO"], "unknown signal 'SIGFOO'"),
        (["logs", "--tail", "x", "c1"], "container does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_what_is_refused_says_why(supervisor: Supervisor, argv: list[str], message: str) -> None:
    call = await answer(supervisor, *argv)
    assert call.status == 1
    assert call.said(wire.ERR).startswith(message)
    assert call.said(wire.ERR).endswith("\n")
    assert call.said(wire.OUT) == ""


@pytest.mark.parametrize("verb", ["state", "start", "kill", "delete", "pause", "resume", "ps", "update", "events"])
async def test_an_unknown_container_is_said_in_the_words_engines_know(supervisor: Supervisor, verb: str) -> None:
    call = await answer(supervisor, "--root", "/nonexistent", verb, "c1")
    assert call.status == 1
    assert call.said(wire.ERR).startswith("container does not exist")


async def test_force_delete_of_an_unknown_container_is_fine(supervisor: Supervisor) -> None:
    call = await answer(supervisor, "delete", "--force", "c1")
    assert (call.status, call.said(wire.ERR)) == (0, "")


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS.values() if verb.shared])
async def test_what_is_not_ours_goes_to_runc(tmp_path: Path, verb: str) -> None:
    supervisor = clikit.supervisor(Config(runc="/bin/true"), str(tmp_path))
    call = await answer(supervisor, verb, "c1")
    assert call.frames == [(wire.RUNC, b"/bin/true")]


async def test_without_a_runc_an_ordinary_container_is_an_error_engines_can_read(tmp_path: Path) -> None:
    launcher = Path(__file__).resolve().parents[2] / "bin" / "runphi"
    (tmp_path / "runc").symlink_to(launcher)  # it is there, but it is ourselves
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text('{"ociVersion": "1.0.2", "root": {"path": "rootfs"}}')
    supervisor = clikit.supervisor(Config(runc=str(tmp_path / "runc")), str(tmp_path))
    log = tmp_path / "log.json"
    words = ["--log", str(log), "--log-format", "json", "create", "--bundle", str(bundle), "c1"]
    call = await answer(supervisor, *words)
    assert call.status == 1
    assert json.loads(log.read_text())["msg"].startswith("cannot run an ordinary container: there is no runc")


async def test_the_docker_backend_makes_ordinary_containers(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text(
        '{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": {"args": ["x"], "env": ["LINUX=1"]}}'
    )
    for verb in ("create", "run"):
        supervisor = clikit.supervisor(Config(runc="/bin/true", backend="docker"), str(tmp_path))
        call = await answer(supervisor, verb, "--bundle", str(bundle), "c1")
        assert call.frames == [(wire.RUNC, b"/bin/true")]
    call = await answer(supervisor, "plan", str(bundle))
    assert "it asks for no partition" in call.said(wire.ERR)


# Section: help


@pytest.mark.parametrize("argv", [[], ["help"], ["--help"], ["-h"]], ids=str)
async def test_help_lists_every_verb(supervisor: Supervisor, argv: list[str]) -> None:
    call = await answer(supervisor, *argv)
    assert call.status == 0
    for verb in VERBS.values():
        assert re.search(rf"^  {verb.name} +{re.escape(verb.text)}$", call.said(wire.OUT), re.M)


@pytest.mark.parametrize("verb", VERBS)
async def test_every_verb_has_a_module_and_help(supervisor: Supervisor, verb: str) -> None:
    call = await answer(supervisor, verb, "--help")
    assert call.status == 0
    assert call.said(wire.OUT).startswith(f"usage: runphi {verb}")
    assert VERBS[verb].text[1:].split("(", maxsplit=1)[0] in " ".join(call.said(wire.OUT).split())


def test_the_client_knows_the_same_verbs() -> None:
    """It decides before anything is loaded, and has the names for itself."""
    assert sorted(client.SHARED_VERBS) == sorted(verb.name.encode() for verb in VERBS.values() if verb.shared)
    assert sorted(client.REPEATABLE) == sorted(verb.name.encode() for verb in VERBS.values() if verb.repeatable)
    assert client.DOCTOR.decode() in VERBS


def test_the_client_takes_as_many_words_before_the_verb_as_the_parser() -> None:
    with_value = [action for action in cli.global_parser()._actions if action.option_strings and action.nargs is None]
    names = {name for action in with_value for name in action.option_strings}
    assert {name.decode() for name in client.GLOBAL_VALUES} >= names


@pytest.mark.parametrize("verb", VERBS)
async def test_who_is_only_in_the_group_may_use_consoles(supervisor: Supervisor, verb: str) -> None:
    async with clikit.client(verb, "--help") as one:
        one.call.restricted = True
        await cli.run(one.call, supervisor)
        one.read()
    allowed = "attach, console, list, logs, state, stats, version, who"
    said = f"cannot {verb}: only root may; members of the group may {allowed}\n"
    refused = one.answer.said(wire.ERR) == said
    assert refused is not VERBS[verb].group
    assert one.answer.status == int(refused)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("A", "LONG", "C"), ("a", "b", ""), ("wide", "b", "c")]
    assert tables.table(rows) == "A     LONG  C\na     b\nwide  b     c\n"
    assert tables.table(rows[:1], gap=" ") == "A LONG C\n"


def test_every_module_is_a_verb() -> None:
    from runphi_async import commands

    folder = Path(commands.__file__).parent
    shared = {"--init--", "alone", "cli", "detachkeys", "manual", "shown", "tables", "verbs"}
    assert {path.stem.replace("_", "-") for path in folder.glob("*.py")} - shared == set(VERBS)


@pytest.mark.parametrize("argv", [["--version"], ["-v"], ["version"]], ids=str)
async def test_version(supervisor: Supervisor, argv: list[str]) -> None:
    call = await answer(supervisor, *argv)
    assert re.fullmatch(r"runphi version \d+\.\d+\.\d+\nspec: 1\.\d+\.\d+\n", call.said(wire.OUT))
    assert call.status == 0


# Section: the error log


def last_error(path: Path) -> tuple[str, list[dict[str, str]]]:
    """Read a log as containerd's getLastRuntimeError does: any bad line spoils all."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        datetime.datetime.fromisoformat(entry["time"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["time"])
    return [entry["msg"] for entry in entries if entry["level"] == "error"][-1], entries


async def test_errors_go_to_the_log_in_json(supervisor: Supervisor, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    words = ["--log", str(log), "--log-format", "json"]
    await answer(supervisor, *words, "state", "c1")
    call = await answer(supervisor, *words, "create", "--bundle", "/nonexistent", "c1")
    message, entries = last_error(log)
    assert len(entries) == 2
    assert message == call.said(wire.ERR).rstrip("\n")
    assert message.startswith("cannot read /nonexistent/config.json")
    assert entries[0]["msg"].startswith("container does not exist")


async def test_success_writes_no_log(supervisor: Supervisor, tmp_path: Path) -> None:
    await answer(supervisor, "--log", str(tmp_path / "log"), "version")
    assert not (tmp_path / "log").exists()


async def test_the_log_may_be_relative_and_is_appended_to(supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"level":"error","msg":"old","time":"2026-01-01T00:00:00Z"}\n')
    await answer(supervisor, "--log=log", "--log-format=json", "state", "c1", cwd=str(tmp_path))
    message, entries = last_error(tmp_path / "log")
    assert (len(entries), message.partition(";")[0]) == (2, "container does not exist")


async def test_a_log_that_cannot_be_written_hides_no_error(supervisor: Supervisor) -> None:
    call = await answer(supervisor, "--log", "/nonexistent/log", "state", "c1")
    assert call.status == 1
    first, second = call.said(wire.ERR).splitlines()
    assert first.startswith("runphi: cannot write /nonexistent/log")
    assert second.startswith("container does not exist")


async def test_a_path_of_strange_bytes_makes_a_log_that_can_be_read(supervisor: Supervisor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    bundle = os.fsdecode(b'/tmp/\xff\xfe\n"quoted"')
    call = await answer(supervisor, "--log", str(log), "--log-format", "json", "create", "--bundle", bundle, "c1")
    assert call.status == 1
    message, entries = last_error(log)
    assert len(entries) == 1
    assert "quoted" in message


@pytest.mark.parametrize("text", ["plain", 'with "quotes"', "back\\slash", "ünï"])
def test_lines_of_the_log(text: str) -> None:
    line = cli.log_line("json", text)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line)["msg"] == text
    plain = cli.log_line("text", text).decode()
    assert re.match(r'time="[^"]+Z" level=error msg="', plain)
    assert plain.count("\n") == 1


def test_find_or_pass(supervisor: Supervisor, tmp_path: Path) -> None:
    options = cli.Globals("/r", True, None, "text", False)
    with pytest.raises(NotFoundError):
        cli.find_or_pass(supervisor, "c1", options)
    with pytest.raises(cli.PassThrough):
        cli.find_or_pass(clikit.supervisor(Config(runc="/bin/true"), str(tmp_path)), "c1", options)


def test_errors_carry_their_hint() -> None:
    assert str(SpecError("cannot x", "do y")) == "cannot x; do y"
    assert issubclass(UsageError, RunphiError)
