# SPDX-License-Identifier: Apache-2.0
"""`runphi doctor`: whether this machine has what containers will ask for, and how to mend what it has not.

With ``--report`` all that helps to understand a failure, in one text to attach to a bug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from backends.base import Finding, Level
from backends.configured import load
from runphi_async.doctor import checkup
from runphi_async.doctor import report as doctor_report
from runphi_async.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.config.schema import Config
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--json", action="store_true", help="a list of objects instead of lines")
    parser.add_argument("--report", metavar="FILE", help="write a report to attach to a bug; - for standard output")
    parser.add_argument(
        "--with-consoles", action="store_true", help="the report also shows the end of what each guest printed"
    )


def check(given: Namespace) -> None:
    """Refuse options that make no sense together.

    :raises UsageError: they do not.
    """
    if given.with_consoles and given.report is None:
        raise UsageError("--with-consoles belongs to --report", "give --report FILE as well")
    if given.json and given.report is not None:
        raise UsageError("a report is text: --json does not go with --report", "leave one of them out")


def shown(found: Sequence[Finding], *, as_json: bool) -> bytes:
    """Return the findings as they are printed."""
    return checkup.as_json(found) if as_json else checkup.as_text(found).encode("utf-8", "surrogateescape")


def worst(found: Sequence[Finding]) -> int:
    """Return the exit status: 1 when something keeps everything from working."""
    return int(any(finding.level is Level.ERROR for finding in found))


def configured(running: Config) -> tuple[str, list[Finding]]:
    """Compare the file with what the supervisor has read of it (blocks): what is wrong with it, and the findings."""
    try:
        if load() == running:
            return "", []
    except ConfigError as exc:
        text = f"cannot use the configuration: {exc}"
        return str(exc), [Finding(Level.ERROR, "runphi", text, "mend the file: the next supervisor will not start")]
    text = "the configuration has changed since the supervisor has read it"
    return "", [Finding(Level.NOTE, "runphi", text, "end the supervisor, guests go on: the next verb starts another")]


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> int:
    """Print what was found, or write the report; a report that was written is a success whatever it says."""
    check(given)
    problem, found = await anyio.to_thread.run_sync(configured, supervisor.config)
    found += await checkup.examine(supervisor.detection)
    if given.report is None:
        await call.out(shown(found, as_json=given.json))
        return worst(found)
    case = doctor_report.Case(
        supervisor.config, problem, supervisor.store.run_dir, tuple(found), with_consoles=given.with_consoles
    )
    report = await doctor_report.make(case)
    if given.report == "-":
        await call.out(report)
    else:
        path = call.path(given.report)
        await anyio.to_thread.run_sync(doctor_report.save, path, report)
        await call.out(doctor_report.made(path, report))
    return 0
