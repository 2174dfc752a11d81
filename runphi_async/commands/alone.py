# SPDX-License-Identifier: Apache-2.0
"""``runphi doctor`` where no supervisor can be had: it is the one verb that must work on a machine that is ill.

The thin client becomes this when no supervisor starts or answers. A configuration that cannot be used is a finding
like any other; the rest of the machine is looked at with the defaults.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import anyio

from backends.base import Finding, Level
from backends.configured import load
from backends.detect import Detection
from runphi_async import wire
from runphi_async.commands.cli import HelpAsked, global_parser, verb_parser
from runphi_async.commands.doctor import check, shown, worst
from runphi_async.config.schema import Config
from runphi_async.doctor import checkup
from runphi_async.doctor import report as doctor_report
from runphi_async.errors import ConfigError, RunphiError

if TYPE_CHECKING:
    from argparse import Namespace


class Patient(NamedTuple):
    """What is looked at.

    :ivar problem: what is wrong with the configuration file, "" when nothing is; then ``config`` is the defaults.
    """

    config: Config
    problem: str
    why: str
    run_dir: str


def main(why: str, argv: list[str]) -> int:
    """Answer the command line ``argv``; ``why``: there is no supervisor."""
    try:
        given = global_parser().parse_args(argv)
        options = verb_parser("doctor")[0].parse_args(given.rest)
        check(options)
        return anyio.run(_examine, why, options)
    except HelpAsked as asked:
        sys.stdout.write(str(asked))
        return 0
    except RunphiError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter complains as it ends
        return 1


def read(why: str) -> Patient:
    """Read the configuration as far as that is possible."""
    run_dir = os.path.abspath(os.environ.get("RUNPHI_RUN_DIR") or wire.DEFAULT_RUN_DIR)
    try:
        return Patient(load(), "", why, run_dir)
    except ConfigError as exc:
        return Patient(Config(), str(exc), why, run_dir)


def complaints(patient: Patient) -> list[Finding]:
    """Say what keeps the supervisor from answering."""
    found = []
    if patient.problem:
        text = f"cannot use the configuration: {patient.problem}"
        mend = "mend the file; until then no verb works, and the defaults are what is looked at here"
        found.append(Finding(Level.ERROR, "runphi", text, mend))
    if not patient.problem or patient.problem not in patient.why:
        log = patient.config.supervisor.log_file or os.path.join(patient.run_dir, "supervisor.log")
        text = f"cannot reach a supervisor: {patient.why}"
        found.append(Finding(Level.ERROR, "runphi", text, f"mend what is named there; {log} may say more"))
    return found


async def _examine(why: str, options: Namespace) -> int:
    patient = await anyio.to_thread.run_sync(read, why)
    found = complaints(patient)
    found += await checkup.examine(Detection(patient.config, patient.run_dir, {}, None))
    if options.report is None:
        sys.stdout.write(shown(found, as_json=options.json).decode("utf-8", "surrogateescape"))
        sys.stdout.flush()
        return worst(found)
    case = doctor_report.Case(patient.config, patient.problem, patient.run_dir, tuple(found), options.with_consoles)
    report = await doctor_report.make(case)
    if options.report == "-":
        sys.stdout.write(report.decode())
    else:
        path = str(await anyio.Path(options.report).absolute())
        await anyio.to_thread.run_sync(doctor_report.save, path, report)
        sys.stdout.write(doctor_report.made(path, report))
    sys.stdout.flush()
    return 0
