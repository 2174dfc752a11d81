# SPDX-License-Identifier: Apache-2.0
"""The command line, parsed where it is answered: in the supervisor. One module of ``commands`` a verb.

Options are runc's, and so are the ways to write them (``--opt v`` and ``--opt=v``); abbreviations are refused.
Nothing is printed on success unless the verb's answer is text.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib
import os
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol, cast

import anyio
import msgspec

from runphi_async import wire
from runphi_async.commands.verbs import VERBS
from runphi_async.errors import NotFoundError, RunphiError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call

_NO_RUNC: Final = "install runc, or set `runc` in the configuration to one that is not runPHI"


class Globals(NamedTuple):
    """Options before the verb; paths absolute. ``root_given``: the caller named the root itself."""

    root: str
    root_given: bool
    log: str | None
    log_format: str
    systemd_cgroup: bool


class HelpAsked(Exception):
    """Raised by the parser instead of printing and exiting."""


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing and exiting: it runs in the supervisor."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(message, f"{self.prog} --help shows how")

    def print_help(self, file: object = None) -> None:
        """Hand the help text up."""
        raise HelpAsked(self.format_help())

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Never exit."""
        raise UsageError(message or f"exit status {status}")


@functools.cache
def global_parser() -> Parser:
    """Return the parser of the options before the verb."""
    verbs = "\n".join(f"  {verb.name:<11} {verb.text}" for verb in VERBS.values())
    parser = Parser(
        prog="runphi",
        usage="runphi [global options] VERB [options]",
        description="OCI runtime whose containers are hypervisor partitions.",
        epilog=f"verbs:\n{verbs}\n\n`runphi VERB --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", metavar="DIR", help=f"root directory of containers (default {wire.DEFAULT_ROOT})")
    parser.add_argument("--log", metavar="FILE", help="append errors to FILE")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="form of --log's lines")
    parser.add_argument("--debug", action="store_true", help="accepted; the supervisor logs by its configuration")
    parser.add_argument("--systemd-cgroup", action="store_true", help="cgroupsPath is slice:prefix:name")
    parser.add_argument("--rootless", metavar="WHICH", help="accepted for compatibility; partitions need root")
    parser.add_argument("--criu", metavar="PATH", help="accepted for compatibility")
    parser.add_argument("--version", "-v", action="store_true", help="print the version")
    parser.add_argument("verb", nargs="?", metavar="VERB")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


class Module(Protocol):
    """What a verb takes and does: a module of its name."""

    def arguments(self, parser: Parser) -> None:
        """Declare the verb's words and options."""
        ...

    def run(
        self, call: Call, supervisor: Supervisor, options: Globals, given: argparse.Namespace
    ) -> Awaitable[int | None]:
        """Answer a call; return the exit status, None for 0."""
        ...


@functools.cache  # making a parser takes longer than most verbs
def verb_parser(name: str) -> tuple[Parser, Module]:
    """Return the parser and the module of a verb.

    :raises UsageError: there is no such verb.
    """
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, 1)
        raise UsageError(f"unknown verb {name!r}", f"did you mean {near[0]!r}?" if near else "runphi --help lists them")
    module = cast("Module", importlib.import_module(f"runphi_async.commands.{name.replace('-', '_')}"))
    text = VERBS[name].text
    parser = Parser(prog=f"runphi {name}", description=text[0].upper() + text[1:] + ".")
    module.arguments(parser)
    return parser, module


async def run(call: Call, supervisor: Supervisor) -> None:
    """Answer one command line."""
    options: Globals | None = None
    try:
        given = global_parser().parse_args(call.argv)
        options = Globals(
            root=call.path(given.root or wire.DEFAULT_ROOT),
            root_given=given.root is not None,
            # Root appends to no file for somebody who is not root.
            log=call.path(given.log) if given.log and not call.restricted else None,
            log_format=given.log_format,
            systemd_cgroup=given.systemd_cgroup,
        )
        name = "version" if given.version else given.verb
        if name in (None, "help"):
            raise HelpAsked(global_parser().format_help())
        if call.restricted:
            _check_allowed(name)
        parser, module = verb_parser(name)
        arguments = parser.parse_args([] if given.version else given.rest)
        if getattr(arguments, "id", None) is not None:
            await supervisor.adopted(arguments.id)
        status = await module.run(call, supervisor, options, arguments)
        await call.send(wire.EXIT, b"%d" % (status or 0))
    except HelpAsked as asked:
        await call.out(str(asked))
        await call.send(wire.EXIT, b"0")
    except PassThrough:
        runc = supervisor.config.real_runc()
        if runc is not None:
            await call.send(wire.RUNC, runc.encode())
        else:
            await _report(call, options, RunphiError("cannot run an ordinary container: there is no runc", _NO_RUNC))
    except RunphiError as exc:
        await _report(call, options, exc)


def _check_allowed(name: str) -> None:
    """Let somebody who is only a member of the group use consoles.

    :raises RunphiError: it is another verb.
    """
    allowed = sorted(verb.name for verb in VERBS.values() if verb.group)
    if name not in allowed:
        raise RunphiError(f"cannot {name}: only root may", f"members of the group may {', '.join(allowed)}")


class PassThrough(Exception):
    """Raised by a verb whose container belongs to the ordinary runtime."""


async def _report(call: Call, options: Globals | None, exc: RunphiError) -> None:
    # A path may hold any byte; neither JSON nor an engine can.
    text = " ".join(str(exc).split("\n")).encode("utf-8", "backslashreplace").decode()
    if options is not None and options.log is not None:
        try:
            await anyio.to_thread.run_sync(_append, options.log, log_line(options.log_format, text))
        except OSError as error:
            await call.error(f"runphi: cannot write {options.log}: {error.strerror}\n")
    await call.error(f"{text}\n")
    await call.send(wire.EXIT, b"%d" % exc.status)


def log_line(form: str, text: str) -> bytes:
    """Return an error as a line of --log; containerd takes the last one with level "error" as the reason."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if form == "json":
        return msgspec.json.encode({"level": "error", "msg": text, "time": now}) + b"\n"
    return f'time="{now}" level=error msg={msgspec.json.encode(text).decode()}\n'.encode()


def _append(path: str, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def find_named(supervisor: Supervisor, name: str, options: Globals) -> Container:
    """Return the container that a person means: by its name alone, unless --root says where.

    :raises NotFoundError: none has that name, or several have.
    """
    return supervisor.by_name(name, options.root if options.root_given else None)


def find_or_pass(supervisor: Supervisor, container_id: str, options: Globals) -> Container:
    """Return the container of an engine's verb; one that is not ours belongs to the ordinary runtime.

    :raises PassThrough: it is not ours.
    :raises NotFoundError: there is no ordinary runtime either.
    """
    try:
        return supervisor.find(container_id, options.root)
    except NotFoundError:
        if supervisor.config.real_runc() is None:
            raise
        raise PassThrough from None
