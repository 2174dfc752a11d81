# SPDX-License-Identifier: Apache-2.0
"""The suite ``xen`` of bin/test: boots a machine with real Xen, installs the checkout in dom0, runs the tests there.

``python -m tests.xen [--measure] [--junitxml FILE] [pytest arguments]``; the machine is gone at the end in any case.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.xen.install import HOME, IMAGE, SHARE, pack
from tests.xen.machine import DIRECTORY, Machine, MachineError, write

BUILD = Path(__file__).resolve().parent / "rig" / "build.sh"
#: Seconds all tests may take together in dom0, a bound against hanging: several times what an idle machine needs.
TESTS_SECONDS = 2400.0
#: Neither the checkout's own conftest.py, whose packages dom0 need not have, nor plugins that nothing here uses.
PYTEST = [
    f"{HOME}/venv/bin/python", "-u", "-m", "pytest", "tests/xen/dom0", "--confcutdir=tests/xen",
    "-o", "cache_dir=/tmp/pytest", "--color=no", "--durations=15",
]  # fmt: skip
INSTALL = f"mkdir -p {HOME} && mount -o loop,noatime {SHARE}/{IMAGE} {HOME}"
#: pytest's exit statuses.
FAILED, NO_TESTS = 1, 5


def main() -> int:
    """Return pytest's exit status, 1 when it did not get that far."""
    parser = argparse.ArgumentParser(prog="python -m tests.xen")
    parser.add_argument("--junitxml", type=Path)
    parser.add_argument("--measure", action="store_true", help="measure instead: create to first byte against xl")
    given, rest = parser.parse_known_args()
    # bin/test ends us so when it is interrupted: the machine must go, too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    begun = time.monotonic()

    def say(text: str) -> None:
        write(f"[{time.monotonic() - begun:3.0f}s] {text}\n")

    say(f"the machine's disk: {DIRECTORY}")
    if subprocess.run([str(BUILD), str(DIRECTORY)], check=False).returncode != 0:
        say("cannot make the machine's disk")
        return 1
    with tempfile.TemporaryDirectory(prefix="xen-share-") as name:
        share = Path(name)
        say("booting Xen and dom0, in software emulation; packing the checkout's wheel meanwhile")
        machine = Machine(share)
        try:
            pack(share)
            say("packed")
            machine.boot()
            say("dom0 answers")
            if machine.run(INSTALL, 300) != 0:
                say("cannot install the wheel in dom0")
                return 1
            if given.measure:
                return machine.run(f"cd {HOME} && venv/bin/python -m tests.xen.dom0.measure", TESTS_SECONDS)
            say("running the tests in dom0")
            status = run_tests(machine, share, given.junitxml, rest)
            say(f"the tests ended with {status}")
            return 0 if status == NO_TESTS else status
        except MachineError as exc:
            say(f"the machine failed: {exc}")
            return 1
        finally:
            machine.close()
            say("the machine is off")


def run_tests(machine: Machine, share: Path, junitxml: Path | None, words: list[str]) -> int:
    """Run the tests; what fails runs once more by itself, as in the other suites of bin/test.

    :param junitxml: where pytest's report goes; that of the second run beside it, as NAME.again.xml.
    :returns: the exit status of the last run.
    """
    status = run_pytest(machine, share, junitxml, words)
    if status != FAILED:
        return status
    write("what failed, once more\n")
    again = ["--last-failed", "--last-failed-no-failures=none"]
    return run_pytest(machine, share, junitxml and junitxml.with_suffix(".again.xml"), [*again, *words])


def run_pytest(machine: Machine, share: Path, junitxml: Path | None, words: list[str]) -> int:
    """Run pytest in dom0 and fetch its report."""
    result = share / "result.xml"
    result.unlink(missing_ok=True)
    argv = [*PYTEST, "--junitxml=/host/result.xml", *words]
    status = machine.run(f"cd {HOME} && {shlex.join(argv)}", TESTS_SECONDS)
    if junitxml is not None and result.exists():
        junitxml.write_bytes(result.read_bytes())
    return status


if __name__ == "__main__":
    sys.exit(main())
