# SPDX-License-Identifier: Apache-2.0
"""The end of bin/test: each suite with its counts and time, the slowest tests, and how to run alone what failed.

``python -m tests.summary DIRECTORY`` reads what bin/test has left there: ``SUITE.xml``, pytest's report in the form
``xunit1`` (it names the file of a test); ``SUITE.again.xml``, that of the second run of what failed; and a line in
``suites`` for each suite: name, seconds, exit status. The lines of ``checks`` are tests that are commands, as linters
are: suite, seconds, exit status, command; all separated by tabs.

The last line is for machines: ``N passed, N failed, N skipped``. The exit status is 1 when anything failed.
"""

from __future__ import annotations

import os
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: How many of the slowest tests are shown.
SLOWEST: Final = 10
#: Characters that are shown of the message of a failure, and of the name of a slow test.
MESSAGE: Final = 160
#: Variables that change what the tests do, and so belong to the command that runs one again.
VARIABLES: Final = ("RUNPHI_ACCEL", "RUNPHI_FUZZ")
#: What runs one test of a suite; the others are pytest's own.
RUNNERS: Final = {"xen": "-m tests.xen"}
#: pytest's exit status when the selection names no test of the suite.
NOTHING_SELECTED: Final = 5


class Outcome(StrEnum):
    """How a test ended; unsteady: it failed, then passed by itself."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNSTEADY = "unsteady"


@dataclass(frozen=True)
class Case:
    """One test's end.

    :param command: what runs it alone, from the checkout's top directory.
    """

    name: str
    outcome: Outcome
    seconds: float
    command: str
    message: str = ""


@dataclass
class Suite:
    """One suite's end.

    :param status: exit status of its last run.
    """

    name: str
    seconds: float = 0.0
    status: int = 0
    tests: list[Case] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        """Return how many of its tests ended so."""
        return Counter(test.outcome for test in self.tests)[outcome]

    @property
    def silent(self) -> bool:
        """Whether it failed as a whole: it says so, and no test of it does."""
        return self.status not in (0, NOTHING_SELECTED) and not self.count(Outcome.FAILED)


def node(case: ElementTree.Element) -> str:
    """Return the name by which pytest selects a test of its report."""
    file, classes, name = case.get("file") or "", case.get("classname") or "", case.get("name") or ""
    if not classes:  # the file itself: it could not be read
        return file or name
    module = file.removesuffix(".py").replace("/", ".")
    inner = classes.removeprefix(module).strip(".")
    return "::".join([file, *inner.split("."), name] if inner else [file, name])


def command(suite: str, name: str, environ: Mapping[str, str]) -> str:
    """Return the command line that runs one test again."""
    given = [f"{key}={shlex.quote(environ[key])}" for key in VARIABLES if environ.get(key)]
    return " ".join([*given, ".venv/bin/python", RUNNERS.get(suite, "-m pytest"), shlex.quote(name)])


def verdict(case: ElementTree.Element) -> tuple[Outcome, str]:
    """Return how a test of pytest's report ended, and the first line of why."""
    for tag, outcome in (("failure", Outcome.FAILED), ("error", Outcome.FAILED), ("skipped", Outcome.SKIPPED)):
        if (found := case.find(tag)) is not None:
            return outcome, (found.get("message") or "").strip().partition("\n")[0][:MESSAGE]
    return Outcome.PASSED, ""


def cases(path: Path) -> Iterator[tuple[str, Outcome, float, str]]:
    """Yield each test of a report once: name, outcome, seconds, message.

    A test that failed and whose fixtures then failed, too, stands there twice.
    """
    found: dict[str, tuple[Outcome, float, str]] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name, seconds = node(case), float(case.get("time") or 0)
        outcome, message = verdict(case)
        if name in found:
            before = found[name]
            outcome, message = (before[0], before[2]) if before[0] is Outcome.FAILED else (outcome, message)
            seconds += before[1]
        found[name] = (outcome, seconds, message)
    for name, (outcome, seconds, message) in found.items():
        yield name, outcome, seconds, message


def read_report(suite: str, first: Path, environ: Mapping[str, str]) -> list[Case]:
    """Return the tests of a suite, from the report of its run and from that of the second run of what failed."""
    again = first.with_suffix(".again.xml")
    passed_then = {name for name, outcome, *_ in cases(again) if outcome is Outcome.PASSED} if again.exists() else set()
    tests = []
    for name, outcome, seconds, message in cases(first):
        then = Outcome.UNSTEADY if outcome is Outcome.FAILED and name in passed_then else outcome
        tests.append(Case(name, then, seconds, command(suite, name, environ), message))
    return tests


def rows(path: Path) -> Iterator[list[str]]:
    """Yield the fields of the lines of a file that bin/test wrote."""
    if path.exists():
        for line in path.read_text().splitlines():
            yield line.split("\t")


def read(folder: Path, environ: Mapping[str, str]) -> list[Suite]:
    """Return the suites in the order in which they were run."""
    suites = {name: Suite(name, float(seconds), int(status)) for name, seconds, status in rows(folder / "suites")}
    for name, seconds, status, words in rows(folder / "checks"):
        outcome = Outcome.FAILED if int(status) else Outcome.PASSED
        suites[name].tests.append(Case(words, outcome, float(seconds), words))
    for suite in suites.values():
        report = folder / f"{suite.name}.xml"
        if report.exists():
            suite.tests += read_report(suite.name, report, environ)
    return list(suites.values())


def table(suites: Iterable[Suite]) -> Iterator[str]:
    """Yield a line for each suite."""
    yield f"{'suite':<10}" + "".join(f"{outcome:>10}" for outcome in Outcome) + f"{'seconds':>10}"
    for suite in suites:
        counts = "".join(f"{suite.count(outcome):>10}" for outcome in Outcome)
        yield f"{suite.name:<10}{counts}{suite.seconds:>10.0f}{'   ended without a result' if suite.silent else ''}"


def named(title: str, tests: Iterable[Case]) -> Iterator[str]:
    """Yield these tests with the commands that run them alone; nothing at all when there are none."""
    head = ["", f"{title}:"]
    for test in tests:
        yield from head
        head = []
        yield f"  {test.name}"
        yield from [f"    {test.message}"] if test.message else []
        yield f"    {test.command}"


def render(suites: list[Suite]) -> str:
    """Return the whole summary."""
    tests = [test for suite in suites for test in suite.tests]
    lines = ["", *table(suites)]
    slowest = sorted(tests, key=lambda test: -test.seconds)[:SLOWEST]
    lines += ["", "the slowest tests:", *(f"  {test.seconds:6.1f} s  {test.name[:MESSAGE]}" for test in slowest)]
    unsteady = [test for test in tests if test.outcome is Outcome.UNSTEADY]
    lines += named("UNSTEADY: failed, then passed by itself", unsteady)
    lines += named("FAILED, and what runs it alone", [test for test in tests if test.outcome is Outcome.FAILED])
    silent = [suite for suite in suites if suite.silent]
    lines += ["", "ENDED WITHOUT A RESULT, see above: " + ", ".join(suite.name for suite in silent)] if silent else []
    return "\n".join([*lines, "", last_line(suites)])


def last_line(suites: Iterable[Suite]) -> str:
    """Return the totals; a suite that ended without a result counts as one failed test."""
    total = Counter(test.outcome for suite in suites for test in suite.tests)
    failed = total[Outcome.FAILED] + sum(suite.silent for suite in suites)
    passed = total[Outcome.PASSED] + total[Outcome.UNSTEADY]
    return f"{passed} passed, {failed} failed, {total[Outcome.SKIPPED]} skipped"


def main() -> int:
    """Print the summary; return 1 when anything failed."""
    suites = read(Path(sys.argv[1]), os.environ)
    print(render(suites))
    return int(any(suite.silent or suite.count(Outcome.FAILED) for suite in suites))


if __name__ == "__main__":
    sys.exit(main())
