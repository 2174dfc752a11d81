# SPDX-License-Identifier: Apache-2.0
"""`runphi cell`: look into configuration files of Jailhouse, check them, compare them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import anyio
import msgspec

from backends.jailhouse import check, codec, describe
from backends.jailhouse.layout import DIALECTS
from backends.jailhouse.model import System
from runphi_async import regular
from runphi_async.errors import CellError

if TYPE_CHECKING:
    from argparse import Namespace

    from backends.jailhouse.model import Cell
    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call

#: Largest file that is read: more than any configuration that the hypervisor takes, system configurations included.
FILE_MAX = 1 << 20


def arguments(parser: Parser) -> None:
    """Declare the verb's words and options."""
    words = parser.add_subparsers(dest="word", required=True, metavar="WORD")
    dump = words.add_parser("dump", help="show what a file says, and which dialect of Jailhouse it is")
    dump.add_argument("--format", "-f", choices=("text", "json"), default="text")
    dump.add_argument("--dialect", choices=DIALECTS, help="take the file for this dialect, where two fit")
    dump.add_argument("file", metavar="FILE")
    checker = words.add_parser("check", help="say what would go wrong with cells")
    checker.add_argument("--format", "-f", choices=("text", "json"), default="text")
    checker.add_argument("--system", metavar="SYSCONFIG", help="the board's system configuration")
    checker.add_argument("file", metavar="FILE", nargs="+", help="cells, which are checked against each other too")
    differ = words.add_parser("diff", help="say how two files differ")
    differ.add_argument("old", metavar="A")
    differ.add_argument("new", metavar="B")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> int:
    """Answer; the status is 1 where a check found errors or two files differ."""
    if given.word == "dump":
        return await _dump(call, given)
    if given.word == "diff":
        return await _diff(call, given)
    return await _check(call, given)


async def _dump(call: Call, given: Namespace) -> int:
    data, config = await _load(call, given.file, given.dialect)
    why = "told so" if given.dialect else codec.detect(data).why
    dialect = codec.named(config.dialect)
    if given.format == "json":
        document = {"file": given.file, "size": len(data), "why": why, **describe.plain(config)}
        await call.out(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        return 0
    kind = "system configuration" if isinstance(config, System) else "cell"
    head = f"{given.file}: {kind}, {len(data)} bytes\ndialect {dialect.name}: {dialect.title}\n  because {why}\n\n"
    await call.out(head + describe.text(config))
    return 0


async def _check(call: Call, given: Namespace) -> int:
    system = None if given.system is None else await _load_system(call, given.system)
    contents = [(name, await _read(call, name)) for name in given.file]
    results = {name: check.check_bytes(data, system, _others(name, contents)) for name, data in contents}
    bad = any(check.hopeless(findings) for findings in results.values())
    if given.format == "json":
        rows = [{"file": name, **finding._asdict()} for name, findings in results.items() for finding in findings]
        await call.out(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
    else:
        await call.out("".join(_report(name, findings) for name, findings in results.items()))
    return int(bad)


def _report(name: str, findings: list[check.Finding]) -> str:
    lines = [f"{name}: {finding}" for finding in findings] or [f"{name}: nothing found"]
    return "\n".join(lines) + "\n"


def _others(name: str, contents: list[tuple[str, bytes]]) -> list[check.Named]:
    others = []
    for other, data in contents:
        if other == name:
            continue
        try:
            config = codec.decode(data)
        except CellError:
            continue  # said when its own turn comes
        if not isinstance(config, System):
            others.append(check.Named(other, config))
    return others


async def _diff(call: Call, given: Namespace) -> int:
    (_, old), (_, new) = await _load(call, given.old), await _load(call, given.new)
    lines = describe.differences(old, new)
    await call.out("".join(f"{line}\n" for line in lines))
    return int(bool(lines))


async def _load_system(call: Call, name: str) -> System:
    _, config = await _load(call, name)
    if not isinstance(config, System):
        raise CellError(f"{name}: is a cell", "--system takes the configuration that jailhouse enable gets")
    return config


async def _load(call: Call, name: str, dialect: str | None = None) -> tuple[bytes, Cell | System]:
    data = await _read(call, name)
    try:
        return data, codec.decode(data, dialect)
    except CellError as exc:
        raise CellError(f"{name}: {exc.msg}", exc.hint) from exc


async def _read(call: Call, name: str) -> bytes:
    try:
        return await anyio.to_thread.run_sync(_contents, call.path(name))
    except OSError as exc:
        raise CellError(f"cannot read {name}: {exc.strerror}") from exc


def _contents(path: str) -> bytes:
    try:
        return regular.read(path, FILE_MAX)
    except OSError as exc:
        if exc.errno != errno.EFBIG:
            raise
        raise CellError(f"{path}: too large for a configuration of Jailhouse", "name a .cell file") from None
